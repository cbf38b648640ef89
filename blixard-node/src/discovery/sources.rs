//! The sources a node was given: registry files, the static file, tickets.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use blixard_core::discovery::contact::{Contact, MergeError, merge};
use blixard_core::discovery::file::{self, FILE_BYTES_MAX, FileError};
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::{Ticket, TicketError};
use blixard_core::id::NodeKey;

use crate::platform::Spawner;

/// The static file's name in the data directory.
pub const STATIC_FILE: &str = "discovery-peers.json";

/// Why a source cannot be used now. It is tried again; a node with such a source never bootstraps.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}{}", path.display(), hint(error))]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: Arc<io::Error>,
    },
    /// The file is far larger than any registry.
    #[error("{} is larger than {FILE_BYTES_MAX} bytes: it is not a registry file", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// The file is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that should hold a ticket holds none.
    #[error("{} holds no ticket: `blixard cluster token create` on a member prints one", named(path))]
    NoTicket {
        /// Which file; `-` is standard input.
        path: PathBuf,
    },
    /// What a file holds is no ticket.
    #[error("{}: {error}", path.display())]
    Ticket {
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: TicketError,
    },
    /// The sources contradict each other.
    #[error(transparent)]
    Merge(#[from] MergeError),
}

fn named(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (a node writes it when it has started; check the path)",
        _ => "",
    }
}

/// What a node was told to find others by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    files: Vec<PathBuf>,
    /// Read when it is there.
    static_file: Option<PathBuf>,
    tickets: Vec<Ticket>,
    /// Files that hold tickets.
    ticket_files: Vec<PathBuf>,
}

/// What the sources said when they were last read.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Possible members, merged by key, without this node.
    pub contacts: Vec<Contact>,
    /// Sources that could not be used.
    pub problems: Vec<SourceError>,
}

impl Sources {
    /// Collects the sources of a node: the values of `--join`, the comma-separated paths in
    /// `BLIXARD_NODE_REGISTRIES`, and [`STATIC_FILE`] in its data directory.
    pub fn new(join: Vec<JoinTarget>, registries: Option<&str>, data_dir: Option<&Path>) -> Self {
        let mut sources = Self { static_file: data_dir.map(|dir| dir.join(STATIC_FILE)), ..Self::default() };
        for target in join {
            match target {
                JoinTarget::File(path) => sources.files.push(path),
                JoinTarget::Ticket(ticket) => sources.tickets.push(*ticket),
                JoinTarget::TicketFile(path) => sources.ticket_files.push(path),
            }
        }
        let named = registries.unwrap_or_default().split(',').map(str::trim);
        sources.files.extend(named.filter(|path| !path.is_empty()).map(PathBuf::from));
        sources
    }

    /// Reads every source, off the async threads.
    pub async fn read(&self, own: NodeKey, spawner: &dyn Spawner) -> Reading {
        let (sources, result) = (self.clone(), Arc::new(Mutex::new(Reading::default())));
        let into = result.clone();
        let read = move || *into.lock().unwrap_or_else(PoisonError::into_inner) = sources.read_blocking(own);
        spawner.run_blocking(Box::new(read)).await;
        std::mem::take(&mut *result.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether any source is configured: then a node without membership joins and never bootstraps
    /// by itself, whatever the sources say.
    pub fn configured(&self) -> bool {
        let static_file = self.static_file.as_deref().is_some_and(|path| path.symlink_metadata().is_ok());
        let named = !self.files.is_empty() || !self.tickets.is_empty() || !self.ticket_files.is_empty();
        named || static_file
    }

    fn read_blocking(&self, own: NodeKey) -> Reading {
        let mut contacts: Vec<Contact> = self.tickets.iter().map(Ticket::contact).collect();
        let mut problems = Vec::new();
        let present = self.static_file.iter().filter(|path| path.symlink_metadata().is_ok());
        for path in self.files.iter().chain(present) {
            match read_file(path) {
                Ok(read) => contacts.extend(read),
                Err(error) => problems.push(error),
            }
        }
        for path in &self.ticket_files {
            match read_ticket_file(path) {
                Ok(read) => contacts.extend(read),
                Err(error) => problems.push(error),
            }
        }
        let contacts = merge(own, contacts).unwrap_or_else(|error| {
            problems.push(error.into());
            Vec::new()
        });
        Reading { contacts, problems }
    }
}

/// The contacts of the tickets in a file, one a line; a registry file is as good.
fn read_ticket_file(path: &Path) -> Result<Vec<Contact>, SourceError> {
    if path == Path::new("-") {
        // What was on standard input is among the tickets.
        return Err(SourceError::NoTicket { path: path.to_owned() });
    }
    let text = read_text(path)?;
    if text.trim_start().starts_with(['{', '[']) {
        return Ok(file::parse(&path.display().to_string(), &text)?);
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let tickets = lines.map(|line| line.parse().map(|ticket: Ticket| ticket.contact()));
    let contacts: Vec<Contact> = tickets
        .collect::<Result<_, _>>()
        .map_err(|error| SourceError::Ticket { path: path.to_owned(), error })?;
    if contacts.is_empty() {
        return Err(SourceError::NoTicket { path: path.to_owned() });
    }
    Ok(contacts)
}

fn read_file(path: &Path) -> Result<Vec<Contact>, SourceError> {
    Ok(file::parse(&path.display().to_string(), &read_text(path)?)?)
}

fn read_text(path: &Path) -> Result<String, SourceError> {
    let unreadable = |error| SourceError::Unreadable { path: path.to_owned(), error: Arc::new(error) };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(SourceError::TooLarge { path: path.to_owned() });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{STATIC_FILE, Sources};
    use blixard_core::api::token::Secret;
    use blixard_core::discovery::target::JoinTarget;
    use blixard_core::discovery::ticket::Ticket;
    use blixard_core::id::{ClusterId, NodeKey, TokenId};
    use blixard_core::wire::Peer;

    const OWN: NodeKey = NodeKey([1; 32]);

    fn member(key: u8) -> String {
        format!(r#"{{"iroh_node_id": "{}", "direct_addresses": ["10.0.0.{key}:7001"]}}"#, NodeKey([key; 32]))
    }

    #[test]
    fn every_source_is_read_and_every_fault_reported() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let good = write("two.json", &member(2));
        let own = write("own.json", &member(1));
        let bad = write("bad.json", "{");
        write(STATIC_FILE, &format!("[{}, {}]", member(3), member(2)));
        let listed =
            format!("{}, {} ,,{}", own.display(), bad.display(), dir.path().join("absent").display());
        let sources = Sources::new(vec![JoinTarget::File(good)], Some(&listed), Some(dir.path()));
        assert!(sources.configured());
        let reading = sources.read_blocking(OWN);
        let keys: Vec<u8> = reading.contacts.iter().map(|contact| contact.key.0[0]).collect();
        assert_eq!(keys, [2, 3]);
        let problems: Vec<String> = reading.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("bad.json:1:1: the file ends in the middle"), "{}", problems[0]);
        assert!(
            problems[1].contains("No such file") && problems[1].contains("check the path"),
            "{}",
            problems[1]
        );
    }

    #[test]
    fn an_absent_static_file_is_no_source_and_an_unreadable_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources::new(Vec::new(), Some(" , "), Some(dir.path()));
        assert!(!sources.configured());
        assert!(sources.read_blocking(OWN).problems.is_empty());
        std::fs::create_dir(dir.path().join(STATIC_FILE)).unwrap();
        assert!(sources.configured());
        assert_eq!(sources.read_blocking(OWN).problems.len(), 1);
    }

    #[test]
    fn a_ticket_is_taken_from_a_file_and_a_file_without_one_never_founds() {
        let dir = tempfile::tempdir().unwrap();
        let ticket = Ticket {
            cluster: ClusterId([4; 16]),
            peer: Peer { key: NodeKey([2; 32]), addresses: Vec::new(), relay_url: None },
            token: Secret { id: TokenId([5; 8]), secret: [6; 32] },
        };
        let check = |text: Option<&str>, expect: &[u8], problem: &str| {
            let path = dir.path().join("ticket");
            drop(std::fs::remove_file(&path));
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let sources = Sources::new(vec![JoinTarget::TicketFile(path)], None, None);
            assert!(sources.configured(), "{text:?}");
            let reading = sources.read_blocking(OWN);
            let keys: Vec<u8> = reading.contacts.iter().map(|contact| contact.key.0[0]).collect();
            assert_eq!(keys, expect, "{text:?}");
            let problems: Vec<String> = reading.problems.iter().map(ToString::to_string).collect();
            assert_eq!(problems.is_empty(), problem.is_empty(), "{problems:?}");
            assert!(problems.iter().all(|said| said.contains(problem)), "{problems:?}");
        };
        check(Some(&format!("# for box2\n{ticket}\n\n")), &[2], "");
        check(Some(&member(3)), &[3], "");
        check(Some(""), &[], "holds no ticket");
        check(Some("bxt1zz"), &[], "ticket");
        check(None, &[], "No such file");
        let nothing = Sources::new(vec![JoinTarget::parse("-").unwrap()], None, None);
        assert!(nothing.configured());
        assert!(nothing.read_blocking(OWN).problems[0].to_string().contains("standard input"));
    }
}
