//! Which containers' logs are meant.

use std::collections::BTreeMap;

use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::service::ServiceDetail;
use blixard_core::cluster::Phase;
use blixard_core::id::ReplicaId;
use http::StatusCode;

use crate::client::{Client, segment};
use crate::commands::ps::ended;
use crate::failure::{self, Cause};

/// A container whose log is read.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// How the API is asked for it.
    pub(super) id: String,
    /// How it is shown.
    pub(super) name: String,
    /// The container before it in its slot, for when it has written nothing that could be read.
    pub(super) before: Option<String>,
    /// The only attempt that is meant.
    pub(super) attempt: Option<u32>,
    replica: Option<(ReplicaId, u32)>,
}

/// One log: a replica's attempt, or what was named.
pub(super) type Key = (Option<ReplicaId>, u32, String);

impl Source {
    fn named(target: &str) -> Self {
        let name = target.to_owned();
        Self { id: name.clone(), name, before: None, attempt: None, replica: None }
    }

    fn of_row(row: &ReplicaRow) -> Option<Self> {
        Some(Self {
            id: row.container_id.as_ref()?.0.clone(),
            name: row.name.clone(),
            before: None,
            attempt: None,
            replica: Some((row.replica?, row.attempt)),
        })
    }

    /// The same, and when `wanted` only the log of its current attempt.
    pub(super) fn exactly(mut self, wanted: bool) -> Self {
        self.attempt = self.replica.filter(|_| wanted).map(|(_, attempt)| attempt);
        self
    }

    /// Names the log, of the `attempt` that was answered if that is known.
    pub(super) fn key(&self, answered: Option<u32>) -> Key {
        match self.replica {
            Some((replica, attempt)) => (Some(replica), answered.unwrap_or(attempt), String::new()),
            None => (None, 0, self.id.clone()),
        }
    }
}

/// What a user named.
pub(super) enum Target {
    /// A service, and its containers that are gone.
    Service(Box<ServiceDetail>, Vec<ReplicaRow>),
    /// A service that is gone itself, by its containers.
    Gone(Vec<ReplicaRow>),
    /// One container.
    Container(Source),
}

/// Finds out what `name` is.
///
/// # Errors
/// When the node does not answer.
pub(super) async fn resolve(client: &Client, name: &str) -> anyhow::Result<Target> {
    let mut ended = ended(client).await?;
    if let Some(detail) = service(client, name).await? {
        ended.retain(|row| row.service == detail.row.name);
        return Ok(Target::Service(Box::new(detail), ended));
    }
    let gone: Vec<ReplicaRow> = ended.iter().filter(|row| row.service.as_str() == name).cloned().collect();
    if !gone.is_empty() {
        return Ok(Target::Gone(gone));
    }
    let before = ended.iter().find(|row| row.name == name).and_then(|row| row.container_id.as_ref());
    Ok(Target::Container(Source { before: before.map(|id| id.0.clone()), ..Source::named(name) }))
}

impl Target {
    /// The containers to read.
    pub(super) fn sources(&self) -> Vec<Source> {
        match self {
            Self::Service(detail, ended) => {
                let mut sources = started(detail);
                let newest = newest_of_slots(ended);
                for source in &mut sources {
                    let row = newest
                        .values()
                        .find(|row| row.name == source.name && row.replica < source.replica.map(|own| own.0));
                    source.before = row.and_then(|row| row.container_id.as_ref()).map(|id| id.0.clone());
                }
                let read: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
                let missing =
                    newest.into_values().filter(|row| row.slot < detail.row.max && !read.contains(&row.name));
                sources.extend(missing.filter_map(Source::of_row));
                sources
            }
            Self::Gone(ended) => newest_of_slots(ended).into_values().filter_map(Source::of_row).collect(),
            Self::Container(source) => vec![source.clone()],
        }
    }

    /// The service, when it is one.
    pub(super) fn into_service(self) -> Option<ServiceDetail> {
        match self {
            Self::Service(detail, _) => Some(*detail),
            Self::Gone(_) | Self::Container(_) => None,
        }
    }
}

/// The container that ended last, of each slot. The rows have the last first.
fn newest_of_slots(ended: &[ReplicaRow]) -> BTreeMap<u32, &ReplicaRow> {
    let mut newest = BTreeMap::new();
    for row in ended {
        newest.entry(row.slot).or_insert(row);
    }
    newest
}

/// The containers of a service that have started.
pub(super) fn started(service: &ServiceDetail) -> Vec<Source> {
    let started = |row: &&ReplicaRow| {
        row.attempt > 0 || row.phase.is_some_and(|phase| phase > Phase::Pulling && phase != Phase::Gone)
    };
    service.replicas.iter().filter(started).filter_map(Source::of_row).collect()
}

/// Whether no container of the service runs or is to come.
pub(super) fn is_over(service: &ServiceDetail) -> bool {
    let ended = |row: &ReplicaRow| row.phase.is_some_and(Phase::is_final);
    service.pending.is_empty() && service.replicas.iter().all(ended)
}

/// The service of that name, if there is one.
///
/// # Errors
/// When the node does not answer.
pub(super) async fn service(client: &Client, name: &str) -> anyhow::Result<Option<ServiceDetail>> {
    match client.get::<ServiceDetail>(&format!("/v1/services/{}", segment(name))).await {
        Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => Ok(None),
        answer => answer.map(Some),
    }
}
