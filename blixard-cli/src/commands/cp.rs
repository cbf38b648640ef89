//! `blixard cp`

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use blixard_node::tree::{self, ChunkReader, ChunkWriter, Target};
use bytes::Bytes;
use http_body_util::BodyExt;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;

use crate::client::{Client, chunks, segment};
use crate::failure::Failure;
use crate::render;

/// How many chunks wait for whoever takes them.
const QUEUE: usize = 4;
/// Which permissions are kept on the way out of a container: what its programs may do as their owner is
/// not to be had on this machine.
const MODE_MASK: u32 = 0o777;

/// Copy files between this machine and a running container, on whichever node it is
///
/// One of the two is NAME:PATH, with an absolute path. A directory is copied with all that is in it. What
/// is copied goes into the destination when that is a directory, and becomes the destination otherwise;
/// with /. behind a directory's path, what is in it is copied. Permissions and times are kept; on the way
/// out of a container set-user-id, set-group-id and sticky bits are not. Owners are not kept: in a container
/// files are root's, here they are yours. Sockets, pipes and devices are left out, and none that is there
/// already is replaced.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard cp web-0:/etc/nginx/nginx.conf .\n  blixard cp ./site/. web-0:/srv/www\n  blixard cp dump.sql db:/tmp/"
)]
pub(crate) struct Args {
    /// What to copy: PATH here, or NAME:PATH of a container
    #[arg(value_name = "SRC")]
    source: OsString,
    /// Where to: PATH here, or NAME:PATH of a container
    #[arg(value_name = "DST")]
    destination: OsString,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Here(PathBuf),
    There { container: String, path: String },
}

impl Side {
    /// `NAME:PATH` is a container's; a path of this machine that has a colon begins with `/` or `.`.
    fn read(text: &OsString) -> Self {
        let here = || Self::Here(text.into());
        let Some(known) = text.to_str() else { return here() };
        match known.split_once(':') {
            Some((container, path)) if !container.is_empty() && !container.starts_with(['/', '.']) => {
                Self::There { container: container.to_owned(), path: path.to_owned() }
            }
            _ => here(),
        }
    }
}

pub(crate) async fn cp(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    if [&args.source, &args.destination].into_iter().any(|side| side == "-") {
        let hint = "`blixard exec NAME cat FILE` writes a file of a container to standard output, `blixard exec -i NAME sh -c 'cat > FILE'` reads one from standard input; a file of that name is written `./-`";
        return Err(Failure::new("`-` is no path", hint).into());
    }
    match (Side::read(&args.source), Side::read(&args.destination)) {
        (Side::Here(from), Side::There { container, path }) => {
            upload(client, from, &container, &path).await?
        }
        (Side::There { container, path }, Side::Here(to)) => download(client, &container, &path, to).await?,
        (Side::Here(_), Side::Here(_)) => {
            let error = "neither side is a container's";
            return Err(Failure::new(error, "blixard cp web-0:/etc/hosts .").into());
        }
        (Side::There { .. }, Side::There { .. }) => {
            let is_here = |side: &&OsString| Path::new(side).symlink_metadata().is_ok();
            let here = [&args.source, &args.destination].into_iter().find(is_here);
            return Err(both_containers(here.map(Path::new)).into());
        }
    }
    render::note("copied");
    Ok(ExitCode::SUCCESS)
}

/// The failure of a copy between containers; `here` is a side that this machine has a file of.
fn both_containers(here: Option<&Path>) -> Failure {
    let mut hint = "copy to this machine first, then to the other".to_owned();
    if let Some(path) = here {
        let path = path.display();
        hint = format!("{hint}; a file of this machine whose name holds a colon is written `./{path}`");
    }
    Failure::new("both sides are containers", hint)
}

fn url(container: &str, path: &str) -> String {
    format!("/v1/replicas/{}/files?path={}", segment(container), segment(path))
}

/// Whether only what is in a directory is meant, of which the path then ends with `/.`.
fn is_content(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes == b"." || bytes.ends_with(b"/.")
}

async fn upload(client: &Client, from: PathBuf, container: &str, path: &str) -> anyhow::Result<()> {
    let mut url = url(container, path);
    if !is_content(&from) {
        let absolute =
            std::fs::canonicalize(&from).with_context(|| format!("cannot read {}", from.display()))?;
        let named = from.file_name().or(absolute.file_name()).and_then(|name| name.to_str());
        let name = named.ok_or_else(|| {
            Failure::new(format!("{} has no name to copy it by", from.display()), "name a file or directory")
        })?;
        url.push_str(&format!("&name={}", segment(name)));
    }
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
    let shown = from.clone();
    let packing = tokio::task::spawn_blocking(move || tree::pack_path(&from, &mut ChunkWriter::new(sender)));
    let sent = client.send_stream(&url, chunks(receiver)).await;
    // When the node takes no more, it has said why.
    match packing.await? {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).with_context(|| format!("cannot copy {}", shown.display()))
        }
        _ => sent,
    }
}

async fn download(client: &Client, container: &str, path: &str, to: PathBuf) -> anyhow::Result<()> {
    let name = match is_content(Path::new(path)) {
        true => None,
        false => Some(Path::new(path).file_name().unwrap_or(container.as_ref()).to_owned()),
    };
    let target = target(&to, name).with_context(|| format!("cannot copy to {}", to.display()))?;
    let mut body = client.stream(&url(container, path)).await?;
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
    let unpacking =
        tokio::task::spawn_blocking(move || tree::unpack(&target, &mut ChunkReader::new(receiver)));
    let mut broken = None;
    while let Some(frame) = body.frame().await {
        match frame.map(|frame| frame.into_data()) {
            Ok(Ok(chunk)) => {
                if sender.send(chunk).await.is_err() {
                    break;
                }
            }
            Ok(Err(_)) => {}
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    drop(sender);
    match (unpacking.await?, broken) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(error)) => Err(error).context("the connection to the node broke"),
        (Err(error), None) => Err(error).with_context(|| format!("cannot copy to {}", to.display())),
    }
}

/// Where `to` says: in it, when it is a directory, else in its place.
fn target(to: &Path, name: Option<OsString>) -> io::Result<Target> {
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)
    };
    // The file that a link names is what is meant: replacing the link would leave that as it is.
    let linked = to.is_symlink().then(|| std::fs::canonicalize(to)).transpose()?;
    let to = linked.as_deref().unwrap_or(to);
    if to.is_dir() {
        return Ok(Target { directory: open(to)?, name, mode_mask: MODE_MASK });
    }
    if to.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(io::Error::other("there is no such directory"));
    }
    let last = to.file_name().ok_or_else(|| io::Error::other("it names nothing"))?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Target { directory: open(parent)?, name: Some(last.to_owned()), mode_mask: MODE_MASK })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Side, both_containers, is_content, target};

    #[test]
    fn a_container_is_named_before_the_colon() {
        let there =
            |container: &str, path: &str| Side::There { container: container.into(), path: path.into() };
        let check = |text: &str, expect: Side| assert_eq!(Side::read(&text.into()), expect, "{text}");
        check("web-0:/etc/hosts", there("web-0", "/etc/hosts"));
        check("web-0:", there("web-0", ""));
        check("web:/a:b", there("web", "/a:b"));
        check("/tmp/a:b", Side::Here("/tmp/a:b".into()));
        check("./a:b", Side::Here("./a:b".into()));
        check("file", Side::Here("file".into()));
        check(":/x", Side::Here(":/x".into()));
    }

    #[test]
    fn a_file_with_a_colon_is_told_from_a_container() {
        let hint = |here: Option<&str>| both_containers(here.map(Path::new)).body.hint;
        assert_eq!(hint(None), "copy to this machine first, then to the other");
        assert!(hint(Some("we ird:name")).ends_with("is written `./we ird:name`"));
    }

    #[test]
    fn a_link_to_a_file_stands_for_the_file() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "old").unwrap();
        std::os::unix::fs::symlink("file", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("dangling")).unwrap();
        assert_eq!(target(&root.path().join("link"), None).unwrap().name.unwrap(), "file");
        assert!(target(&root.path().join("dangling"), None).is_err());
        assert_eq!(target(&root.path().join("new"), None).unwrap().name.unwrap(), "new");
    }

    #[test]
    fn a_dot_at_the_end_means_the_content() {
        for (path, expect) in
            [("a/.", true), (".", true), ("/.", true), ("a.", false), ("a/..", false), ("a", false)]
        {
            assert_eq!(is_content(path.as_ref()), expect, "{path}");
        }
    }
}
