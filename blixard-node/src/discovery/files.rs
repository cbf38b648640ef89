//! Sources that are here: registry files, the static file, files with tickets, and tickets.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use blixard_core::discovery::contact::Contact;
use blixard_core::discovery::file::{self, FILE_BYTES_MAX};
use blixard_core::discovery::ticket::Ticket;

use super::Seams;
use super::source::{Source, SourceError, blocking};

/// The static file's name in the data directory.
pub const STATIC_FILE: &str = "discovery-peers.json";

/// A registry or static file that was named.
pub(super) struct NamedFile(pub(super) PathBuf);

#[async_trait]
impl Source for NamedFile {
    fn name(&self) -> String {
        format!("file {}", self.0.display())
    }

    async fn look(&self, seams: Seams<'_>) -> Result<Vec<Contact>, SourceError> {
        let path = self.0.clone();
        blocking(seams.spawner, move || read_file(&path)).await.unwrap_or_else(|| Ok(Vec::new()))
    }
}

/// The static file in the data directory, read when it is there.
pub(super) struct StaticFile(pub(super) PathBuf);

#[async_trait]
impl Source for StaticFile {
    fn name(&self) -> String {
        format!("static file {}", self.0.display())
    }

    fn is_there(&self) -> bool {
        self.0.symlink_metadata().is_ok()
    }

    async fn look(&self, seams: Seams<'_>) -> Result<Vec<Contact>, SourceError> {
        let path = self.0.clone();
        let read = move || if path.symlink_metadata().is_ok() { read_file(&path) } else { Ok(Vec::new()) };
        blocking(seams.spawner, read).await.unwrap_or_else(|| Ok(Vec::new()))
    }
}

/// A ticket.
pub(super) struct Given(pub(super) Ticket);

#[async_trait]
impl Source for Given {
    fn name(&self) -> String {
        "ticket".to_owned()
    }

    async fn look(&self, _: Seams<'_>) -> Result<Vec<Contact>, SourceError> {
        Ok(vec![self.0.contact()])
    }
}

/// A file that holds tickets.
pub(super) struct TicketFile(pub(super) PathBuf);

#[async_trait]
impl Source for TicketFile {
    fn name(&self) -> String {
        format!("ticket in {}", self.0.display())
    }

    async fn look(&self, seams: Seams<'_>) -> Result<Vec<Contact>, SourceError> {
        let path = self.0.clone();
        blocking(seams.spawner, move || read_ticket_file(&path)).await.unwrap_or_else(|| Ok(Vec::new()))
    }
}

/// The contacts of the tickets in a file, one a line; a registry file is as good.
fn read_ticket_file(path: &Path) -> Result<Vec<Contact>, SourceError> {
    if path == Path::new("-") {
        // What was on standard input is among the tickets.
        return Err(SourceError::NoTicket { path: path.to_owned() });
    }
    let text = read_text(path).map_err(|error| match error {
        SourceError::Unreadable { path, error } if error.kind() == io::ErrorKind::NotFound => {
            SourceError::Missing { path, error }
        }
        other => other,
    })?;
    read_tickets(path, &text)
}

fn read_tickets(path: &Path, text: &str) -> Result<Vec<Contact>, SourceError> {
    if text.trim_start().starts_with(['{', '[']) {
        return Ok(file::parse(&path.display().to_string(), text)?);
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

/// The text of a file of at most [`FILE_BYTES_MAX`]. Blocks on the disk.
pub(crate) fn read_text(path: &Path) -> Result<String, SourceError> {
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
    use std::path::Path;

    use blixard_core::api::token::Secret;
    use blixard_core::discovery::ticket::Ticket;
    use blixard_core::id::{ClusterId, NodeKey, TokenId};
    use blixard_core::wire::Peer;

    use super::read_tickets;

    #[test]
    fn a_file_of_tickets_survives_every_damage() {
        let peer = Peer {
            key: NodeKey([8; 32]),
            addresses: vec!["10.77.0.1:7001".parse().unwrap()],
            relay_url: None,
        };
        let token = Secret { id: TokenId([1; 8]), secret: [2; 32] };
        let ticket = Ticket { cluster: ClusterId([3; 16]), peer, token };
        let member =
            format!(r#"{{"iroh_node_id": "{}", "direct_addresses": ["10.0.0.2:7001"]}}"#, NodeKey([8; 32]));
        let seeds = [format!("# of box1\n{ticket}\n\n  {ticket}\n"), member];
        damage::survives("file of tickets", &seeds.map(String::into_bytes), |input| {
            let contacts = read_tickets(Path::new("tickets"), &String::from_utf8_lossy(input));
            let contacts = contacts.map_err(|error| error.to_string())?;
            assert!(!contacts.is_empty(), "a file that names nobody is refused");
            Ok(())
        });
    }
}
