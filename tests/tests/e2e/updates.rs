//! Versions that are no good: how far they get, what is said of them, and how they are undone.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::service::{ServiceState, VersionState};
use blixard_core::cluster::Phase;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::host::Host;
use blixard_tests::{image, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

/// How many ready replicas of `web` do not run the current version.
fn old(host: &Host) -> Result<usize> {
    Ok(host.replicas("web")?.iter().filter(|row| row.ready && !row.current).count())
}

#[test]
fn a_bad_version_replaces_one_replica_at_most_and_is_undone() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        let bundle = |line: &str| {
            let bundle = Bundle::new("web", &busybox).replicas(2, 3).always();
            bundle.set("stop_timeout", 1.into()).shell(line)
        };
        let good = bundle("while :; do sleep 1; done");
        host.run(&good)?;
        host.cli(&["service", "scale", "web", "3"])?;
        wait::until("three replicas to be proven", SOON, || {
            let row = host.service("web")?.row;
            wait::ensure(row.proven == 3, format!("{row:?}"))
        })?;

        for (line, code) in [("echo up; sleep 2; exit 4", 4), ("seq 9; printf 'oh no'; exit 3", 3)] {
            let said = host.run_refused(&bundle(line), 9)?;
            ensure!(said.contains(&format!("exited with code {code}")), "not how it failed: {said}");
            ensure!(code != 3 || said.contains("oh no"), "its last line had no end and is missing: {said}");
            ensure!(said.contains("service rollback web"), "not what to do: {said}");
            ensure!(!said.contains("blixard rm"), "it advises to remove what serves: {said}");
            ensure!(old(host)? == 3, "{} of 3 old replicas serve", old(host)?);
            let row = host.service("web")?.row;
            ensure!(row.state == ServiceState::Updating && row.proven == 0 && row.ready == 3, "{row:?}");
        }

        host.cli(&["service", "rollback", "web"])?;
        let detail = host.service("web")?;
        ensure!(detail.row.version == 4 && detail.row.proven == 3, "{:?}", detail.row);
        let states: Vec<_> = detail.versions.iter().map(|version| version.state).collect();
        let expect =
            [VersionState::Superseded, VersionState::Failed, VersionState::Failed, VersionState::Current];
        ensure!(states == expect, "{states:?}");
        ensure!(detail.versions[3].rollback_of == Some(1), "{:?}", detail.versions[3]);
        let history = host.cli(&["service", "history", "web"])?;
        ensure!(history.contains("rollback to 1") && history.contains("exited with code 3"), "{history}");

        // The good bundle does the same while a bad version is being tried.
        host.run_refused(&bundle("exit 1"), 3)?;
        host.run(&good)?;
        ensure!(host.service("web")?.row.proven == 3, "{:?}", host.service("web")?.row);
        Ok(())
    })
}

#[test]
fn what_serves_comes_back_while_a_bad_version_is_tried() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let busybox = image::busybox()?;
        cluster.hosts[0].import(&busybox)?;
        let serving = |host: &Host| {
            let rows = host.replicas("web")?;
            let serves = rows.iter().find(|row| row.version == 1 && row.ready);
            let serves = serves.and_then(|row| Some((row.container_id.as_ref()?.to_string(), row.node?)));
            serves.ok_or_else(|| anyhow!("none serves: {rows:?}"))
        };
        // Nothing is said of restarts: what ends is replaced.
        let bundle = |line: &str| Bundle::new("web", &busybox).set("stop_timeout", 1.into()).shell(line);
        let host = &cluster.hosts[0];
        host.run(&bundle("while :; do sleep 1; done"))?;
        host.run_refused(&bundle("exit 3"), 9)?;
        let (first, _) = serving(host)?;
        host.cli(&["kill", &first])?;
        let comes_back = |host: &Host, gone: &str| {
            wait::until("another of the version that served", SOON, || {
                serving(host).and_then(|(id, node)| {
                    wait::ensure(id != gone, format!("{id} still serves"))?;
                    Ok((id, node))
                })
            })
        };
        let (second, node) = comes_back(host, &first)?;

        let lost = usize::try_from(node.0)? - 1;
        cluster.hosts[lost].kill()?;
        let asked = &cluster.hosts[(lost + 1) % 3];
        let (_, elsewhere) = comes_back(asked, &second)?;
        ensure!(elsewhere != node, "it serves on the node that is down");
        Ok(())
    })
}

#[test]
fn what_its_restart_policy_leaves_stays_ended_until_it_is_started() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        let never =
            |name, line| Bundle::new(name, &busybox).shell(line).set("restart_policy", json!({"name": "no"}));
        let said = host.run_refused(&never("once", "exit 3"), 60)?;
        ensure!(said.contains("code 3") && said.contains("blixard start once"), "{said}");
        let detail = host.service("once")?;
        ensure!(detail.row.state == ServiceState::Failed, "{:?}", detail.row);
        let rows = detail.replicas;
        ensure!(rows.len() == 1 && rows[0].phase == Some(Phase::Failed) && rows[0].over, "{rows:?}");
        let first = rows[0].replica;
        host.cli(&["start", "-d", "once"])?;
        wait::until("another one to end", SOON, || {
            let rows = host.service("once")?.replicas;
            let again = rows.iter().any(|row| row.over && row.replica != first);
            wait::ensure(again, format!("{rows:?}"))
        })?;

        // To stop what has ended starts nothing either: the plan that places the next service would.
        let before = host.service("once")?.replicas;
        host.cli(&["stop", "once-0"])?;
        host.run(&never("job", "exit 0"))?;
        let after = host.service("once")?.replicas;
        let is_old = |row: &ReplicaRow| before.iter().any(|old| old.replica == row.replica);
        ensure!(after.iter().all(is_old), "{before:?}, then {after:?}");
        ensure!(host.service("job")?.row.state == ServiceState::Completed, "{:?}", host.service("job")?.row);
        Ok(())
    })
}
