//! `any_node_answers`: in a settled cluster a published port leads to a ready replica of its service on
//! every machine, also where none runs.
//!
//! Shows a port that is not listened on, one that is not given up, endpoints that are old, and a node
//! that dials what it has not published. Armed by every service that publishes a port, which a third of
//! the clients' do at times.

use std::collections::BTreeMap;
use std::time::Duration;

use blixard_core::cluster::ClusterState;
use blixard_core::id::{ReplicaId, ServiceName};
use blixard_core::readiness::serves;
use blixard_core::spec::Protocol;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::machine::Machine;
use crate::world::World;

/// How long a client waits for its answer: as long as all endpoints together may take, and more.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);

/// Asks every machine on every port.
///
/// # Errors
/// Which machine did not answer, or who answered instead.
pub async fn any_node_answers(world: &World, state: &ClusterState) -> Result<(), String> {
    for (port, name) in published(state) {
        for machine in &world.machines {
            let said = |what: String| format!("machine {}, port {port} of `{name}`: {what}", machine.number);
            let replica = ask(machine, port).await.map_err(said)?;
            let row = state.replicas.get(&replica).filter(|row| row.service == *name && serves(state, row));
            row.ok_or_else(|| said(format!("replica {replica} answers, which is not ready, or another's")))?;
        }
    }
    Ok(())
}

/// The ports that lead to something that is ready, wherever they are asked for.
fn published(state: &ClusterState) -> BTreeMap<u16, &ServiceName> {
    let ready = state.replicas.values().filter(|replica| serves(state, replica));
    let ports = ready.flat_map(|replica| {
        let ports = state.spec_of(replica).into_iter().flat_map(|spec| &spec.ports);
        let led = ports.filter(|port| port.protocol == Protocol::Tcp && port.is_everywhere());
        led.filter_map(|port| Some((port.host_port?, &replica.service)))
    });
    ports.collect()
}

/// Connects to a port of a machine as a client does.
///
/// # Errors
/// Why nobody answered.
pub async fn ask(machine: &Machine, port: u16) -> Result<ReplicaId, String> {
    match machine.containers.connect(port) {
        None => Err("the connection is refused".to_owned()),
        Some(Ok(replica)) => Ok(replica),
        Some(Err(mut stream)) => match timeout(ANSWER_WITHIN, stream.read_u64()).await {
            Ok(Ok(replica)) => Ok(ReplicaId(replica)),
            Ok(Err(error)) => Err(format!("the connection ended: {error}")),
            Err(_) => Err("nobody answers".to_owned()),
        },
    }
}
