//! `/v1/discovery` and `/v1/links`: what this node knows of others by its sources, and its links to members.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use blixard_core::api::List;
use blixard_core::api::discovery::{ContactView, DiscoveryView, LinkState, LinkView, SourceView};
use blixard_core::cluster::ClusterState;
use blixard_core::discovery::contact::Contact;
use blixard_core::id::{NodeId, NodeKey};

use super::context::Api;
use crate::discovery::finder::Report;
use crate::platform::Link;

/// Every source of the node that answers, and what it said last; asks nobody.
#[utoipa::path(get, path = "/v1/discovery", responses((status = 200, description = "The sources", body = DiscoveryView)))]
pub(super) async fn sources(State(api): State<Api>) -> Json<DiscoveryView> {
    let state = api.handle.state();
    let keys = keys(&state);
    let sources = api.handle.sources().into_iter().map(|report| source(report, &keys)).collect();
    Json(DiscoveryView { node: api.handle.id, cluster: api.handle.cluster, sources })
}

/// The link to every other member, as the node that answers has it; asks nobody.
#[utoipa::path(get, path = "/v1/links", responses((status = 200, description = "The links", body = List<LinkView>)))]
pub(super) async fn links(State(api): State<Api>) -> Json<List<LinkView>> {
    let state = api.handle.state();
    let links = api.handle.platform.transport.links();
    let items = view(&state, api.handle.id, links, &api.handle.sources());
    Json(List { items, stale: false })
}

fn keys(state: &ClusterState) -> BTreeMap<NodeKey, NodeId> {
    state.nodes.iter().map(|(id, node)| (node.key, *id)).collect()
}

fn source(report: Report, members: &BTreeMap<NodeKey, NodeId>) -> SourceView {
    let contact = |contact: Contact| ContactView {
        key: contact.key,
        node: contact.node,
        cluster: contact.cluster,
        addresses: contact.addresses.iter().map(ToString::to_string).collect(),
        named: contact.named,
        member: members.get(&contact.key).copied(),
    };
    let Report { name, contacts, problem, looked_at, failures } = report;
    SourceView { name, looked_at, problem, failures, contacts: contacts.into_iter().map(contact).collect() }
}

fn view(
    state: &ClusterState,
    own: NodeId,
    mut links: BTreeMap<NodeId, Link>,
    reports: &[Report],
) -> Vec<LinkView> {
    let others = state.nodes.iter().filter(|(id, _)| **id != own);
    let view = |(id, node): (&NodeId, &blixard_core::cluster::Node)| {
        let names = |report: &&Report| report.contacts.iter().any(|contact| contact.key == node.key);
        let link = links.remove(id).unwrap_or_default();
        LinkView {
            id: *id,
            name: node.facts.name.clone(),
            key: node.key,
            state: link.state.unwrap_or(LinkState::Connecting),
            address: link.address.map(|address| address.to_string()),
            rtt_us: link.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            failures: link.failures,
            error: link.error,
            addresses: link.addresses.iter().map(ToString::to_string).collect(),
            sources: reports.iter().filter(names).map(|report| report.name.clone()).collect(),
        }
    };
    others.map(view).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use blixard_core::api::discovery::LinkState;
    use blixard_core::cluster::NodeStatus;
    use blixard_core::discovery::contact::Contact;
    use blixard_core::id::{NodeId, NodeKey};

    use super::{keys, source, view};
    use crate::api::views::fixture::{add_node, state};
    use crate::discovery::finder::Report;
    use crate::platform::Link;

    #[test]
    fn sources_and_links_are_told_by_member() {
        let mut state = state();
        add_node(&mut state, 2, NodeStatus::Up);
        add_node(&mut state, 3, NodeStatus::Up);
        let contact = |key: u8| Contact {
            key: NodeKey([key; 32]),
            node: None,
            addresses: vec!["10.0.0.9:7001".parse().unwrap()],
            relay_url: None,
            cluster: None,
            token: None,
            seen_at: None,
            named: false,
        };
        let report = Report {
            name: "file x".to_owned(),
            contacts: vec![contact(2), contact(9)],
            problem: None,
            looked_at: None,
            failures: 0,
        };
        let shown = source(report.clone(), &keys(&state));
        let members: Vec<_> = shown.contacts.iter().map(|contact| contact.member).collect();
        assert_eq!(members, [Some(NodeId(2)), None]);

        let up = Link {
            state: Some(LinkState::Connected),
            rtt: Some(Duration::from_millis(2)),
            ..Link::default()
        };
        let links = view(&state, NodeId(1), BTreeMap::from([(NodeId(2), up)]), &[report]);
        let told: Vec<_> =
            links.iter().map(|link| (link.id.0, link.state, link.rtt_us, link.sources.len())).collect();
        assert_eq!(told, [(2, LinkState::Connected, Some(2000), 1), (3, LinkState::Connecting, None, 0)]);
    }
}
