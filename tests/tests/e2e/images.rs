//! Images come from archives and from registries.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::api::image::{DiskUsageRow, ImageRemoval, ImageRow};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::image;
use blixard_tests::registry::Registry;

#[test]
fn an_imported_image_is_at_every_member() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let busybox = image::busybox()?;
        cluster.hosts[1].import(&busybox)?;
        let images: Vec<ImageRow> = cluster.hosts[2].cli_json(&["image", "ls"])?;
        let row = images.iter().find(|row| row.reference == busybox.reference).context("it is not listed")?;
        let mut nodes: Vec<u64> = row.nodes.iter().map(|node| node.0).collect();
        nodes.sort_unstable();
        ensure!(nodes == [1, 2, 3], "it is at {nodes:?}");
        Ok(())
    })
}

#[test]
fn an_archive_that_is_none_is_refused() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let file = cluster.directory().join("not-an-archive.tar");
        std::fs::write(&file, vec![7; 4096])?;
        let text = cluster.hosts[0].cli_refused(&["image", "import", file.to_str().context("UTF-8")?])?;
        ensure!(text.contains("not-an-archive.tar") || text.contains("archive"), "{text}");
        Ok(())
    })
}

#[test]
fn a_service_pulls_from_a_registry_on_the_lan() -> Result<()> {
    let mut cluster = Cluster::hosts(3)?;
    let registry = Registry::start(&cluster.lan, false)?;
    let digest = registry.push(&image::web()?, "team/web", "1")?;
    use_registry(&mut cluster, &registry, false)?;
    cluster.form()?.check(|cluster| {
        let reference = format!("{}/team/web:1", registry.host());
        let bundle = Bundle::of("web", &reference).replicas(3, 3).port(80, 8080);
        cluster.hosts[1].run(&bundle)?;
        for host in &cluster.hosts {
            host.served(8080)?;
        }
        let detail = cluster.hosts[2].service("web")?;
        let resolved = detail.versions[0].spec.image.digest.clone();
        ensure!(resolved.as_deref() == Some(digest.as_str()), "{resolved:?} is not {digest}");
        let container = cluster.hosts[0].inspect("web-0")?.container.context("no container")?;
        ensure!(container.image_digest == digest, "{} runs, not {digest}", container.image_digest);
        Ok(())
    })
}

#[test]
fn a_private_registry_wants_the_credentials_of_the_registries_file() -> Result<()> {
    let mut cluster = Cluster::hosts(1)?;
    let registry = Registry::start(&cluster.lan, true)?;
    registry.push(&image::busybox()?, "private/busybox", "1")?;
    let reference = format!("{}/private/busybox:1", registry.host());
    use_registry(&mut cluster, &registry, false)?;
    cluster.form()?.check(|cluster| {
        let host = &mut cluster.hosts[0];
        let text = host.cli_refused(&["image", "pull", &reference])?;
        ensure!(text.contains(&registry.host()), "the registry is not named: {text}");
        ensure!(!text.contains("secret"), "{text}");

        let file = host.data_dir().with_file_name("registries.json");
        std::fs::write(&file, registry.registries_file(true))?;
        host.interrupt()?;
        host.arguments = vec!["--registries".to_owned(), file.display().to_string()];
        host.start(&[])?;
        host.cli(&["image", "pull", &reference])?;
        host.run(&Bundle::of("private", &reference).shell("sleep 600"))?;
        Ok(())
    })
}

#[test]
fn an_image_that_no_registry_has_is_reported_with_its_name() -> Result<()> {
    let mut cluster = Cluster::hosts(1)?;
    let registry = Registry::start(&cluster.lan, false)?;
    use_registry(&mut cluster, &registry, false)?;
    cluster.form()?.check(|cluster| {
        let reference = format!("{}/team/missing:9", registry.host());
        let text = cluster.hosts[0].run_refused(&Bundle::of("missing", &reference), 5)?;
        ensure!(text.contains("team/missing:9"), "the image is not named: {text}");
        ensure!(cluster.hosts[0].is_running(), "the daemon ended");
        // Once the registry has it, the next try succeeds by itself.
        registry.push(&image::web()?, "team/missing", "9")?;
        cluster.hosts[0].submit(&Bundle::of("missing", &reference))?;
        cluster.wait_ready(0, "missing", 1, Duration::from_secs(60))?;
        Ok(())
    })
}

#[test]
fn images_go_when_no_service_needs_them() -> Result<()> {
    Cluster::formed(2)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        host.run(&Bundle::of("needs", &busybox.reference).shell("sleep 600"))?;
        let usage: Vec<DiskUsageRow> = host.cli_json(&["system", "df"])?;
        ensure!(
            usage.len() == 2 && usage.iter().all(|row| row.images == 1 && row.image_bytes > 100_000),
            "{usage:?}"
        );
        ensure!(usage.iter().map(|row| row.containers).sum::<u64>() == 1, "{usage:?}");

        let refused = host.cli_refused(&["image", "rm", &busybox.reference])?;
        ensure!(refused.contains("needed by service needs"), "{refused}");
        let pruned: ImageRemoval = host.cli_json(&["image", "prune"])?;
        ensure!(pruned.items.is_empty(), "{pruned:?}");

        host.cli(&["rm", "needs"])?;
        let pruned: ImageRemoval = cluster.hosts[1].cli_json(&["image", "prune"])?;
        ensure!(pruned.items.len() == 1 && pruned.items[0].nodes.len() == 2, "{pruned:?}");
        ensure!(pruned.bytes_freed > 200_000, "{pruned:?}");
        let left: Vec<ImageRow> = host.cli_json(&["image", "ls"])?;
        ensure!(left.is_empty(), "{left:?}");
        let refused = host.cli_refused(&["image", "rm", &busybox.reference])?;
        ensure!(refused.contains("no node has an image"), "{refused}");
        Ok(())
    })
}

#[test]
fn an_imported_image_reaches_a_member_that_joins_later() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let busybox = image::busybox()?;
        // Of a registry that nobody is at.
        let reference = "10.99.99.99:5000/team/app:1".to_owned();
        cluster.hosts[0].cli(&["image", "import", "--name", &reference, busybox.archive()])?;
        let joined = cluster.add_host(2)?;
        let registry = cluster.registry()?;
        cluster.hosts[joined].start(&["--join", &registry])?;
        cluster.wait_formed()?;
        let bundle = Bundle::of("late", &reference).shell("sleep 600").constraint("node.id==2");
        let said = cluster.hosts[joined].cli_output(&["run", bundle.write()?.path()])?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        ensure!(said.contains("1 of 1 replica ready") && !said.contains("could not be looked up"), "{said}");
        let images: Vec<ImageRow> = cluster.hosts[0].cli_json(&["image", "ls"])?;
        ensure!(images.len() == 1 && images[0].nodes.len() == 2 && images[0].imported, "{images:?}");
        Ok(())
    })
}

/// Every daemon reaches `registry` by a registries file.
fn use_registry(cluster: &mut Cluster, registry: &Registry, credentials: bool) -> Result<()> {
    let file = cluster.directory().join("registries.json");
    std::fs::write(&file, registry.registries_file(credentials))?;
    for host in &mut cluster.hosts {
        host.arguments.extend(["--registries".to_owned(), file.display().to_string()]);
    }
    Ok(())
}
