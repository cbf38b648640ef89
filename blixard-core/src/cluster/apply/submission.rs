//! What a submitted specification must satisfy. The bundle reader checks most of this with line
//! and column; here it is checked again, with what only the state knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::bundle::{self, SpecFault};
use crate::cluster::index::claims;
use crate::cluster::level::SECOND_LEVEL;
use crate::cluster::snapshot::encoded_len;
use crate::cluster::{ClusterState, Refusal};
use crate::id::{NodeId, ServiceName};
use crate::limits::{REPLICAS_PER_SERVICE_MAX, SERVICES_MAX, SPEC_BYTES_MAX};
use crate::spec::{NetworkMode, ServiceSpec, is_host_address};

impl ClusterState {
    /// A submitted specification as it is stored: since the second feature level with the defaults
    /// written out that services of before go on without. The same one where nothing is missing.
    pub fn completed(&self, spec: &Arc<ServiceSpec>) -> Arc<ServiceSpec> {
        if !self.knows(SECOND_LEVEL) || spec.is_complete() {
            return Arc::clone(spec);
        }
        Arc::new(spec.as_ref().clone().completed())
    }
}

/// Checks that `spec`, submitted on `origin`, may become a version of its service.
///
/// # Errors
/// The first reason why not.
pub(super) fn check(state: &ClusterState, spec: &ServiceSpec, origin: NodeId) -> Result<(), Refusal> {
    let bytes = encoded_len(spec);
    check_bounds(state, spec, bytes)?;
    check_ports(state, spec)?;
    check_origin(state, spec, origin)?;
    state.check_volumes(spec)?;
    check_cycle(state, spec)?;
    check_spec(state, spec, bytes)
}

/// Refuses what the bundle reader would, once every member does. What is stored already stays, and may be
/// rolled back to.
fn check_spec(state: &ClusterState, spec: &ServiceSpec, bytes: usize) -> Result<(), Refusal> {
    if !state.knows(SECOND_LEVEL) {
        return Ok(());
    }
    let stored = || state.services.get(&spec.name).is_some_and(|service| service.has_had(spec));
    match reason(spec, bundle::check_of(spec, bytes)) {
        Some(reason) if !stored() => Err(Refusal::out_of_bounds(reason)),
        _ => Ok(()),
    }
}

/// Why no service may ask for `spec`.
pub(super) fn invalid(spec: &ServiceSpec) -> Option<String> {
    reason(spec, bundle::check(spec))
}

fn reason(spec: &ServiceSpec, faults: Vec<SpecFault>) -> Option<String> {
    let reasons: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
    (!reasons.is_empty())
        .then(|| format!("the specification of `{}` is not valid: {}", spec.name, reasons.join("; ")))
}

fn check_bounds(state: &ClusterState, spec: &ServiceSpec, bytes: usize) -> Result<(), Refusal> {
    let (name, bounds) = (&spec.name, spec.replicas);
    if !state.services.contains_key(name) && state.services.len() >= SERVICES_MAX {
        return Err(Refusal::out_of_bounds(format!("a cluster has at most {SERVICES_MAX} services")));
    }
    if bounds.min < 1 || bounds.min > bounds.max || bounds.max > REPLICAS_PER_SERVICE_MAX {
        return Err(Refusal::out_of_bounds(format!(
            "`{name}` asks for {} to {} replicas: it takes 1 <= min <= max <= {REPLICAS_PER_SERVICE_MAX}",
            bounds.min, bounds.max
        )));
    }
    if bytes > SPEC_BYTES_MAX {
        return Err(Refusal::out_of_bounds(format!(
            "the specification of `{name}` takes {bytes} bytes, at most {SPEC_BYTES_MAX} are stored"
        )));
    }
    Ok(())
}

fn check_ports(state: &ClusterState, spec: &ServiceSpec) -> Result<(), Refusal> {
    let name = &spec.name;
    if spec.ports.iter().any(|port| port.container_port == 0 || port.host_port == Some(0)) {
        return Err(Refusal::out_of_bounds(format!("`{name}` asks for port 0: ports are 1 to 65535")));
    }
    for port in &spec.ports {
        let Some(address) = port.host_ip else { continue };
        if port.host_port.is_none() || spec.network == NetworkMode::Host || !is_host_address(address) {
            return Err(Refusal::out_of_bounds(format!(
                "`{name}` publishes a port on {address}: that takes a host_port, `network: bridge`, and an \
                 address that one host has"
            )));
        }
    }
    let mut seen = BTreeSet::new();
    for (port, protocol) in claims(spec) {
        if !seen.insert((port, protocol)) {
            return Err(Refusal::conflict(format!("`{name}` publishes port {port}/{protocol} twice")));
        }
        if let Some(holder) = state.port_claim(port, protocol).filter(|holder| *holder != name) {
            return Err(Refusal::conflict(format!(
                "port {port}/{protocol} belongs to service `{holder}`: choose another host_port for `{name}`, or remove `{holder}`"
            )));
        }
        let reserved = state.nodes.iter().find(|(_, node)| node.facts.reserved_ports.contains(&port));
        if let Some((id, node)) = reserved {
            return Err(Refusal::conflict(format!(
                "port {port} is in use on node {id} ({}) by something else: choose another host_port for `{name}`",
                node.facts.name
            )));
        }
    }
    Ok(())
}

fn check_origin(state: &ClusterState, spec: &ServiceSpec, origin: NodeId) -> Result<(), Refusal> {
    if spec.is_pinned() && !state.nodes.contains_key(&origin) {
        return Err(Refusal::not_found("node", origin));
    }
    Ok(())
}

/// Refuses a service that waits for itself. A name that no service has yet is no fault: the
/// services of a bundle arrive one by one.
fn check_cycle(state: &ClusterState, spec: &ServiceSpec) -> Result<(), Refusal> {
    let mut reached_from: BTreeMap<&ServiceName, &ServiceName> = BTreeMap::new();
    let mut open: Vec<(&ServiceName, &ServiceName)> =
        spec.depends_on.iter().map(|needed| (needed, &spec.name)).collect();
    while let Some((name, from)) = open.pop() {
        if *name == spec.name {
            return Err(cycle(&spec.name, from, &reached_from));
        }
        if reached_from.contains_key(name) {
            continue;
        }
        reached_from.insert(name, from);
        if let Some(service) = state.services.get(name) {
            open.extend(service.spec().depends_on.iter().map(|needed| (needed, name)));
        }
    }
    Ok(())
}

fn cycle(
    name: &ServiceName,
    last: &ServiceName,
    reached_from: &BTreeMap<&ServiceName, &ServiceName>,
) -> Refusal {
    let mut path = vec![name.as_str()];
    let mut at = last;
    while at != name {
        path.push(at.as_str());
        match reached_from.get(at) {
            Some(from) => at = from,
            None => break,
        }
    }
    path.push(name.as_str());
    path.reverse();
    Refusal::conflict(format!("`{name}` would wait for itself: depends_on leads {}", path.join(" -> ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::level::FIRST_LEVEL;
    use crate::cluster::testing::{
        Cluster, assert_refused, facts, marked, name, needing, publishing, spec, with_volume,
    };
    use crate::cluster::{Command, Write};
    use crate::spec::{PortSpec, Protocol};

    fn check(spec: ServiceSpec, expect: Result<(), &str>) {
        let mut cluster = Cluster::of(2);
        cluster.submit(publishing(spec_of_web(), &[80, 81]));
        let before = cluster.state.services.clone();
        let outcome = cluster.submit(spec);
        match expect {
            Ok(()) => assert!(matches!(outcome, crate::cluster::Outcome::Service { .. }), "{outcome:?}"),
            Err(part) => {
                assert_refused(outcome, part);
                assert_eq!(cluster.state.services, before);
            }
        }
    }

    fn spec_of_web() -> ServiceSpec {
        spec("web", 1, 3)
    }

    #[test]
    fn replicas_are_bounded() {
        check(spec("api", 1, 1_000), Ok(()));
        check(spec("api", 0, 3), Err("`api` asks for 0 to 3 replicas"));
        check(spec("api", 4, 3), Err("`api` asks for 4 to 3 replicas"));
        check(spec("api", 1, 1_001), Err("max <= 1000"));
    }

    #[test]
    fn a_port_belongs_to_one_service() {
        let api = || spec("api", 1, 1);
        check(publishing(api(), &[82, 8080]), Ok(()));
        check(publishing(api(), &[82, 81]), Err("port 81/tcp belongs to service `web`"));
        check(publishing(api(), &[82, 82]), Err("publishes port 82/tcp twice"));
        check(publishing(api(), &[22]), Err("port 22 is in use on node 1 (one)"));
        check(publishing(api(), &[0]), Err("port 0"));
        check(publishing(spec_of_web(), &[81, 83]), Ok(()));
        let port = PortSpec {
            container_port: 80,
            host_port: None,
            protocol: Protocol::Tcp,
            host_ip: None,
            publish: Default::default(),
        };
        check(ServiceSpec { ports: vec![port.clone()], ..api() }, Ok(()));
        let host = NetworkMode::Host;
        check(
            ServiceSpec { ports: vec![port.clone()], network: host, ..api() },
            Err("belongs to service `web`"),
        );
        check(
            ServiceSpec {
                ports: vec![PortSpec { protocol: Protocol::Udp, ..port.clone() }],
                network: host,
                ..api()
            },
            Ok(()),
        );
        let on = |address: [u8; 4], host_port, network| {
            let port = PortSpec { host_port, host_ip: Some(address.into()), ..port.clone() };
            ServiceSpec { ports: vec![port], network, ..api() }
        };
        let bridge = NetworkMode::Bridge;
        check(on([127, 0, 0, 1], Some(82), bridge), Ok(()));
        check(on([127, 0, 0, 1], Some(81), bridge), Err("port 81/tcp belongs to service `web`"));
        check(on([127, 0, 0, 1], None, bridge), Err("that takes a host_port"));
        check(on([127, 0, 0, 1], Some(80), host), Err("`network: bridge`"));
        check(on([0, 0, 0, 0], Some(82), bridge), Err("an address that one host has"));
        check(on([224, 0, 0, 1], Some(82), bridge), Err("an address that one host has"));
    }

    #[test]
    fn a_specification_is_bounded_in_bytes() {
        let mut large = spec("api", 1, 1);
        large.environment.insert("A".to_owned(), "x".repeat(SPEC_BYTES_MAX - 1_024));
        check(large.clone(), Ok(()));
        large.environment.insert("B".to_owned(), "x".repeat(1_024));
        check(large, Err("at most 262144 are stored"));
    }

    #[test]
    fn what_no_bundle_says_is_refused_once_every_member_does() {
        let odd = || {
            let mut odd = with_volume(spec("odd", 1, 1));
            odd.volumes[0].source = "relative/../../etc".to_owned();
            ServiceSpec { stop_timeout_s: u32::MAX, ..odd }
        };
        let mut cluster = Cluster::of_level(2, FIRST_LEVEL);
        cluster.submit(odd());
        cluster.submit(spec("plain", 1, 1));
        for node in [1, 2] {
            cluster.command(Command::Facts { node: NodeId(node), facts: facts("new") });
        }
        cluster.command(Command::Level { level: SECOND_LEVEL });
        let told = cluster.events().join("\n");
        assert!(told.contains("odd runs on, but would be refused now"), "{told}");
        assert!(!told.contains("plain"), "{told}");

        // It stays, and can be changed back to; only what is new is refused.
        let odd = |mark| marked(mark, odd());
        assert_refused(cluster.submit(odd(1)), "`volumes[0].source` is `relative/../../etc`");
        assert_refused(cluster.submit(odd(1)), "`stop_timeout` takes a whole number from 1 to 3600");
        assert_eq!(cluster.state.services[&name("odd")].current().version, 1);
        cluster.submit(spec("odd", 1, 1));
        let back = cluster.write(Write::Rollback { service: name("odd"), version: Some(1) });
        assert_eq!(back, crate::cluster::Outcome::Service { version: 3, changed: true });
    }

    #[test]
    fn defaults_are_written_out_since_the_second_feature_level() {
        let check = |level: u16, pids: Option<i64>, expect: (Option<i64>, bool)| {
            let mut cluster = Cluster::of_level(1, level);
            let mut db = with_volume(spec("db", 1, 1));
            db.limits.pids = pids;
            cluster.submit(db.clone());
            let stored = cluster.state.services[&db.name].spec();
            assert_eq!((stored.limits.pids, stored.volumes[0].checked), expect, "{level} {pids:?}");
            let again = cluster.submit(db);
            assert_eq!(again, crate::cluster::Outcome::Service { version: 1, changed: false });
        };
        check(FIRST_LEVEL, None, (None, false));
        check(FIRST_LEVEL, Some(7), (Some(7), false));
        check(SECOND_LEVEL, None, (Some(4_096), true));
        check(SECOND_LEVEL, Some(7), (Some(7), true));
        check(SECOND_LEVEL, Some(-1), (Some(-1), true));
    }

    #[test]
    fn host_volumes_are_on_a_member() {
        let mut cluster = Cluster::of(2);
        assert_refused(cluster.submit_on(3, with_volume(spec("db", 1, 1))), "no node `3`");
        cluster.submit_on(2, with_volume(spec("db", 1, 1)));
    }

    #[test]
    fn no_service_waits_for_itself() {
        let mut cluster = Cluster::of(1);
        assert_refused(cluster.submit(needing(spec("a", 1, 1), &["a"])), "depends_on leads a -> a");
        cluster.submit(needing(spec("a", 1, 1), &["z", "b"]));
        cluster.submit(needing(spec("b", 1, 1), &["c"]));
        assert_refused(cluster.submit(needing(spec("c", 1, 1), &["d", "a"])), "leads c -> a -> b -> c");
        let outcome = cluster.submit(needing(spec("c", 1, 1), &["d", "z"]));
        assert_eq!(outcome, crate::cluster::Outcome::Service { version: 1, changed: true });
    }
}
