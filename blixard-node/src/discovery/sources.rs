//! The sources a node was given: registry files, the static file, tickets.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use blixard_core::discovery::contact::{Contact, MergeError, merge};
use blixard_core::discovery::file::{self, FILE_BYTES_MAX, FileError};
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;
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
    /// The sources contradict each other.
    #[error(transparent)]
    Merge(#[from] MergeError),
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
        !self.files.is_empty() || !self.tickets.is_empty() || static_file
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
        let contacts = merge(own, contacts).unwrap_or_else(|error| {
            problems.push(error.into());
            Vec::new()
        });
        Reading { contacts, problems }
    }
}

fn read_file(path: &Path) -> Result<Vec<Contact>, SourceError> {
    let unreadable = |error| SourceError::Unreadable { path: path.to_owned(), error: Arc::new(error) };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(SourceError::TooLarge { path: path.to_owned() });
    }
    Ok(file::parse(&path.display().to_string(), &String::from_utf8_lossy(&bytes))?)
}

#[cfg(test)]
mod tests {
    use super::{STATIC_FILE, Sources};
    use blixard_core::discovery::target::JoinTarget;
    use blixard_core::id::NodeKey;

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
}
