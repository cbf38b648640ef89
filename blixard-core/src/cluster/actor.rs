//! Who makes a write, and what they may do.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::event::EventId;
use super::node::{Token, TokenScope};
use super::{ClusterState, Refusal, Write};
use crate::id::{NodeId, ServiceName, TokenId};
use crate::spec::ServiceSpec;
use crate::text::printable;
use crate::time::UtcMs;

/// Who made a write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Actor {
    /// Whoever holds a token.
    Token {
        /// Its public half.
        #[schema(value_type = String)]
        id: TokenId,
    },
    /// A user of a node's machine, over the node's Unix socket.
    User {
        /// By number, as the kernel tells it.
        uid: u32,
        /// By name, where that node knows one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Where.
        node: NodeId,
    },
    /// A member itself.
    Node {
        /// Which.
        node: NodeId,
    },
}

impl Actor {
    /// The same as the member `from` may say it: what happens on a node's socket, only that node tells.
    #[must_use]
    pub fn told_by(self, from: NodeId) -> Self {
        match self {
            Self::Token { .. } => self,
            Self::User { uid, name, node: _ } => Self::User { uid, name, node: from },
            Self::Node { node: _ } => Self::Node { node: from },
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { id } => write!(f, "token {id}"),
            Self::User { uid, name: Some(name), node } => {
                write!(f, "{} (uid {uid}) on node {node}", printable(name))
            }
            Self::User { uid, name: None, node } => write!(f, "uid {uid} on node {node}"),
            Self::Node { node } => write!(f, "node {node}"),
        }
    }
}

/// A write as it is kept for whoever asks later who did what. Of the second feature level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Its place in the log: the entry, and its number among the writes of that entry.
    #[schema(inline)]
    pub id: EventId,
    /// Its log time.
    pub at: UtcMs,
    /// Who made it; absent: the leader by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// What was asked for, for people.
    pub what: String,
    /// Why it was refused; absent: it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// What a caller may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// See everything but tokens.
    Read,
    /// Change services, their containers and images.
    Write,
    /// Change members and tokens.
    Admin,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

impl Token {
    /// What its holder may do over the API; nothing with one that admits members.
    pub fn right(&self) -> Option<Right> {
        match self.scope {
            TokenScope::Join => None,
            TokenScope::Read => Some(Right::Read),
            TokenScope::Write => Some(Right::Write),
            TokenScope::Api | TokenScope::Admin => Some(Right::Admin),
        }
    }

    /// Whether its holder may see and change a service, as far as its scope goes.
    pub fn covers(&self, service: &ServiceName) -> bool {
        self.services.as_deref().is_none_or(|prefix| service.as_str().starts_with(prefix))
    }
}

impl Write {
    /// What making it takes.
    pub fn needs(&self) -> Right {
        match self {
            Self::Submit { .. }
            | Self::Scale { .. }
            | Self::Stop { .. }
            | Self::Start { .. }
            | Self::Remove { .. }
            | Self::Rollback { .. }
            | Self::StopReplica { .. }
            | Self::Replace { .. }
            | Self::RemoveVolume { .. } => Right::Write,
            Self::SetAvailability { .. }
            | Self::StopNode { .. }
            | Self::RemoveNode { .. }
            | Self::AddToken { .. }
            | Self::RemoveToken { .. } => Right::Admin,
        }
    }

    /// The service it changes.
    pub fn service<'a>(&'a self, state: &'a ClusterState) -> Option<&'a ServiceName> {
        match self {
            Self::Submit { spec, .. } => Some(&spec.name),
            Self::Scale { service, .. }
            | Self::Stop { service, .. }
            | Self::Start { service }
            | Self::Remove { service }
            | Self::Rollback { service, .. } => Some(service),
            Self::StopReplica { replica, .. } | Self::Replace { replica } => {
                state.replicas.get(replica).map(|row| &row.service)
            }
            Self::SetAvailability { .. }
            | Self::StopNode { .. }
            | Self::RemoveNode { .. }
            | Self::AddToken { .. }
            | Self::RemoveToken { .. }
            | Self::RemoveVolume { .. } => None,
        }
    }

    /// What it asks for, for people.
    pub fn describe(&self, state: &ClusterState) -> String {
        let replica = |id| match state.replicas.get(id) {
            Some(row) => format!("{}-{} on node {}", row.service, row.slot, row.node),
            None => format!("replica {id}"),
        };
        match self {
            Self::Submit { spec, .. } => format!("submit {}", spec.name),
            Self::Scale { service, replicas } => format!("scale {service} to {replicas}"),
            Self::Stop { service, .. } => format!("stop {service}"),
            Self::Start { service } => format!("start {service}"),
            Self::Remove { service } => format!("remove {service}"),
            Self::Rollback { service, version: Some(version) } => format!("roll {service} back to {version}"),
            Self::Rollback { service, version: None } => format!("roll {service} back"),
            Self::StopReplica { replica: id, .. } => format!("stop {}", replica(id)),
            Self::Replace { replica: id } => format!("replace {}", replica(id)),
            Self::SetAvailability { node, availability } => {
                format!("make node {node} {}", format!("{availability:?}").to_lowercase())
            }
            Self::StopNode { node } => format!("drain node {node} and stop what is on it"),
            Self::RemoveNode { node, force: false } => format!("remove node {node}"),
            Self::RemoveNode { node, force: true } => format!("remove node {node} by force"),
            Self::AddToken { id, token } => {
                format!("add token {id} of scope {}", format!("{:?}", token.scope).to_lowercase())
            }
            Self::RemoveToken { id } => format!("revoke token {id}"),
            Self::RemoveVolume { volume } => format!("remove volume {volume}"),
        }
    }
}

impl ClusterState {
    /// Checks that `by` may make `write` now.
    ///
    /// # Errors
    /// What they may do, and what it takes.
    pub fn check_rights(&self, by: &Actor, write: &Write) -> Result<(), Refusal> {
        match by {
            Actor::User { node, .. } | Actor::Node { node } if !self.nodes.contains_key(node) => {
                Err(Refusal::denied(format!("node {node} is no member")))
            }
            Actor::User { .. } | Actor::Node { .. } => Ok(()),
            Actor::Token { id } => {
                let token = self.tokens.get(id).filter(|token| token.lasts(self.time));
                let token = token
                    .ok_or_else(|| Refusal::denied(format!("the token `{id}` was revoked or has expired")))?;
                token.check(*id, write.needs(), write.service(self))?;
                match write {
                    Write::Submit { spec, .. } => token.check_volumes(*id, spec),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl Token {
    /// Whether it is valid at `now`.
    pub fn lasts(&self, now: UtcMs) -> bool {
        self.expires_at.is_none_or(|end| end > now)
    }

    /// Checks that a service of its holder mounts no volume of others: a token that is for some services is
    /// for volumes whose names begin alike.
    fn check_volumes(&self, id: TokenId, spec: &ServiceSpec) -> Result<(), Refusal> {
        let Some(prefix) = &self.services else { return Ok(()) };
        match spec.mounted_volumes().find(|name| !name.as_str().starts_with(prefix)) {
            Some(name) => Err(Refusal::denied(format!(
                "the token `{id}` is for what begins with `{prefix}`, and the volume `{name}` does not"
            ))),
            None => Ok(()),
        }
    }

    /// Checks that it lets its holder do what takes `right`, to `service` where it is about one.
    ///
    /// # Errors
    /// Which scope it takes, or which services it is for.
    pub fn check(&self, id: TokenId, right: Right, service: Option<&ServiceName>) -> Result<(), Refusal> {
        let has = self.right();
        if has < Some(right) {
            let has = has.map_or("join".to_owned(), |right| right.to_string());
            return Err(Refusal::denied(format!(
                "this takes a token of scope {right}, and `{id}` has scope {has}: `blixard cluster token create --scope {right}`"
            )));
        }
        match (&self.services, service) {
            (Some(prefix), Some(service)) if !self.covers(service) => Err(Refusal::denied(format!(
                "the token `{id}` is for services whose names begin with `{prefix}`, and `{service}` is none of them"
            ))),
            // A service that is gone; or members and tokens, which such a token has no say in.
            (Some(prefix), None) if right > Right::Read => Err(Refusal::denied(format!(
                "this takes a token for all services, and `{id}` is for those whose names begin with `{prefix}`"
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{Cluster, assert_refused, facts, join_token, mounting, name, spec};
    use crate::cluster::{Command, EventKind, Outcome};
    use crate::id::RequestId;

    const ID: TokenId = TokenId([5; 8]);

    fn cluster(scope: TokenScope, services: Option<&str>) -> Cluster {
        let mut cluster = Cluster::of(2);
        let token = Token { scope, services: services.map(str::to_owned), ..join_token() };
        cluster.write(Write::AddToken { id: ID, token });
        cluster
    }

    #[test]
    fn a_token_for_some_services_mounts_volumes_of_theirs_alone() {
        let mut cluster = cluster(TokenScope::Write, Some("web-"));
        let submit = |volume: &str| {
            let spec = mounting(volume, spec("web-a", 1, 1));
            Write::Submit { spec: spec.into(), origin: NodeId(1) }
        };
        let by_token = Actor::Token { id: ID };
        assert_refused(
            by(&mut cluster, 1, by_token.clone(), submit("pgdata")),
            "the volume `pgdata` does not",
        );
        assert!(cluster.state.volumes.is_empty());
        by(&mut cluster, 2, by_token, submit("web-data"));
        assert_eq!(cluster.state.volumes.len(), 1);
    }

    fn by(cluster: &mut Cluster, n: u8, by: Actor, write: Write) -> Outcome {
        let made_at = cluster.now;
        cluster.command(Command::Write { request: RequestId([n; 16]), made_at, write, by: Some(by) })
    }

    fn submit(service: &str) -> Write {
        Write::Submit { spec: spec(service, 1, 2).into(), origin: NodeId(1) }
    }

    #[test]
    fn a_token_does_what_its_scope_says() {
        use TokenScope::{Admin, Api, Join, Read, Write as Writing};
        let check = |scope, services: Option<&str>, write: Write, expect: Option<&str>| {
            let mut cluster = cluster(scope, services);
            let before = cluster.state.services.clone();
            let outcome = by(&mut cluster, 99, Actor::Token { id: ID }, write);
            match expect {
                None => assert!(!matches!(outcome, Outcome::Refused(_)), "{scope:?}: {outcome:?}"),
                Some(part) => {
                    assert_refused(outcome, part);
                    assert_eq!(cluster.state.services, before);
                }
            }
        };
        let drain = || Write::SetAvailability {
            node: NodeId(2),
            availability: crate::cluster::Availability::Draining,
        };
        check(
            Join,
            None,
            submit("web"),
            Some("takes a token of scope write, and `0505050505050505` has scope join"),
        );
        check(Read, None, submit("web"), Some("takes a token of scope write"));
        check(Writing, None, submit("web"), None);
        check(Writing, None, drain(), Some("takes a token of scope admin"));
        check(Writing, None, Write::RemoveToken { id: ID }, Some("takes a token of scope admin"));
        check(Writing, None, Write::StopNode { node: NodeId(2) }, Some("takes a token of scope admin"));
        check(Admin, None, drain(), None);
        check(Api, None, drain(), None);
        check(Writing, Some("web"), submit("web-2"), None);
        check(Writing, Some("web-"), submit("web"), Some("services whose names begin with `web-`"));
        check(Admin, Some("web-"), drain(), Some("a token for all services"));
        check(
            Writing,
            Some("web-"),
            Write::StopReplica { replica: crate::id::ReplicaId(7), timeout_s: None },
            Some("all services"),
        );
    }

    #[test]
    fn a_token_that_was_revoked_or_has_expired_does_nothing() {
        let mut cluster = cluster(TokenScope::Write, None);
        cluster.write(Write::RemoveToken { id: ID });
        let outcome = by(&mut cluster, 99, Actor::Token { id: ID }, submit("web"));
        assert_refused(outcome, "was revoked or has expired");
        let expires_at = Some(cluster.now);
        let token = Token { scope: TokenScope::Write, expires_at, ..join_token() };
        cluster.write(Write::AddToken { id: ID, token });
        assert_refused(
            by(&mut cluster, 98, Actor::Token { id: ID }, submit("web")),
            "revoked or has expired",
        );
    }

    #[test]
    fn a_write_is_told_by_whom_it_was_made() {
        let mut cluster = cluster(TokenScope::Write, None);
        let ana = Actor::User { uid: 1_000, name: Some("ana\u{1b}".to_owned()), node: NodeId(2) };
        by(&mut cluster, 99, ana.clone(), submit("web"));
        let event = cluster.state.events.last().expect("an event").clone();
        assert_eq!((event.kind, event.by.clone()), (EventKind::ServiceSubmitted, Some(ana.clone())));
        assert_eq!(cluster.state.services[&name("web")].current().by, Some(ana.clone()));
        by(&mut cluster, 98, Actor::Token { id: ID }, Write::RemoveNode { node: NodeId(2), force: false });
        let records: Vec<String> = cluster
            .state
            .audit
            .iter()
            .map(|record| {
                let by = record.by.as_ref().map_or("the leader".to_owned(), ToString::to_string);
                format!("{by}: {}{}", record.what, if record.refused.is_some() { ", refused" } else { "" })
            })
            .collect();
        assert_eq!(
            records[records.len() - 3..],
            [
                "the leader: add token 0505050505050505 of scope write",
                "ana\\x1b (uid 1000) on node 2: submit web",
                "token 0505050505050505: remove node 2, refused",
            ]
        );
        let stranger = Actor::Node { node: NodeId(9) };
        assert_refused(by(&mut cluster, 97, stranger, submit("x")), "node 9 is no member");
    }

    #[test]
    fn what_happens_on_a_socket_only_that_node_tells() {
        let root = |node| Actor::User { uid: 0, name: None, node: NodeId(node) };
        assert_eq!(root(1).told_by(NodeId(3)), root(3));
        assert_eq!(Actor::Node { node: NodeId(1) }.told_by(NodeId(3)), Actor::Node { node: NodeId(3) });
    }

    #[test]
    fn below_the_second_level_nothing_is_checked_or_kept() {
        let mut cluster = Cluster::of_level(2, crate::cluster::level::FIRST_LEVEL);
        assert!(matches!(
            by(&mut cluster, 99, Actor::Token { id: ID }, submit("web")),
            Outcome::Service { .. }
        ));
        assert!(cluster.state.audit.is_empty());
        assert!(cluster.state.events.iter().all(|event| event.by.is_none()));
        assert_eq!(cluster.state.services[&name("web")].current().by, None);
        cluster.command(Command::Facts { node: NodeId(1), facts: facts("one") });
    }

    #[test]
    fn the_oldest_records_make_room() {
        let mut cluster = cluster(TokenScope::Write, None);
        let writes = (0..crate::limits::AUDIT_MAX + 9).map(|n| Command::Write {
            request: RequestId((n as u128 + 1_000).to_be_bytes()),
            made_at: cluster.now,
            write: Write::Stop { service: name("none"), timeout_s: None },
            by: Some(Actor::Node { node: NodeId(1) }),
        });
        cluster.apply(writes.collect());
        assert_eq!(cluster.state.audit.len(), crate::limits::AUDIT_MAX);
        assert!(cluster.state.audit.iter().zip(cluster.state.audit.iter().skip(1)).all(|(a, b)| a.id < b.id));
    }
}
