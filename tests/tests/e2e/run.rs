//! What a user does with a running cluster, and what it refuses.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::service::ServiceState;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::command::printed;
use blixard_tests::http::inside;
use blixard_tests::{image, wait};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_bundle_submitted_to_a_follower_runs_everywhere_and_every_node_shows_it() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let web = image::web()?;
        let (_, followers) = cluster.leader_and_followers()?;
        let asked = followers[0];
        cluster.hosts[asked].import(&web)?;
        cluster.hosts[asked].run(&Bundle::new("web", &web).replicas(3, 3).port(80, 8080))?;

        let shown: Vec<Vec<ReplicaRow>> =
            cluster.hosts.iter().map(|host| host.replicas("web")).collect::<Result<_>>()?;
        for rows in &shown {
            let mut nodes: Vec<u64> = rows.iter().filter_map(|row| row.node).map(|node| node.0).collect();
            nodes.sort_unstable();
            ensure!(nodes == [1, 2, 3], "the replicas are not one on each node: {nodes:?}");
        }
        let ids =
            |rows: &[ReplicaRow]| rows.iter().filter_map(|row| row.container_id.clone()).collect::<Vec<_>>();
        ensure!(shown.iter().all(|rows| ids(rows) == ids(&shown[0])), "the nodes show different containers");

        let mut pages = std::collections::BTreeSet::new();
        for host in &cluster.hosts {
            pages.insert(host.served(8080)?);
            // Also on the node itself, at its address and at localhost.
            for address in [[127, 0, 0, 1].into(), host.address()] {
                let (status, _) = blixard_tests::http::get(&host.namespace(), (address, 8080).into(), "/")?;
                ensure!(status == 200, "host {} answers {status} at {address}", host.number);
            }
            let tasks = host.tasks()?;
            let own =
                shown[0].iter().find(|row| row.node.is_some_and(|node| node.0 == u64::from(host.number)));
            let id = own.and_then(|row| row.container_id.clone()).context("the node has no replica")?;
            ensure!(
                tasks.len() == 1 && tasks[0].container == id.0 && tasks[0].running,
                "containerd of host {} runs {tasks:?}, not {}",
                host.number,
                id.0
            );
        }
        ensure!(pages.len() == 3, "three containers have three host names: {pages:?}");
        Ok(())
    })
}

#[test]
fn logs_and_exec_reach_a_container_from_any_node() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let busybox = image::busybox()?;
        cluster.hosts[0].import(&busybox)?;
        let script = "echo to stdout; echo to stderr >&2; sleep 1; echo \"word is $WORD\"; sleep 600";
        let bundle = Bundle::new("talk", &busybox).shell(script).environment("WORD", "fish");
        cluster.hosts[0].run(&bundle.constraint("node.id==3"))?;
        for host in &cluster.hosts {
            let text = wait::until("three lines of log", SOON, || {
                let output = host.cli_output(&["logs", "talk"])?;
                ensure!(output.status.success(), "{}", printed(&output));
                let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
                ensure!(out.lines().count() == 2 && err.lines().count() == 1, "stdout: {out} stderr: {err}");
                Ok((out, err))
            })?;
            ensure!(text == ("to stdout\nword is fish\n".to_owned(), "to stderr\n".to_owned()), "{text:?}");
            ensure!(host.cli(&["logs", "-n", "1", "talk-0"])? == "word is fish\n", "the last line");

            ensure!(host.cli(&["exec", "talk-0", "sh", "-c", "echo $WORD; id -u"])? == "fish\n0\n", "exec");
            let failed = host.cli_output(&["exec", "talk-0", "sh", "-c", "exit 7"])?;
            ensure!(failed.status.code() == Some(7), "the code of the process is {:?}", failed.status);
            let id = host.inspect("talk-0")?.row.container_id.context("no id")?;
            let pid = host.pid_of(&id.0[..12])?;
            ensure!(cluster.hosts[2].processes().contains(&pid), "pid {pid} is no process of host 3");
        }
        Ok(())
    })
}

#[test]
fn a_followed_log_ends_with_its_container() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        host.run(
            &Bundle::new("count", &busybox).shell("for i in 1 2 3; do echo $i; sleep 1; done; sleep 600"),
        )?;
        let mut follower = host.command(&["logs", "-f", "count"])?;
        let mut follower = follower.stdout(std::process::Stdio::piped()).spawn()?;
        wait::until("the third line", SOON, || {
            wait::ensure(host.cli(&["logs", "count"])? == "1\n2\n3\n", "it is not written yet")
        })?;
        host.cli(&["stop", "count"])?;
        wait::until("the client to end", SOON, || follower.try_wait()?.context("it goes on"))?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut follower.stdout.take().context("no output")?, &mut text)?;
        ensure!(text == "1\n2\n3\n", "{text}");
        Ok(())
    })
}

#[test]
fn a_followed_service_shows_containers_that_start_later() -> Result<()> {
    Cluster::formed(2)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        let bundle = Bundle::new("crew", &busybox).shell("echo here; exec sleep 600").replicas(1, 3);
        host.run(&bundle)?;
        let output = cluster.directory().join("crew.log");
        let mut follower = host.command(&["logs", "-f", "crew"])?;
        let mut follower = follower.stdout(std::fs::File::create(&output)?).spawn()?;
        let shows = |names: &[&str]| {
            wait::until("the lines of all containers", SOON, || {
                let text = std::fs::read_to_string(&output)?;
                let expect = names.iter().all(|name| text.contains(&format!("{name} | here")));
                wait::ensure(expect && text.lines().count() == names.len(), text)
            })
        };
        shows(&["crew-0"])?;
        host.cli(&["service", "scale", "crew", "3"])?;
        shows(&["crew-0", "crew-1", "crew-2"])?;
        host.cli(&["rm", "crew"])?;
        let ended = wait::until("the client to end", SOON, || follower.try_wait()?.context("it goes on"))?;
        ensure!(ended.success(), "{ended}");
        shows(&["crew-0", "crew-1", "crew-2"])
    })
}

#[test]
fn a_followed_service_is_read_on_where_its_nodes_daemon_was_killed() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let busybox = image::busybox()?;
        cluster.hosts[0].import(&busybox)?;
        let count = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.2; done";
        let bundle = Bundle::new("count", &busybox).shell(count).constraint("node.name==host3");
        cluster.hosts[0].run(&bundle)?;
        let output = cluster.directory().join("count.log");
        let mut follower = cluster.hosts[0].command(&["logs", "-f", "count"])?;
        let mut follower = follower.stdout(std::fs::File::create(&output)?).spawn()?;
        let grows = |from: usize| {
            wait::until("more numbers", SOON, || {
                let text = std::fs::read_to_string(&output)?;
                let whole = text.rfind('\n').map_or("", |end| &text[..end]);
                let numbers = whole.lines().map(str::parse).collect::<Result<Vec<usize>, _>>()?;
                wait::ensure(numbers.len() > from + 10, format!("{} after {from}", numbers.len()))?;
                Ok(numbers)
            })
        };
        let before = grows(0)?.len();
        cluster.hosts[2].kill()?;
        cluster.hosts[2].start(&[])?;
        // What was written while nobody read is shown as well, and nothing twice.
        let numbers = grows(before + 10)?;
        ensure!(numbers.iter().copied().eq(1..=numbers.len()), "{numbers:?}");
        cluster.hosts[0].cli(&["rm", "count"])?;
        let ended = wait::until("the client to end", SOON, || follower.try_wait()?.context("it goes on"))?;
        ensure!(ended.success(), "{ended}");
        Ok(())
    })
}

#[test]
fn a_service_stops_starts_and_goes() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        cluster.hosts[0].run(&Bundle::new("web", &web).replicas(2, 4).port(80, 8080))?;
        let tasks = |cluster: &Cluster| -> Result<usize> {
            let all: Vec<_> = cluster.hosts.iter().map(|host| host.tasks()).collect::<Result<_>>()?;
            Ok(all.iter().flatten().filter(|task| task.running).count())
        };
        ensure!(tasks(cluster)? == 2, "min replicas run");

        cluster.hosts[1].cli(&["service", "scale", "web", "4"])?;
        cluster.wait_ready(2, "web", 4, SOON)?;
        ensure!(tasks(cluster)? == 4, "four replicas run");
        cluster.hosts[1].cli(&["service", "scale", "web", "3"])?;
        wait::until("three tasks", SOON, || wait::ensure(tasks(cluster)? == 3, "not three"))?;

        cluster.hosts[2].cli(&["stop", "web"])?;
        ensure!(tasks(cluster)? == 0, "some run after `stop` said that none does");
        ensure!(
            cluster.hosts[0].service("web")?.row.state == ServiceState::Stopped,
            "it is not shown as stopped"
        );
        ensure!(cluster.hosts[0].get(8080, "/").is_err(), "something answers");

        cluster.hosts[0].cli(&["start", "web"])?;
        cluster.wait_ready(1, "web", 3, SOON)?;

        let refused = cluster.hosts[1].cli_refused(&["rm", "web-0"])?;
        ensure!(refused.contains("`blixard rm web`"), "it is not said what to do: {refused}");
        cluster.hosts[1].cli(&["rm", "web"])?;
        ensure!(cluster.hosts[2].services()?.is_empty(), "it is listed");
        ensure!(cluster.hosts[0].replicas("web")?.is_empty(), "ps still shows it");
        ensure!(tasks(cluster)? == 0, "some run");
        // What ended is still known; that there is no such service is said, or accepted, all the same.
        let refused = cluster.hosts[1].cli_refused(&["rm", "web"])?;
        ensure!(refused.contains("no service") && !refused.contains("container"), "{refused}");
        cluster.hosts[1].cli(&["rm", "-f", "web", "nothing"])?;
        // The name and the port are free again.
        cluster.hosts[2].run(&Bundle::new("web", &web).replicas(2, 4).port(80, 8080))?;
        Ok(())
    })
}

#[test]
fn stopping_is_graceful_and_the_timeout_is_kept() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        // The first takes its time to end well; the second does not listen.
        let directory = cluster.directory().join("shared");
        std::fs::create_dir(&directory)?;
        let source = directory.to_str().context("UTF-8")?;
        let polite = "trap 'sleep 1; echo bye >/shared/bye; exit 0' TERM; while :; do sleep 0.1; done";
        let polite = Bundle::new("polite", &busybox).shell(polite).volume(source, "/shared");
        host.run(&polite.set("stop_timeout", 20.into()))?;
        host.cli(&["stop", "polite"])?;
        ensure!(directory.join("bye").exists(), "it was not waited for its last word");

        let deaf = Bundle::new("deaf", &busybox).shell("trap '' TERM; while :; do sleep 0.1; done");
        host.run(&deaf.clone().set("stop_timeout", 1.into()))?;
        let replaced = host.inspect("deaf-0")?.row.container_id.context("a container")?;
        host.cli(&["stop", &replaced.0])?;
        ensure!(
            host.tasks()?.iter().all(|task| !task.running || !replaced.0.starts_with(&task.container)),
            "it runs"
        );
        host.cli(&["stop", "deaf"])?;
        ensure!(host.tasks()?.iter().all(|task| !task.running), "one runs that was to be killed");

        // Whoever stops it says how long it may take, at once or while it stops.
        host.run(&deaf.set("stop_timeout", 600.into()))?;
        host.cli(&["stop", "-t", "1", "deaf"])?;
        ensure!(host.tasks()?.iter().all(|task| !task.running), "it has its ten minutes");
        host.cli(&["start", "deaf"])?;
        let said = host.cli_refused(&["stop", "--timeout", "1", "deaf"])?;
        ensure!(said.contains("deaf still has 1 container after 1 s"), "{said}");
        host.cli(&["stop", "--time", "0", "deaf"])?;
        ensure!(host.tasks()?.iter().all(|task| !task.running), "it keeps its ten minutes");
        let refused = host.cli_refused(&["stop", "-t", "3601", "deaf"])?;
        ensure!(refused.contains("whole seconds from 0 to 3600"), "{refused}");
        let said = host.cli_refused(&["port", "deaf"])?;
        ensure!(said.contains("no container of `deaf` runs") && said.contains("blixard start"), "{said}");
        for command in [&["exec", "deaf", "ls"][..], &["kill", "deaf-0"]] {
            let said = host.cli_refused(command)?;
            ensure!(
                said.contains("service `deaf` is stopped") && said.contains("blixard start deaf"),
                "{said}"
            );
        }
        let said = host.cli_refused(&["service", "scale", "deaf", "0"])?;
        ensure!(said.contains("`blixard stop deaf`"), "{said}");

        // What ends for good is not waited for until the time is over.
        let job = Bundle::new("job", &busybox).shell("test -e /shared/bye && exit 3; sleep 1000");
        let mount = serde_json::json!([{"source": source, "target": "/shared", "mode": "ro"}]);
        let job = job.set("volumes", mount).set("restart_policy", serde_json::json!({"name": "no"}));
        std::fs::remove_file(directory.join("bye"))?;
        host.run(&job)?;
        std::fs::write(directory.join("bye"), "")?;
        let said = host.cli_refused(&["restart", "job"])?;
        ensure!(said.contains("the new job-0 ended") && said.contains("exited with code 3"), "{said}");
        Ok(())
    })
}

#[test]
fn an_unchanged_bundle_changes_nothing_and_a_changed_one_replaces_one_slot_at_a_time() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        let bundle = Bundle::new("web", &web).replicas(3, 3).port(80, 8080);
        cluster.hosts[0].run(&bundle)?;
        let ids = |cluster: &Cluster| -> Result<Vec<_>> {
            Ok(cluster.hosts[0].replicas("web")?.into_iter().map(|row| row.container_id).collect())
        };
        let before = ids(cluster)?;
        cluster.hosts[1].run(&bundle)?;
        ensure!(ids(cluster)? == before, "an unchanged bundle replaced containers");
        ensure!(cluster.hosts[2].service("web")?.row.version == 1, "it made a version");
        cluster.hosts[1].run(&bundle.clone().replicas(2, 4))?;
        ensure!(ids(cluster)? == before, "other bounds replaced containers");
        cluster.hosts[1].run(&bundle)?;

        let updated = bundle.environment("COLOR", "green");
        cluster.hosts[1].submit(&updated)?;
        // While it goes on, two of three always answer.
        let mut fewest = usize::MAX;
        wait::until("version 2 to run", Duration::from_secs(90), || {
            let detail = cluster.hosts[0].service("web")?;
            let running = detail.replicas.iter().filter(|row| row.ready && !row.lost).count();
            fewest = fewest.min(running);
            let new = detail.replicas.iter().filter(|row| row.version == 2 && row.ready).count();
            wait::ensure(new == 3 && detail.replicas.len() == 3, format!("{new} of 3 are new"))
        })?;
        ensure!(fewest >= 2, "only {fewest} replicas were ready during the update");
        ensure!(ids(cluster)?.iter().all(|id| !before.contains(id)), "an old container is left");
        ensure!(
            cluster.hosts[0].cli(&["exec", "web-1", "sh", "-c", "echo $COLOR"])? == "green\n",
            "the change"
        );
        Ok(())
    })
}

#[test]
fn what_breaks_the_bounds_or_takes_a_port_is_refused_with_the_reason() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let web = image::web()?;
        let host = &cluster.hosts[0];
        host.import(&web)?;
        host.run(&Bundle::new("web", &web).replicas(1, 3).port(80, 8080))?;
        for number in ["0", "4"] {
            let text = host.cli_refused(&["service", "scale", "web", number])?;
            ensure!(text.contains('1') && text.contains('3'), "the bounds are not named: {text}");
        }
        ensure!(host.service("web")?.row.desired == 1, "a refused number was taken");

        let text = host.run_refused(&Bundle::new("other", &web).port(80, 8080), 10)?;
        ensure!(text.contains("8080") && text.contains("web"), "port and owner are not named: {text}");
        for port in [7001, 8082] {
            let text = host.run_refused(&Bundle::new("other", &web).port(80, port), 10)?;
            ensure!(text.contains(&port.to_string()), "the daemon's own port is not named: {text}");
        }
        ensure!(host.services()?.len() == 1, "the refused service is listed");

        for name in ["service inspect nothing", "rm nothing", "stop nothing", "logs nothing"] {
            let words: Vec<&str> = name.split(' ').collect();
            let text = host.cli_refused(&words)?;
            ensure!(text.contains("nothing"), "`{name}` does not name what is missing: {text}");
        }
        Ok(())
    })
}

#[test]
fn what_cannot_be_placed_says_why() -> Result<()> {
    Cluster::formed(2)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[1];
        host.import(&busybox)?;
        let nowhere = Bundle::new("nowhere", &busybox).shell("sleep 600").constraint("node.name==attic");
        let text = host.run_refused(&nowhere, 3)?;
        ensure!(text.contains("node.name") && text.contains("attic"), "the label is not named: {text}");
        let huge = Bundle::new("huge", &busybox).shell("sleep 600");
        let huge = huge.set("resources", serde_json::json!({"memory": "100000GiB"}));
        let text = host.run_refused(&huge, 3)?;
        ensure!(text.contains("memory"), "the resource is not named: {text}");
        let rows = cluster.hosts[0].replicas("nowhere")?;
        ensure!(rows.len() == 1 && rows[0].message.contains("attic"), "ps does not say why: {rows:?}");
        Ok(())
    })
}

#[test]
fn a_command_that_does_not_exist_is_reported_and_tried_with_back_off() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        let text =
            host.run_refused(&Bundle::new("typo", &busybox).command(&["/bin/serve-it"]).always(), 6)?;
        ensure!(text.contains("/bin/serve-it"), "the command is not named: {text}");
        let attempts = host.replicas("typo")?.iter().map(|row| row.attempt).max().unwrap_or(0);
        ensure!(attempts <= 5, "a hot loop: {attempts} attempts in 6 s");
        // The daemon and its other work are none the worse for it.
        host.run(&Bundle::new("fine", &busybox).shell("sleep 600"))?;
        Ok(())
    })
}

#[test]
fn a_port_that_another_program_has_is_named_and_taken_once_free() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let web = image::web()?;
        let host = &cluster.hosts[0];
        host.import(&web)?;
        let bundle = Bundle::new("web", &web).port(80, 8080).always();
        // A listener stays in the namespace it was made in.
        let taken = inside(&host.namespace(), || Ok(std::net::TcpListener::bind("0.0.0.0:8080")?))?;
        let text = host.run_refused(&bundle, 6)?;
        ensure!(text.contains("8080"), "the port is not named: {text}");
        drop(taken);
        cluster.wait_ready(0, "web", 1, Duration::from_secs(60))?;
        host.served(8080)?;
        Ok(())
    })
}

#[test]
fn a_replica_that_cannot_start_on_some_nodes_runs_on_another() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let web = image::web()?;
        let bind = || Ok(std::net::TcpListener::bind("0.0.0.0:8080")?);
        let taken = [0, 1].map(|node| inside(&cluster.hosts[node].namespace(), bind));
        let taken = taken.into_iter().collect::<Result<Vec<_>>>()?;
        cluster.hosts[0].import(&web)?;
        cluster.hosts[0].submit(&Bundle::new("web", &web).port(80, 8080).always())?;
        // Each node has five tries of its own.
        let nodes = cluster.wait_ready(0, "web", 1, Duration::from_secs(120))?;
        ensure!(nodes == [u64::from(cluster.hosts[2].number)], "it runs on {nodes:?}");
        cluster.hosts[2].served(8080)?;
        drop(taken);
        Ok(())
    })
}

#[test]
fn a_container_that_ends_starts_again_as_its_policy_says() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        host.submit(&Bundle::new("once", &busybox).shell("echo done"))?;
        host.submit(&Bundle::new("again", &busybox).shell("echo hello; sleep 1; exit 3").always())?;
        wait::until("the second start of one and the end of the other", SOON, || {
            let all: Vec<ReplicaRow> = host.cli_json(&["ps", "-a"])?;
            let row =
                |name: &str| all.iter().find(|row| row.service.as_str() == name).context(name.to_owned());
            let (once, again) = (row("once")?, row("again")?);
            ensure!(once.exit_code == Some(0) && once.attempt == 0, "once: {once:?}");
            wait::ensure(again.attempt >= 2, format!("again: {again:?}"))
        })
    })
}
