//! Which containers' logs are meant.

use std::collections::BTreeMap;

use blixard_core::api::replica::{ReplicaDetail, ReplicaRow};
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
    /// Which of the targets led to it.
    pub(super) target: usize,
    replica: Option<(ReplicaId, u32)>,
}

/// One log: a replica's attempt, or what was named.
pub(super) type Key = (Option<ReplicaId>, u32, String);

impl Source {
    fn named(target: &str) -> Self {
        let name = target.to_owned();
        Self { id: name.clone(), name, before: None, attempt: None, target: 0, replica: None }
    }

    fn of_row(row: &ReplicaRow) -> Option<Self> {
        Some(Self {
            id: row.container_id.as_ref()?.0.clone(),
            name: row.name.clone(),
            before: None,
            attempt: None,
            target: 0,
            replica: Some((row.replica?, row.attempt)),
        })
    }

    /// The same, led to by that target.
    pub(super) fn of_target(mut self, target: usize) -> Self {
        self.target = target;
        self
    }

    /// Whether it was found as one of this service, and is looked for with it again.
    pub(super) fn is_of(&self, service: &ServiceDetail) -> bool {
        let name = self.name.rsplit_once('-').map(|(name, _)| name);
        self.replica.is_some() && name == Some(service.row.name.as_str())
    }

    /// The same, and when `wanted` only the log of its current attempt.
    pub(super) fn exactly(mut self, wanted: bool) -> Self {
        self.attempt = self.replica.filter(|_| wanted).map(|(_, attempt)| attempt);
        self
    }

    /// The same, and only the log that was answered: of which container, and of which attempt if that is
    /// known. The container before it is no replica that is looked for again.
    pub(super) fn answered(self, id: String, attempt: Option<u32>) -> Self {
        let replica = self.replica.filter(|_| id == self.id);
        Self { id, before: None, attempt: attempt.or(self.attempt), replica, ..self }
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
    let unknown = match service(client, name).await {
        Ok(Some(detail)) => {
            ended.retain(|row| row.service == detail.row.name);
            return Ok(Target::Service(Box::new(detail), ended));
        }
        Ok(None) => None,
        Err(error) if failure::cause(&error).is_some_and(Cause::may_be_no_service) => Some(error),
        Err(error) => return Err(error),
    };
    let gone: Vec<ReplicaRow> = ended.iter().filter(|row| row.service.as_str() == name).cloned().collect();
    if !gone.is_empty() {
        return Ok(Target::Gone(gone));
    }
    // One that cannot be asked for is told of when its log is.
    let own = client.get::<ReplicaDetail>(&format!("/v1/replicas/{}", segment(name))).await.ok();
    let own = own.map(|detail| detail.row);
    if let Some(error) = unknown.filter(|_| own.is_none()) {
        return Err(error);
    }
    Ok(Target::Container(Source { before: before(&ended, name, own.as_ref()), ..Source::named(name) }))
}

impl Target {
    /// The containers to read.
    pub(super) fn sources(&self) -> Vec<Source> {
        match self {
            Self::Service(detail, ended) => {
                let mut sources = started(detail);
                let read: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
                let missing = newest_of_slots(ended).into_values();
                let missing = missing.filter(|row| row.slot < detail.row.max && !read.contains(&row.name));
                sources.extend(missing.filter_map(Source::of_row));
                with_those_before(sources, ended)
            }
            Self::Gone(ended) => {
                let newest = newest_of_slots(ended).into_values();
                with_those_before(newest.filter_map(Source::of_row).collect(), ended)
            }
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

/// Each source with the one before it, if that is among those that `ended`, the last first.
fn with_those_before(mut sources: Vec<Source>, ended: &[ReplicaRow]) -> Vec<Source> {
    for source in &mut sources {
        source.before = last_before(ended, &source.name, source.replica.map(|(replica, _)| replica));
    }
    sources
}

/// The container that was before the one that is named: of another replica of the same place, since
/// earlier attempts are asked for as such.
fn before(ended: &[ReplicaRow], name: &str, own: Option<&ReplicaRow>) -> Option<String> {
    match own {
        Some(own) => last_before(ended, &own.name, own.replica),
        None => last_before(ended, name, None),
    }
}

fn last_before(ended: &[ReplicaRow], name: &str, replica: Option<ReplicaId>) -> Option<String> {
    let is_before = |row: &&ReplicaRow| row.name == name && replica.is_none_or(|own| row.replica < Some(own));
    ended.iter().find(is_before).and_then(|row| row.container_id.as_ref()).map(|id| id.0.clone())
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

/// Whether the container of that log is one of the service's and has not ended.
pub(super) fn goes_on(service: &ServiceDetail, key: &Key) -> bool {
    let runs = |row: &&ReplicaRow| !row.phase.is_some_and(Phase::is_final);
    let mut running = service.replicas.iter().filter(runs).filter_map(Source::of_row);
    running.any(|source| source.key(None) == *key)
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

#[cfg(test)]
mod tests {
    use blixard_core::api::replica::ReplicaRow;

    use super::{Source, before, newest_of_slots, with_those_before};

    fn row(slot: u32, replica: u64, attempt: u32) -> ReplicaRow {
        serde_json::from_value(serde_json::json!({
            "container_id": format!("{replica:08x}{attempt:08x}"), "name": format!("web-{slot}"),
            "replica": replica, "service": "web", "slot": slot, "version": 2, "node": 3, "node_name": "box3",
            "image": "nginx:1", "phase": "gone", "desired": null, "ready": false, "healthy": null,
            "lost": false, "attempt": attempt, "exit_code": 1, "message": "", "since": 1, "created_at": 1,
            "address": null, "node_address": null, "ports": []
        }))
        .unwrap()
    }

    #[test]
    fn the_container_before_is_another_replica_of_the_same_place() {
        let ended = [row(0, 9, 1), row(0, 9, 0), row(1, 8, 0), row(0, 7, 2), row(0, 7, 1)];
        let id = |replica: u64, attempt: u32| Some(format!("{replica:08x}{attempt:08x}"));
        // One that runs, and one that is the newest of what is gone.
        assert_eq!(before(&ended, "web-0", Some(&row(0, 12, 0))), id(9, 1));
        assert_eq!(before(&ended, "web-0", Some(&row(0, 9, 2))), id(7, 2));
        assert_eq!(before(&ended, "00000009", Some(&row(0, 9, 1))), id(7, 2));
        assert_eq!(before(&ended, "web-1", Some(&row(1, 8, 0))), None);
        assert_eq!(before(&ended, "web-1", None), id(8, 0));
        let newest = newest_of_slots(&ended).into_values().filter_map(Source::of_row).collect();
        let found: Vec<_> =
            with_those_before(newest, &ended).into_iter().map(|source| (source.id, source.before)).collect();
        assert_eq!(found, [(id(9, 1).unwrap(), id(7, 2)), (id(8, 0).unwrap(), None)]);
    }
}
