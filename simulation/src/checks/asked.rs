//! `what_runs_was_asked`: a container is started, and runs, as the version that its replica is of
//! asks for: image, command, environment, limits, mounts and all; in its replica's slot, on its node.
//!
//! Known from two sides: what the state had of a replica when it was placed, and what a client
//! submitted under a mark. Shows a container that runs another version than its replica, a
//! specification that lost something on its way, and a start on a node that is another's.

use std::collections::BTreeMap;
use std::sync::Arc;

use blixard_core::cluster::ClusterState;
use blixard_core::id::{NodeId, ReplicaId, ServiceName};
use blixard_core::spec::{ImageSpec, ServiceSpec};
use blixard_node::platform::ContainerConfig;

use crate::containers::digest_of;
use crate::world::World;

/// The environment variable that tells one submission from all others.
pub(crate) const MARK: &str = "MARK";

/// What a replica is to run, as the state had it when the replica was placed.
struct Row {
    service: ServiceName,
    slot: u32,
    version: u64,
    node: NodeId,
    spec: Arc<ServiceSpec>,
}

/// What was asked for.
#[derive(Default)]
pub(super) struct Asked {
    rows: BTreeMap<ReplicaId, Row>,
    /// The first replica that no state seen has placed.
    next: u64,
    submitted: BTreeMap<String, ServiceSpec>,
}

impl Asked {
    /// A client submits a specification.
    pub(super) fn submitted(&mut self, spec: ServiceSpec) {
        if let Some(mark) = spec.environment.get(MARK) {
            self.submitted.insert(mark.clone(), spec);
        }
    }

    /// A state was published.
    pub(super) fn seen(&mut self, state: &ClusterState) {
        for (id, row) in state.replicas.range(ReplicaId(self.next)..) {
            let Some(spec) = state.spec_of(row).cloned() else { continue };
            let (service, slot, version, node) = (row.service.clone(), row.slot, row.version, row.node);
            self.rows.insert(*id, Row { service, slot, version, node, spec });
        }
        self.next = self.next.max(state.next_replica.0);
    }

    /// Checks a container that a node starts.
    pub(super) fn started(&self, node: Option<NodeId>, config: &ContainerConfig) -> Result<(), String> {
        let container = format!("attempt {} of replica {}", config.attempt, config.replica);
        self.is_as_submitted(&config.spec).map_err(|detail| format!("{container}: {detail}"))?;
        // A state that nobody published may have placed it.
        let Some(row) = self.rows.get(&config.replica) else { return Ok(()) };
        if config.slot != row.slot || node != Some(row.node) {
            return Err(format!(
                "{container} was started in slot {} on node {node:?}, asked was slot {} on node {}",
                config.slot, row.slot, row.node
            ));
        }
        if is_same(&config.spec, &row.spec) && config.version == row.version {
            return Ok(());
        }
        Err(format!(
            "{container} is of version {} of `{}`, {:?}, and was started as {:?}",
            row.version, row.service, row.spec, config.spec
        ))
    }

    fn is_as_submitted(&self, spec: &ServiceSpec) -> Result<(), String> {
        let submitted = spec.environment.get(MARK).and_then(|mark| self.submitted.get(mark));
        let Some(submitted) = submitted else { return Ok(()) };
        let digest = spec.image.digest.clone();
        if digest.as_ref().is_some_and(|digest| *digest != digest_of(&spec.image.reference)) {
            return Err(format!("{digest:?} is no digest of {}", spec.image.reference));
        }
        let image = ImageSpec { digest, ..submitted.image.clone() };
        let submitted = ServiceSpec { image, ..submitted.clone() };
        // Submitted below the second feature level, or from it on.
        if is_same(spec, &submitted) || is_same(spec, &submitted.clone().completed()) {
            return Ok(());
        }
        Err(format!("{submitted:?} was submitted, {spec:?} runs"))
    }
}

/// Whether two specifications make one container: bounds may be changed without a new version.
fn is_same(a: &ServiceSpec, b: &ServiceSpec) -> bool {
    a == b || a.differs_in_replicas_only(b)
}

/// Checks, in a world that has settled, that what runs is what the state asks for.
///
/// # Errors
/// The first container that is of another version than its replica.
pub(super) fn runs(world: &World, state: &ClusterState) -> Result<(), String> {
    for machine in &world.machines {
        for (replica, attempt, spec) in machine.containers.specs() {
            let asked = state.replicas.get(&replica).and_then(|row| state.spec_of(row));
            if asked.is_some_and(|asked| !is_same(asked, &spec)) {
                return Err(format!(
                    "attempt {attempt} of replica {replica} runs as {spec:?}, asked was {asked:?}"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use blixard_core::spec::ReplicaBounds;
    use serde_json::json;

    use super::*;

    fn spec(mark: &str, command: &str) -> ServiceSpec {
        serde_json::from_value(json!({
            "name": "web",
            "image": {"reference": "app", "command": [command]},
            "environment": {MARK: mark},
        }))
        .expect("it is a specification")
    }

    #[test]
    fn only_what_was_submitted_under_its_mark_may_run() {
        let mut asked = Asked::default();
        asked.submitted(spec("one", "run"));
        let check = |spec: ServiceSpec| {
            let spec = Arc::new(spec);
            let config = ContainerConfig {
                replica: ReplicaId(1),
                attempt: 0,
                slot: 0,
                version: 1,
                spec,
                volumes: Default::default(),
            };
            asked.started(Some(NodeId(1)), &config).is_ok()
        };
        assert!(check(spec("one", "run")));
        assert!(check(ServiceSpec { replicas: ReplicaBounds { min: 2, max: 3 }, ..spec("one", "run") }));
        assert!(check(spec("never submitted", "other")));
        assert!(!check(spec("one", "other")));
        assert!(!check(ServiceSpec { stop_timeout_s: 1, ..spec("one", "run") }));
        let image = |digest: String| ImageSpec { digest: Some(digest), ..spec("one", "run").image };
        assert!(check(ServiceSpec { image: image(digest_of("app")), ..spec("one", "run") }));
        assert!(!check(ServiceSpec { image: image(digest_of("other")), ..spec("one", "run") }));
    }
}
