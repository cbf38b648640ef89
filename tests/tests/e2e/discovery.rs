//! How nodes find a cluster: each source by itself, and what comes of liars.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::api::discovery::{DiscoveryView, LinkState, LinkView};
use blixard_core::api::token::{TokenAnswer, TokenRow};
use blixard_core::discovery::announce::AnnouncedContainer;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::command::run;
use blixard_tests::host::blixard;
use blixard_tests::web::Web;
use blixard_tests::{http, image, wait};
use serde_json::Value;

/// How long a daemon has to say something.
const SAID: Duration = Duration::from_secs(40);

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the temporary directory is not UTF-8")
}

/// A join token as `blixard cluster token create -o json` gives it, in a file of its own.
fn token_file(cluster: &Cluster, name: &str) -> Result<(String, String)> {
    let made: TokenAnswer = cluster.hosts[0].cli_json(&["cluster", "token", "create"])?;
    let path = cluster.directory().join(name);
    fs::write(&path, &made.token)?;
    Ok((text(&path)?.to_owned(), made.token))
}

#[test]
fn an_address_a_url_and_a_program_are_sources_and_a_failure_is_said_once() -> Result<()> {
    Cluster::hosts(5)?.check(|cluster| {
        cluster.hosts[0].start(&[])?;
        let (token_path, token) = token_file(cluster, "token")?;
        let directory = cluster.directory().to_owned();

        // By address, with a token. The address itself says who is there, and no secret.
        cluster.hosts[1].start(&["--join", "10.77.0.1:7001", "--token-file", &token_path])?;
        ensure!(!cluster.hosts[0].log().contains(&token), "the token is in the log");

        // By a program, with what it prints.
        let program = directory.join("inventory");
        let key = cluster.hosts[0].nodes()?[0].key;
        let printed = format!(
            r#"[{{"node_id": 1, "iroh_node_id": "{key}", "direct_addresses": ["10.77.0.1:7001"], "source": "cloud", "discovered_at": {{"secs_since_epoch": 1767225600, "nanos_since_epoch": 0}}}}]"#
        );
        fs::write(&program, format!("#!/bin/sh\necho '{printed}'\n"))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        cluster.hosts[2].environment.insert("BLIXARD_JOIN_TOKEN".to_owned(), token.clone());
        cluster.hosts[2].start(&["--source", &format!("exec:{}", text(&program)?)])?;
        let pid = cluster.hosts[2].pid().context("it runs")?;
        for file in ["environ", "cmdline"] {
            let seen = fs::read(format!("/proc/{pid}/{file}"))?;
            ensure!(!String::from_utf8_lossy(&seen).contains(&token), "the token is in {file}");
        }

        // By a URL at which there is nothing yet, which is said once however often it is looked at.
        let files = directory.join("web");
        fs::create_dir(&files)?;
        let web = Web::start(&cluster.lan, &files)?;
        let host = &mut cluster.hosts[3];
        host.spawn(&["--join", &web.url("registry.json")])?;
        wait::until("the daemon to say that the server has no such file", SAID, || {
            wait::ensure(host.log().contains("it answers 404"), host.log_tail(9))
        })?;
        ensure!(!host.registry_file().exists(), "it made a cluster of its own");
        fs::copy(cluster.hosts[0].registry_file(), files.join("registry.json"))?;
        cluster.hosts[3].wait_ready()?;
        let log = cluster.hosts[3].log();
        ensure!(log.matches("it answers 404").count() == 1, "it is said again and again: {log}");

        // A token that is not the cluster's is refused, and its secret shown to nobody.
        let wrong = directory.join("wrong");
        let changed: String = token.chars().map(|digit| if digit == '0' { '1' } else { digit }).collect();
        fs::write(&wrong, &changed)?;
        cluster.hosts[4].spawn(&["--join", "10.77.0.1:7001", "--token-file", text(&wrong)?])?;
        let code = cluster.hosts[4].wait_exit(SAID)?;
        let log = cluster.hosts[4].log();
        ensure!(code.is_some_and(|code| code != 0), "it ended with {code:?}: {log}");
        ensure!(log.contains("not valid") && !log.contains(&changed), "{log}");
        let rows: Vec<TokenRow> = cluster.hosts[0].cli_json(&["cluster", "token", "ls"])?;
        ensure!(rows.iter().all(|row| row.uses_left.is_none()), "{rows:?}");

        // With the right one it joins by an address that only a member's static file knows by now.
        let mut listed: Value = serde_json::from_str(&printed)?;
        listed[0]["source"] = "static".into();
        fs::write(cluster.hosts[4].data_dir().join("discovery-peers.json"), listed.to_string())?;
        cluster.hosts[4].start(&["--token-file", &token_path])?;
        cluster.wait_formed()
    })
}

/// What `chirp` hears on the LAN, from where no daemon runs.
fn chirp(cluster: &Cluster) -> Result<Vec<AnnouncedContainer>> {
    let namespace = format!("--net=/run/netns/{}", cluster.lan.namespace());
    let program = blixard()?;
    let arguments = [&namespace, text(&program)?, "chirp", "--timeout", "2", "-o", "json"];
    let heard = run("nsenter", &arguments)?;
    serde_json::from_str(&heard).with_context(|| heard.clone())
}

#[test]
fn a_cluster_is_found_on_the_local_network_and_its_containers_are_heard_there() -> Result<()> {
    Cluster::hosts(3)?.check(|cluster| {
        cluster.hosts[0].start(&[])?;
        let (token, _) = token_file(cluster, "token")?;
        // A cluster beside it, whose members know nothing of the token.
        cluster.hosts[2].start(&[])?;
        cluster.hosts[1].start(&["--join", "mdns", "--token-file", &token, "--announce", "off"])?;
        let joined = cluster.hosts[1].status()?;
        ensure!(joined.id == cluster.hosts[0].status()?.id && joined.nodes == 2, "{joined:?}");

        // What it was found by, and how the link is.
        let view: DiscoveryView = cluster.hosts[1].cli_json(&["discover"])?;
        let mdns = view.sources.iter().find(|source| source.name == "mdns").context("no such source")?;
        let members: Vec<_> = mdns.contacts.iter().filter_map(|contact| contact.member).collect();
        ensure!(members.len() == 1 && members[0].0 == 1, "{mdns:?}");
        ensure!(mdns.contacts.iter().all(|contact| !contact.named), "{mdns:?}");
        let links: Vec<LinkView> = cluster.hosts[1].cli_json(&["peer", "ls"])?;
        ensure!(links.len() == 1 && links[0].state == LinkState::Connected, "{links:?}");
        ensure!(links[0].rtt_us.is_some() && links[0].sources == ["mdns"], "{links:?}");

        // One container on each node; the node that keeps silent has none that is heard.
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        cluster.hosts[0].run(&Bundle::new("web", &web).replicas(2, 2).port(80, 8080))?;
        let rows = cluster.hosts[0].replicas("web")?;
        let row =
            rows.iter().find(|row| row.node.is_some_and(|node| node.0 == 1)).context("none on host 1")?;
        let heard = wait::until("the container to be heard", SAID, || {
            let heard = chirp(cluster)?;
            wait::ensure(heard.len() == 1, format!("{heard:?}"))?;
            Ok(heard)
        })?;
        let said = &heard[0];
        ensure!(
            Some(said.container_id.as_str()) == row.container_id.as_ref().map(|id| id.0.as_str()),
            "{said:?}"
        );
        ensure!((said.ip, said.port) == (Some(cluster.hosts[0].address().into()), Some(8080)), "{said:?}");
        ensure!((said.name.as_str(), said.node.as_str()) == (row.name.as_str(), "host1"), "{said:?}");
        ensure!(said.image == row.image, "{said:?}");
        let asked = http::get(cluster.lan.namespace(), (cluster.hosts[1].address(), 7001).into(), "/");
        ensure!(asked.is_err(), "a silent node says who it is");

        // What has stopped is taken back.
        cluster.hosts[0].cli(&["stop", "web"])?;
        wait::until("nothing to be heard", SAID, || {
            let heard = chirp(cluster)?;
            wait::ensure(heard.is_empty(), format!("{heard:?}"))
        })
    })
}
