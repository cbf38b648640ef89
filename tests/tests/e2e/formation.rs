//! How nodes find, admit and refuse each other.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::api::token::TokenRow;
use blixard_tests::cluster::Cluster;
use blixard_tests::host::Host;
use blixard_tests::wait;
use serde_json::Value;

/// How long a daemon that cannot start has to say so and end.
const REFUSAL: Duration = Duration::from_secs(40);

#[test]
fn nodes_join_by_registry_file_ticket_and_environment() -> Result<()> {
    Cluster::hosts(4)?.check(|cluster| {
        cluster.hosts[0].start(&[])?;
        let registry = cluster.registry()?;
        let file: Value = serde_json::from_str(&fs::read_to_string(&registry)?)?;
        ensure!(file["cluster_node_id"] == 1, "the registry file names node 1: {file}");
        ensure!(file["direct_addresses"].to_string().contains("10.77.0.1:7001"), "{file}");

        cluster.hosts[1].start(&["--join", &registry])?;
        let ticket = cluster.hosts[0].cli(&["cluster", "token", "create"])?;
        cluster.hosts[2].start(&["--join", ticket.trim()])?;
        // The first of the list does not exist: the second will do.
        let list = format!("/nonexistent/a.json,{registry}");
        cluster.hosts[3].environment.insert("BLIXARD_NODE_REGISTRIES".to_owned(), list);
        cluster.hosts[3].start(&[])?;
        cluster.wait_formed()
    })
}

#[test]
fn a_restart_never_joins_again_and_changes_nothing() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let before = cluster.hosts[0].status()?;
        let keys = |cluster: &Cluster| -> Result<Vec<_>> {
            Ok(cluster.hosts[0]
                .nodes()?
                .into_iter()
                .map(|node| (node.id, node.key, node.joined_at))
                .collect())
        };
        let members = keys(cluster)?;
        let registry = cluster.registry()?;
        cluster.hosts[2].kill()?;
        cluster.hosts[2].start(&["--join", &registry])?;
        cluster.wait_formed()?;
        // The source is a hint by now: a member starts without it.
        cluster.hosts[2].kill()?;
        cluster.hosts[2].start(&["--join", "/nonexistent/registry.json"])?;
        cluster.wait_formed()?;
        let after = cluster.hosts[2].status()?;
        ensure!(after.id == before.id && after.voters == before.voters, "{after:?}");
        ensure!(keys(cluster)? == members, "members changed");
        Ok(())
    })
}

#[test]
fn a_number_that_belongs_to_another_key_is_refused() -> Result<()> {
    let mut cluster = Cluster::formed(2)?;
    cluster.add_host(3)?;
    cluster.check(|cluster| {
        let registry = cluster.registry()?;
        cluster.hosts[2].spawn_as(&["--id", "2", "--bind", "10.77.0.3:7001", "--join", &registry])?;
        let code = cluster.hosts[2].wait_exit(REFUSAL)?;
        let log = cluster.hosts[2].log();
        ensure!(code.is_some_and(|code| code != 0), "it ended with {code:?}: {log}");
        ensure!(log.contains('2') && log.to_lowercase().contains("key"), "the reason is not said: {log}");
        ensure!(cluster.hosts[0].nodes()?.len() == 2, "a third member appeared");
        let left = cluster.hosts[2].processes();
        ensure!(left.is_empty(), "left running: {left:?}");
        Ok(())
    })
}

#[test]
fn a_wrong_token_is_refused() -> Result<()> {
    let mut cluster = Cluster::formed(1)?;
    cluster.add_host(2)?;
    cluster.check(|cluster| {
        let mut file: Value = serde_json::from_str(&fs::read_to_string(cluster.registry()?)?)?;
        let spoilt = spoil_token(&mut file)?;
        let path = cluster.directory().join("spoilt.json");
        fs::write(&path, file.to_string())?;
        cluster.hosts[1].spawn(&["--join", text(&path)?])?;
        let code = cluster.hosts[1].wait_exit(REFUSAL)?;
        let log = cluster.hosts[1].log();
        ensure!(code.is_some_and(|code| code != 0), "it ended with {code:?}: {log}");
        ensure!(log.to_lowercase().contains("token"), "the reason is not said: {log}");
        ensure!(!log.contains(&spoilt), "the secret is in the log");
        ensure!(!log.contains("ERROR"), "more than the reason is said: {log}");
        ensure!(cluster.hosts[0].nodes()?.len() == 1, "it was admitted");
        let left = cluster.hosts[1].processes();
        ensure!(left.is_empty(), "left running: {left:?}");
        // With the right file it joins at once: nothing of the refusal is in the way.
        let registry = cluster.registry()?;
        cluster.hosts[1].start(&["--join", &registry])?;
        cluster.wait_formed()?;
        Ok(())
    })
}

#[test]
fn container_networks_of_the_machines_own_network_are_refused_before_a_cluster_has_them() -> Result<()> {
    Cluster::hosts(1)?.check(|cluster| {
        let host = &mut cluster.hosts[0];
        host.spawn(&["--subnets", "10.77.0.0/16"])?;
        let code = host.wait_exit(REFUSAL)?;
        let log = host.log();
        ensure!(code.is_some_and(|code| code != 0), "it ended with {code:?}: {log}");
        ensure!(log.contains("10.77.0.0/16") && log.contains("10.77.0.1:"), "the reason is not said: {log}");
        let left = host.processes();
        ensure!(left.is_empty(), "left running: {left:?}");
        // No cluster was made: it makes one of other networks now.
        host.start(&["--subnets", "10.222.0.0/16"])
    })
}

#[test]
fn the_data_of_another_cluster_are_refused() -> Result<()> {
    Cluster::hosts(2)?.check(|cluster| {
        cluster.hosts[0].start(&[])?;
        cluster.hosts[1].start(&[])?;
        let other = cluster.hosts[1].status()?.id;
        ensure!(cluster.hosts[0].status()?.id != other, "two clusters have one identity");
        cluster.hosts[1].kill()?;
        let registry = cluster.registry()?;
        cluster.hosts[1].spawn(&["--join", &registry])?;
        let code = cluster.hosts[1].wait_exit(REFUSAL)?;
        let log = cluster.hosts[1].log();
        ensure!(code.is_some_and(|code| code != 0), "it ended with {code:?}: {log}");
        ensure!(
            log.contains("belongs to cluster") && log.contains(&other.to_string()),
            "the reason is not said: {log}"
        );
        // Nothing was lost by the refusal.
        cluster.hosts[1].start(&[])?;
        ensure!(cluster.hosts[1].status()?.id == other, "its cluster changed");
        Ok(())
    })
}

#[test]
fn a_registry_file_that_cannot_be_read_never_bootstraps() -> Result<()> {
    let mut cluster = Cluster::formed(1)?;
    for number in 2..=5 {
        cluster.add_host(number)?;
    }
    cluster.check(|cluster| {
        let whole = fs::read_to_string(cluster.registry()?)?;
        let directory = cluster.directory().to_owned();
        let mut check =
            |position: usize, name: &str, content: Option<&str>, may_change: bool| -> Result<()> {
                let path = directory.join(name);
                if let Some(content) = content {
                    fs::write(&path, content)?;
                }
                let host = &mut cluster.hosts[position];
                host.spawn(&["--join", text(&path)?])?;
                let told = wait::until("the daemon to name the file", REFUSAL, || {
                    wait::ensure(host.log().contains(name), "the log does not name it")
                });
                told.with_context(|| host.log_tail(20))?;
                ensure!(!host.registry_file().exists(), "{name}: it made a cluster of its own");
                ensure!(host.status().is_err(), "{name}: it serves");
                if may_change {
                    ensure!(host.is_running(), "{name}: it gave up: {}", host.log_tail(20));
                } else {
                    let code = host.wait_exit(REFUSAL)?;
                    ensure!(code == Some(1), "{name}: it ended with {code:?}");
                    let log = host.log();
                    ensure!(log.contains("nothing to join by") && log.contains("HOST:PORT"), "{name}: {log}");
                }
                Ok(())
            };
        check(1, "malformed.json", Some("{\"cluster_node_id\": [}"), false)?;
        check(2, "truncated.json", Some(&whole[..whole.len() / 2]), true)?;
        check(3, "missing.json", None, true)?;
        check(4, "empty.json", Some(""), false)
    })
}

#[test]
fn a_source_that_does_not_answer_never_bootstraps_and_is_tried_again() -> Result<()> {
    Cluster::hosts(2)?.check(|cluster| {
        cluster.hosts[0].start(&[])?;
        let registry = cluster.directory().join("registry.json");
        fs::copy(cluster.registry()?, &registry)?;
        cluster.hosts[0].kill()?;
        cluster.hosts[1].spawn(&["--join", text(&registry)?])?;
        let host = &cluster.hosts[1];
        wait::until("the daemon to say whom it cannot reach", REFUSAL, || {
            wait::ensure(host.log().contains("10.77.0.1"), "the log does not name the address")
        })
        .with_context(|| host.log_tail(20))?;
        ensure!(!host.registry_file().exists(), "it made a cluster of its own");
        ensure!(cluster.hosts[1].is_running(), "it gave up: {}", cluster.hosts[1].log_tail(20));
        let lines = cluster.hosts[1].log().lines().count();
        ensure!(lines < 500, "a hot loop wrote {lines} lines");
        cluster.hosts[0].start(&[])?;
        cluster.hosts[1].wait_ready()?;
        cluster.wait_formed()
    })
}

#[test]
fn the_bootstrapping_node_says_how_others_join_and_keeps_the_secret_out_of_its_log() -> Result<()> {
    Cluster::hosts(1)?.check(|cluster| {
        cluster.hosts[0].start(&[])?;
        wait::until("the node to say how others join", REFUSAL, || {
            let log = cluster.hosts[0].log();
            ensure!(!log.contains("bxt1"), "a ticket is in the log: {log}");
            wait::ensure(log.contains("blixard cluster token create") && log.contains("registry.json"), log)
        })
    })
}

#[test]
fn a_ticket_admits_as_often_as_it_says_and_registry_files_until_tokens_are_rotated() -> Result<()> {
    let mut cluster = Cluster::formed(2)?;
    cluster.add_host(3)?;
    cluster.add_host(4)?;
    cluster.check(|cluster| {
        for [option, value] in [["--uses", "0"], ["--expires", "0s"]] {
            let refused = cluster.hosts[1].cli_refused(&["cluster", "token", "create", option, value])?;
            ensure!(refused.contains("admits nobody"), "{option} {value}: {refused}");
        }
        let made = cluster.hosts[1].cli_output(&["cluster", "token", "create", "--uses", "1"])?;
        ensure!(made.status.success(), "{made:?}");
        let once = String::from_utf8(made.stdout)?.trim().to_owned();
        let told = String::from_utf8(made.stderr)?;
        ensure!(told.contains("blixard node --join -"), "the line to run is not told: {told}");

        cluster.hosts[2].start(&["--join", &once])?;
        wait::until("the new member to say how others join", REFUSAL, || {
            let log = cluster.hosts[2].log();
            ensure!(!log.contains("bxt1"), "it passes on a ticket that admits nobody: {log}");
            wait::ensure(log.contains("blixard cluster token create"), log)
        })?;
        let token = |host: &Host| -> Result<String> {
            let file: Value = serde_json::from_str(&fs::read_to_string(host.registry_file())?)?;
            Ok(file["join_token"].as_str().context("a registry file has a token")?.to_owned())
        };
        let used = token(&cluster.hosts[2])?;
        let rows: Vec<TokenRow> = cluster.hosts[0].cli_json(&["cluster", "token", "ls"])?;
        ensure!(rows.iter().any(|row| row.uses_left == Some(0)), "{rows:?}");
        let own = wait::until("the new member to have a token of its own", REFUSAL, || {
            let rows: Vec<TokenRow> = cluster.hosts[0].cli_json(&["cluster", "token", "ls"])?;
            let own = token(&cluster.hosts[2])?;
            let row = rows.iter().find(|row| own.starts_with(&row.id.to_string()));
            let row = row.context("the cluster does not know it")?;
            wait::ensure(row.uses_left.is_none() && row.expires_at.is_none(), format!("{row:?}, {used}"))?;
            Ok(own)
        })?;

        let check = |cluster: &mut Cluster, source: &str, word: &str| -> Result<()> {
            let said = cluster.hosts[3].log().len();
            cluster.hosts[3].spawn(&["--join", source])?;
            let code = cluster.hosts[3].wait_exit(REFUSAL)?;
            let log = cluster.hosts[3].log().split_off(said);
            ensure!(code.is_some_and(|code| code != 0), "it ended with {code:?}: {log}");
            ensure!(log.contains(word) && log.contains("token create"), "it is not said: {log}");
            Ok(())
        };
        check(cluster, &once, "used up")?;
        let copy = cluster.directory().join("copy.json");
        let registry = cluster.hosts[2].registry_file();
        fs::copy(&registry, &copy)?;
        cluster.hosts[1].cli(&["cluster", "token", "rotate"])?;
        check(cluster, text(&copy)?, "not valid")?;
        wait::until("the registry file to have another token", REFUSAL, || {
            wait::ensure(token(&cluster.hosts[2])? != own, "it has the one that was revoked")
        })?;
        cluster.hosts[3].start(&["--join", text(&registry)?])?;
        cluster.wait_formed()
    })
}

#[test]
fn a_joiner_that_died_before_it_heard_the_leader_comes_back_under_one_that_joined_after_it() -> Result<()> {
    Cluster::hosts(4)?.check(|cluster| {
        cluster.hosts[0].start(&[])?;
        let registry = cluster.registry()?;
        // In the way of the snapshots, so that it is admitted and dies before it hears of anything.
        let in_the_way = cluster.hosts[1].data_dir().join("state.redb");
        fs::create_dir_all(&in_the_way)?;
        cluster.hosts[1].spawn(&["--join", &registry])?;
        cluster.hosts[1].wait_exit(REFUSAL)?;
        ensure!(
            cluster.hosts[0].nodes()?.len() == 2,
            "it was not admitted: {}",
            cluster.hosts[1].log_tail(9)
        );
        fs::remove_dir(&in_the_way)?;

        cluster.hosts[2].start(&["--join", &registry])?;
        cluster.hosts[3].start(&["--join", &registry])?;
        wait::until("three to vote", REFUSAL, || {
            wait::ensure(cluster.hosts[2].status()?.voters.len() == 3, "fewer vote")
        })?;
        cluster.hosts[0].interrupt()?;
        wait::until("another to lead", REFUSAL, || wait::ensure(cluster.leader(2)? >= 2, "none of them"))?;
        cluster.hosts[0].start(&[])?;
        cluster.hosts[1].start(&[])?;
        cluster.wait_formed()
    })
}

/// Changes the secret of the file's token and gives the changed one.
fn spoil_token(file: &mut Value) -> Result<String> {
    let token = file.get_mut("join_token").context("a registry file has a token")?;
    let (id, secret) =
        token.as_str().and_then(|text| text.split_once('.')).context("a token is ID.SECRET")?;
    let secret: String = secret.chars().map(|digit| if digit == '0' { '1' } else { '0' }).collect();
    *token = Value::from(format!("{id}.{secret}"));
    Ok(secret)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the temporary directory is not UTF-8")
}

#[test]
fn a_start_that_cannot_work_says_why_and_leaves_nothing_behind() -> Result<()> {
    Cluster::hosts(1)?.check(|cluster| {
        let host = &mut cluster.hosts[0];
        let mut check = |arguments: &[&str], word: &str| -> Result<()> {
            let said = host.log().len();
            host.spawn_as(arguments)?;
            let code = host.wait_exit(REFUSAL)?;
            let log = host.log().split_off(said);
            ensure!(code.is_some_and(|code| code != 0), "{arguments:?} ended with {code:?}: {log}");
            ensure!(log.matches(word).count() == 1, "{arguments:?}: `{word}` is not said once: {log}");
            let left = host.processes();
            ensure!(left.is_empty(), "{arguments:?} left {left:?} running: {log}");
            Ok(())
        };
        check(&["--bind", "10.99.0.1:7001"], "10.99.0.1:7001")?;
        check(&["--bind", "10.77.0.1:7001", "--join", "bxt1abc"], "copy all of it")?;
        check(&["--bind", "10.77.0.1:7001", "--registries", "/nonexistent"], "/nonexistent")
    })
}
