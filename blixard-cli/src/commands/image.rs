//! `blixard image`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use blixard_core::api::image::{
    ImageList, ImageRemoval, ImportAnswer, PassedOverImage, PullLine, PullRequest,
};
use blixard_core::image_reference::ImageReference;
use clap::Subcommand;
use http::Method;
use tokio::sync::mpsc;

use crate::args::{Output, OutputArgs, time};
use crate::client::{self, Client};
use crate::failure::Failure;
use crate::render::progress::{Item, Progress};
use crate::render::table::Table;
use crate::render::{self, color, text};

/// Import, pull, list and remove images
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard image import app.tar\n  blixard image pull nginx\n  blixard image ls"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Import the images of an OCI or Docker archive into every node
    ///
    /// From then on its name stands for it in the whole cluster, whatever a registry says, until it is
    /// pulled with `blixard image pull` or removed. Replicas that wait for it start within seconds.
    #[command(
        after_help = "Example:\n  docker save app:1 -o app.tar && blixard image import app.tar\n  blixard image import --name team/app:1 layout.tar.zst"
    )]
    Import {
        /// The archive (tar, perhaps compressed with gzip, zstd or xz), or - for standard input
        #[arg(value_name = "FILE.tar")]
        file: PathBuf,
        /// What the image is called, instead of as the archive says; without a tag it keeps its own
        #[arg(long, value_name = "NAME[:TAG]")]
        name: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Pull an image from its registry to the node that is asked
    ///
    /// `blixard run` pulls by itself, on each node that runs a replica.
    #[command(
        after_help = "Example:\n  blixard image pull nginx:1.27\n  blixard image pull --timeout 10m nginx"
    )]
    Pull {
        /// The image
        #[arg(value_name = "REF")]
        reference: String,
        /// How long it may take in all, in seconds or as 1m30s
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = time)]
        timeout: Duration,
    },
    /// List the images of all nodes
    #[command(
        visible_alias = "list",
        after_help = "Example:\n  blixard image ls\n  blixard image ls -o json"
    )]
    Ls(OutputArgs),
    /// Remove images from every node
    ///
    /// Refused while a service needs one. What runs goes on in any case.
    #[command(
        after_help = "Example:\n  blixard image rm app:1\n  blixard image rm sha256:3f2a9c1 nginx:1.25"
    )]
    Rm {
        /// Images: names, or digests as `blixard image ls` shows them
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Also when a service needs it: what starts again has to fetch it anew
        #[arg(short, long)]
        force: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove the images that no service needs, from every node
    ///
    /// A service needs the images of all its kept versions, so that it can go back to them.
    #[command(after_help = "Example:\n  blixard image prune")]
    Prune(OutputArgs),
}

pub(crate) async fn image(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Import { file, name, output } => import(client, file, name, output).await,
        Command::Pull { reference, timeout } => {
            let pulling = pull(client, &reference);
            match tokio::time::timeout(timeout, pulling).await {
                Ok(answer) => answer,
                Err(_) => {
                    let error = format!("{reference} is not pulled after {} s", timeout.as_secs());
                    let hint = "the node may go on pulling: `blixard image ls` shows whether it is there; --timeout waits longer";
                    Err(Failure::new(error, hint).into())
                }
            }
        }
        Command::Ls(output) => list(client, output).await,
        Command::Rm { names, force, output } => remove(client, names, force, output).await,
        Command::Prune(output) => {
            let removal: ImageRemoval = client.post_empty("/v1/images/prune").await?;
            report(removal, output)
        }
    }
}

async fn import(
    client: &Client,
    file: PathBuf,
    name: Option<String>,
    output: OutputArgs,
) -> anyhow::Result<ExitCode> {
    let (sender, mut sent) = mpsc::unbounded_channel();
    let (body, total) = client::file(&file, move |bytes| {
        let _ = sender.send(bytes);
    })
    .await
    .with_context(|| format!("cannot read {}", file.display()))?;
    let mut progress = Progress::new();
    let path = match name {
        Some(name) => format!("/v1/images/import?name={}", client::segment(&name)),
        None => "/v1/images/import".to_owned(),
    };
    let upload = client.upload::<ImportAnswer>(&path, body);
    let mut upload = std::pin::pin!(upload);
    let answer = loop {
        // Cancel safe: the upload is pinned outside the loop and `recv` keeps what it has.
        tokio::select! {
            biased;
            answer = &mut upload => break answer?,
            Some(bytes) = sent.recv() => {
                let text = if Some(bytes) == total { "distributing" } else { "importing" };
                progress.show(&[Item {
                    key: file.display().to_string(),
                    text: text.to_owned(),
                    bytes: Some((bytes, total.unwrap_or(0))),
                }]);
            }
        }
    };
    drop(progress);
    if output.output == Output::Json {
        render::json(&answer)?;
    } else {
        for image in &answer.images {
            render::line(&format!("{} {}", text::image(&image.reference), image.digest))?;
        }
    }
    for image in &answer.passed_over {
        render::warn(&passed_over(image));
    }
    let failed: Vec<String> = answer
        .members
        .iter()
        .filter_map(|member| Some(format!("node {}: {}", member.node, member.error.as_ref()?)))
        .collect();
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let error = format!("{} of {} nodes do not have it", failed.len(), answer.members.len());
    let hint = "import it again once they are up; what is there already is not sent twice to disk";
    Err(Failure::new(error, hint).with_details(failed).into())
}

/// An image that the node asked has no use for. It need not be the machine that the command runs on.
fn passed_over(image: &PassedOverImage) -> String {
    let platforms: Vec<String> = image.platforms.iter().map(|platform| text::printable(platform)).collect();
    format!(
        "passed over {}: it is for {}, the node is {}",
        text::image(&image.name),
        platforms.join(", "),
        text::printable(&image.node_platform)
    )
}

async fn pull(client: &Client, reference: &str) -> anyhow::Result<ExitCode> {
    let body = serde_json::to_vec(&PullRequest { reference: reference.to_owned() })?;
    let mut lines = client.lines::<PullLine>(Method::POST, "/v1/images/pull", Some(body)).await?;
    let mut progress = Progress::new();
    while let Some(line) = lines.next().await? {
        if let Some(error) = line.error {
            drop(progress);
            let hint = pull_hint(reference);
            return Err(Failure::new(format!("cannot pull {reference}: {error}"), hint).into());
        }
        if let Some(digest) = line.digest {
            drop(progress);
            render::line(&digest)?;
            return Ok(ExitCode::SUCCESS);
        }
        let bytes = line.progress.map(|progress| (progress.bytes, progress.bytes_total));
        progress.show(&[Item { key: reference.to_owned(), text: "pulling".to_owned(), bytes }]);
    }
    Err(Failure::new(format!("the pull of {reference} ended without a word"), "try again").into())
}

/// What to try when `reference` cannot be pulled: what is none, no registry has.
fn pull_hint(reference: &str) -> &'static str {
    match reference.parse::<ImageReference>() {
        Ok(_) => "`blixard node --help` says how registries are configured",
        Err(_) => "give an image as nginx:1.27 or registry/name:tag",
    }
}

async fn list(client: &Client, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let list: ImageList = client.get("/v1/images").await?;
    if !list.unreachable.is_empty() {
        let ids: Vec<String> = list.unreachable.iter().map(ToString::to_string).collect();
        render::warn(&format!("without the images of nodes that do not answer: {}", ids.join(", ")));
    }
    if output.output == Output::Json {
        render::json(&list.items)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["IMAGE", "DIGEST", "SIZE", "NODES"], color::stdout());
    for image in &list.items {
        let nodes: Vec<String> = image.nodes.iter().map(ToString::to_string).collect();
        table.row([
            text::image(&image.reference),
            text::short_digest(&image.digest).to_owned(),
            text::bytes(image.bytes),
            nodes.join(", "),
        ]);
    }
    render::print(&table.render())?;
    Ok(ExitCode::SUCCESS)
}

async fn remove(
    client: &Client,
    names: Vec<String>,
    force: bool,
    output: OutputArgs,
) -> anyhow::Result<ExitCode> {
    let mut all = ImageRemoval::default();
    let mut fault = None;
    for name in &names {
        let path = format!("/v1/images?reference={}&force={force}", client::segment(name));
        match client.delete::<ImageRemoval>(&path).await {
            Ok(removal) => {
                all.items.extend(removal.items);
                all.bytes_freed = all.bytes_freed.saturating_add(removal.bytes_freed);
                all.failed.extend(removal.failed);
            }
            // The others are removed all the same.
            Err(error) => match &fault {
                None => fault = Some(error),
                Some(_) => render::warn(&format!("{error:#}")),
            },
        }
    }
    let code = report(all, output)?;
    fault.map_or(Ok(code), Err)
}

fn report(removal: ImageRemoval, output: OutputArgs) -> anyhow::Result<ExitCode> {
    if output.output == Output::Json {
        render::json(&removal)?;
    } else {
        for image in &removal.items {
            let nodes: Vec<String> = image.nodes.iter().map(ToString::to_string).collect();
            let (name, digest) = (text::image(&image.reference), text::short_digest(&image.digest));
            render::line(&format!("removed {name} ({digest}) from node {}", nodes.join(", ")))?;
        }
        render::line(&format!("freed {}", text::bytes(removal.bytes_freed)))?;
    }
    if removal.failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let failed = removal.failed.iter();
    let failed: Vec<String> = failed
        .map(|member| {
            format!("node {}: {}", member.node, member.error.as_deref().unwrap_or("no reason given"))
        })
        .collect();
    let error = format!("{} nodes keep what they have", failed.len());
    Err(Failure::new(error, "try again once they are up").with_details(failed).into())
}

#[cfg(test)]
mod tests {
    use blixard_core::api::image::PassedOverImage;
    use clap::{Args as _, FromArgMatches};

    use crate::client::canned::Canned;

    #[test]
    fn an_image_for_other_machines_is_told_with_both_platforms() {
        let check = |name: &str, platforms: &[&str], expect: &str| {
            let told = super::passed_over(&PassedOverImage {
                name: name.into(),
                platforms: platforms.iter().map(|&platform| platform.to_owned()).collect(),
                node_platform: "linux/amd64".into(),
            });
            assert_eq!(told, expect);
        };
        let expect = "passed over test/app:1: it is for linux/arm64, the node is linux/amd64";
        check("docker.io/test/app:1", &["linux/arm64"], expect);
        let expect = r"passed over <none>: it is for linux/\x1b[2J, linux/s390x, the node is linux/amd64";
        check("<none>", &["linux/\x1b[2J", "linux/s390x"], expect);
    }

    #[tokio::test]
    async fn a_pull_ends_in_time_whatever_the_node_does() {
        let check = async |timeout: &str, status: u16, body: &str, expect: &str| {
            let canned = Canned::new(vec![("/v1/images/pull", status, body.to_owned())]);
            let words = ["image", "pull", "--timeout", timeout, "nginx"];
            let matches = super::Args::augment_args(clap::Command::new("image")).try_get_matches_from(words);
            let args = super::Args::from_arg_matches(&matches.unwrap()).unwrap();
            let told = match super::image(&canned.client, args).await {
                Ok(code) => format!("{code:?}"),
                Err(error) => crate::failure::text(&error, crate::render::color::Paint::Plain),
            };
            assert!(told.contains(expect), "{told}");
        };
        check("1h", 200, "{\"digest\":\"sha256:0\"}\n", "ExitCode").await;
        check("1h", 200, "{\"error\":\"no such image\"}\n", "cannot pull nginx: no such image").await;
        // It never answers, or begins to and says no more.
        check("1s", 0, "", "nginx is not pulled after 1 s").await;
        let begun = "{\"progress\":{\"bytes\":1,\"bytes_total\":2}}\n";
        check("1s", 1, begun, "nginx is not pulled after 1 s").await;
    }
}
