//! What the documents and examples promise, tried: their commands on a cluster, their bundles with
//! small images in the place of those they name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_tests::cluster::Cluster;
use blixard_tests::document::{Document, root};
use blixard_tests::host::Host;
use blixard_tests::{image, wait};

const SOON: Duration = Duration::from_secs(90);

/// Imports `image` as if it were `reference`.
fn import_as(cluster: &Cluster, image: &image::Image, reference: &str) -> Result<()> {
    let archive = image.renamed(reference, cluster.directory())?;
    cluster.hosts[0].cli(&["image", "import", &archive.display().to_string()]).map(drop)
}

/// Writes a bundle, with what is of its author's machines replaced, into the cluster's directory.
fn write(cluster: &Cluster, name: &str, text: &str, replaced: &[(&str, &str)]) -> Result<PathBuf> {
    let mut text = text.to_owned();
    for (old, new) in replaced {
        ensure!(text.contains(old), "{name} has no `{old}`:\n{text}");
        text = text.replace(old, new);
    }
    let path = cluster.directory().join(name);
    std::fs::write(&path, text)?;
    Ok(path)
}

fn run(host: &Host, path: &Path) -> Result<String> {
    host.cli(&["run", "--timeout", "90", path.to_str().context("UTF-8")?])
}

#[test]
fn the_readme_is_a_session_that_works() -> Result<()> {
    let readme = Document::read("README.md")?;
    Cluster::formed(2)?.check(|cluster| {
        import_as(cluster, &image::web()?, "docker.io/library/nginx:latest")?;
        let blocks = readme.blocks();
        let bundle =
            blocks.iter().find(|block| block.language == "yaml").context("the README has no bundle")?;
        let path = write(cluster, "web.bun", bundle.text, &[])?;
        let text = run(&cluster.hosts[1], &path)?;
        let shown = blocks.iter().find(|block| block.language == "console").context("no session")?;
        let promised =
            shown.text.lines().find(|line| line.starts_with("web: ")).context("no answer of run")?;
        let sorted = |text: &str| {
            let mut words: Vec<String> = text.split([' ', ',', '\n']).map(str::to_owned).collect();
            words.sort();
            words.retain(|word| !word.is_empty());
            words
        };
        ensure!(sorted(&text) == sorted(promised), "the README promises `{promised}`, run says `{text}`");
        session(cluster, &readme.commands(), &["logs"], &path)
    })
}

#[test]
fn the_commands_for_operators_work_as_they_are_written() -> Result<()> {
    let operating = Document::read("docs/operating.md")?;
    let readme = Document::read("README.md")?;
    Cluster::formed(3)?.check(|cluster| {
        import_as(cluster, &image::web()?, "docker.io/library/nginx:latest")?;
        let blocks = readme.blocks();
        let bundle =
            blocks.iter().find(|block| block.language == "yaml").context("the README has no bundle")?;
        let path = write(cluster, "web.bun", bundle.text, &[])?;
        run(&cluster.hosts[0], &path)?;
        std::fs::write(&path, format!("{}environment: {{COLOUR: blue}}\n", bundle.text))?;
        run(&cluster.hosts[0], &path)?;
        // Those that take a node away come in an order of their own: elsewhere.
        session(cluster, &operating.commands(), &["leave", "rm", "purge"], &path)
    })
}

/// Runs the lines that are for a client, but those with a word of `but`; `web.bun` is the file at `bundle`.
fn session(cluster: &mut Cluster, lines: &[String], but: &[&str], bundle: &Path) -> Result<()> {
    let bundle = bundle.to_str().context("UTF-8")?;
    let mut ran = String::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let is_client =
            words.first() == Some(&"blixard") && words.get(1).is_some_and(|word| !word.starts_with('-'));
        let starts_daemon =
            words.get(1) == Some(&"node") && words.get(2).is_none_or(|word| word.starts_with('-'));
        if !is_client || starts_daemon || words.iter().any(|word| but.contains(word)) || line.contains(" -f")
        {
            continue;
        }
        let words: Vec<&str> =
            words[1..].iter().map(|word| if *word == "web.bun" { bundle } else { word }).collect();
        cluster.hosts[1].cli(&words)?;
        writeln!(ran, "{line}")?;
    }
    ensure!(ran.lines().count() >= 3, "only these lines were tried:\n{ran}");
    Ok(())
}

#[test]
fn every_example_runs() -> Result<()> {
    let mut cluster = Cluster::hosts(1)?;
    cluster.hosts[0].arguments = ["--label", "disk=ssd", "--label", "zone=a"].map(str::to_owned).into();
    cluster.form()?.check(|cluster| {
        let base = image::busybox()?;
        let images = BTreeMap::from([
            ("docker.io/library/nginx:1.27-alpine", image::web()?),
            ("docker.io/library/redis:7-alpine", image::stand_in("redis-server", &redis())?),
            ("docker.io/library/postgres:16-alpine", base.clone()),
            ("registry.lan:5000/team/worker:3", image::stand_in("worker", &worker())?),
        ]);
        for (reference, image) in &images {
            import_as(cluster, image, reference)?;
        }
        let examples = root().join("examples");
        let read = |name: &str| std::fs::read_to_string(examples.join(name)).context("an example");
        let data = cluster.directory().join("postgres");
        std::fs::create_dir_all(&data)?;
        std::fs::create_dir_all(cluster.directory().join("initdb"))?;
        let data = data.to_str().context("UTF-8")?.to_owned();
        // The stand-in for PostgreSQL sleeps: its image's command is busybox's shell.
        let sleeps =
            ("docker_image: postgres:16-alpine", "docker_image: postgres:16-alpine\n  command: sleep 9999");
        let host = &cluster.hosts[0];
        let run = |name: &str, replaced: &[(&str, &str)]| -> Result<String> {
            run(host, &write(cluster, name, &read(name)?, replaced)?)
        };
        run("postgres.bun", &[("/srv/postgres", &data), sleeps])?;
        run("redis.bun", &[("node.name==box1", "node.name==host1")])?;
        run("web.bun", &[])?;
        host.served(8080)?;
        run("worker.bun", &[])?;
        // What worker.bun says of the way to redis.
        wait::until("a worker to reach redis", SOON, || {
            let log = host.cli(&["logs", "worker"])?;
            wait::ensure(log.contains("reached redis"), log)
        })?;
        let mut all: Vec<PathBuf> = std::fs::read_dir(&examples)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()?;
        all.retain(|path| path.extension().is_some_and(|end| end == "bun"));
        ensure!(all.len() == host.services()?.len(), "not every example was tried: {all:?}");
        Ok(())
    })
}

fn redis() -> String {
    "echo hello >/app/index.html\nexec httpd -f -p 6379 -h /app".to_owned()
}

fn worker() -> String {
    r"address=${QUEUE_URL#redis://}; address=${address%/0}
while true; do
  printf 'GET / HTTP/1.0\r\n\r\n' | nc ${address%:*} ${address#*:} | grep -q hello && echo reached redis
  sleep 1
done"
        .to_owned()
}
