//! Nodes that announce themselves on the local network. Anybody can: they are found, never named.

use async_trait::async_trait;
use blixard_core::discovery::announce::Heard;
use blixard_core::discovery::contact::Contact;

use super::Seams;
use super::source::{Source, SourceError};

/// The source.
pub(super) struct Announced;

#[async_trait]
impl Source for Announced {
    fn name(&self) -> String {
        "mdns".to_owned()
    }

    async fn look(&self, seams: Seams<'_>) -> Result<Vec<Contact>, SourceError> {
        let heard = seams.announcer.nodes();
        let heard = heard.map_err(|reason| SourceError::Silent { name: self.name(), reason })?;
        Ok(heard.iter().filter_map(Heard::contact).collect())
    }
}
