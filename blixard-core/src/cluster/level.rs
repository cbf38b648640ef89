//! Feature levels: what software must know to apply a command.
//!
//! A member that does not know a command, or a value inside one, must halt rather than skip it:
//! its state would differ from the others'. So each command names the lowest level whose software
//! applies it, and an entry carries the highest of its commands. Every match here lists all fields
//! by name: whoever adds one decides here what level it takes.
//!
//! Rules of `apply` that came with a level hold once the state has it ([`ClusterState::knows`]).
//! The command that raises the level has the new level itself, so that older software halts there
//! instead of going on by its own rules.

use super::command::{Command, Plan, PlanStep, Refusal, Write};
use super::node::{NodeFacts, Token, TokenScope};
use super::{ClusterState, ReplicaStatus};
use crate::spec::{
    HealthSpec, ImageSpec, MountKind, MountSpec, PortSpec, Publish, RestartPolicy, RestartSpec, ServiceSpec,
};

/// The feature level of the first release.
pub const FIRST_LEVEL: u16 = 1;
/// The feature level of the second release.
pub const SECOND_LEVEL: u16 = 2;
/// The highest feature level this software knows.
pub const LEVEL: u16 = SECOND_LEVEL;

impl ClusterState {
    /// Whether every member knows feature level `level`: its commands may be proposed, and its
    /// rules hold.
    pub fn knows(&self, level: u16) -> bool {
        self.level >= level
    }

    /// Checks that a write may be proposed.
    ///
    /// # Errors
    /// When it takes a feature level that some member does not know; the refusal names one.
    pub fn check_level(&self, write: &Write) -> Result<(), Refusal> {
        let level = write.level();
        if self.knows(level) {
            return Ok(());
        }
        let old = self.nodes.iter().find(|(_, node)| node.facts.level < level);
        let reason = match old {
            Some((id, node)) => format!(
                "node {id} ({}) runs version {}, which knows {}: upgrade it",
                node.facts.name, node.facts.version, node.facts.level
            ),
            None => "the leader is about to raise it: try again in a moment".to_owned(),
        };
        Err(Refusal::conflict(format!(
            "this takes feature level {level}, the cluster is at {}; {reason}",
            self.level
        )))
    }
}

impl Command {
    /// The lowest feature level whose software applies it. A leader proposes none above the
    /// cluster's level, but for the one that raises it.
    pub fn level(&self) -> u16 {
        match self {
            Self::Bootstrap { cluster: _, subnets: _, node: _, key: _, facts, token: (_, token) } => {
                // The cluster begins at its first member's level.
                facts.level.max(facts.needs()).max(token.level())
            }
            Self::Join { node: _, key: _, facts, token: _, secret_sha256: _ } => facts.needs(),
            Self::Facts { node: _, facts } => facts.needs(),
            Self::Addresses { node: _, addresses: _ }
            | Self::Health { node: _, status: _ }
            | Self::Hold { node: _, until: _ } => FIRST_LEVEL,
            Self::Write { request: _, made_at: _, write, by } => {
                write.level().max(if by.is_some() { SECOND_LEVEL } else { FIRST_LEVEL })
            }
            Self::Report { node: _, statuses } => highest(statuses.values().map(ReplicaStatus::level)),
            Self::Plan(Plan { steps }) => highest(steps.iter().map(PlanStep::level)),
            Self::Volumes { node: _, statuses: _ } => SECOND_LEVEL,
            Self::Level { level } => *level,
        }
    }
}

impl Write {
    /// The lowest feature level whose software applies it.
    pub fn level(&self) -> u16 {
        match self {
            Self::Submit { spec, origin: _ } => spec.level(),
            Self::Scale { service: _, replicas: _ }
            | Self::Start { service: _ }
            | Self::Remove { service: _ }
            | Self::SetAvailability { node: _, availability: _ }
            | Self::RemoveNode { node: _, force: _ }
            | Self::RemoveToken { id: _ } => FIRST_LEVEL,
            Self::Stop { service: _, timeout_s } | Self::StopReplica { replica: _, timeout_s } => {
                if timeout_s.is_some() { SECOND_LEVEL } else { FIRST_LEVEL }
            }
            Self::Rollback { service: _, version: _ } => SECOND_LEVEL,
            Self::Replace { replica: _ } | Self::StopNode { node: _ } | Self::RemoveVolume { volume: _ } => {
                SECOND_LEVEL
            }
            Self::AddToken { id: _, token } => token.level(),
        }
    }
}

impl PlanStep {
    /// The lowest feature level whose software applies it.
    pub fn level(&self) -> u16 {
        match self {
            Self::Place { service: _, slot: _, version: _, node: _, after: _ }
            | Self::SetDesired { replica: _, desired: _ }
            | Self::SetLost { replica: _, lost: _ }
            | Self::Forget { replica: _ }
            | Self::Backoff { service: _, slot: _, failures: _, not_before: _ }
            | Self::Pending { service: _, slot: _, reason: _ }
            | Self::ForgetService { service: _ } => FIRST_LEVEL,
            Self::PlaceOlder { service: _, slot: _, version: _, node: _, after: _ }
            | Self::AddVolumeCopy { volume: _, node: _ }
            | Self::PromoteVolume { volume: _, node: _ } => SECOND_LEVEL,
        }
    }
}

impl NodeFacts {
    /// The lowest feature level whose software holds these facts as they are. (The level that the
    /// member's own software knows is [`NodeFacts::level`].)
    fn needs(&self) -> u16 {
        let Self {
            name: _,
            addresses: _,
            labels: _,
            cpu_millis: _,
            memory_bytes: _,
            arch: _,
            os: _,
            version: _,
            level: _,
            reserved_ports: _,
        } = self;
        FIRST_LEVEL
    }
}

impl Token {
    fn level(&self) -> u16 {
        let Self { secret_sha256: _, scope, expires_at: _, uses_left: _, services } = self;
        match scope {
            TokenScope::Join | TokenScope::Api if services.is_none() => FIRST_LEVEL,
            TokenScope::Join | TokenScope::Api | TokenScope::Read | TokenScope::Write | TokenScope::Admin => {
                SECOND_LEVEL
            }
        }
    }
}

impl ReplicaStatus {
    /// The lowest feature level whose software holds it as it is.
    pub fn level(&self) -> u16 {
        let Self {
            attempt: _,
            phase: _,
            healthy: _,
            address: _,
            exit_code: _,
            oom_killed,
            message: _,
            since: _,
            proven,
            left,
        } = self;
        if *proven || *left || *oom_killed { SECOND_LEVEL } else { FIRST_LEVEL }
    }

    /// What of it a cluster at feature level `level` takes in: agents report all they know, also
    /// while older software is among the members.
    #[must_use]
    pub fn at_level(mut self, level: u16) -> Self {
        if level < SECOND_LEVEL {
            (self.proven, self.left, self.oom_killed) = (false, false, false);
        }
        self
    }
}

impl ServiceSpec {
    /// The lowest feature level whose software holds it as it is.
    pub fn level(&self) -> u16 {
        let Self {
            name: _,
            image,
            ports,
            volumes,
            environment: _,
            healthcheck,
            replicas: _,
            limits: _,
            reservations: _,
            restart,
            depends_on: _,
            stop_timeout_s: _,
            placement: _,
            network: _,
            min_healthy_ms,
            security,
        } = self;
        let ports = highest(ports.iter().map(PortSpec::level));
        let healthcheck = healthcheck.as_ref().map_or(FIRST_LEVEL, HealthSpec::level);
        let mounts = volumes.iter().any(MountSpec::is_of_second_level);
        let second = min_healthy_ms.is_some() || !security.is_default() || mounts;
        let own = if second { SECOND_LEVEL } else { FIRST_LEVEL };
        highest([image.level(), ports, healthcheck, restart.level(), own].into_iter())
    }
}

impl MountSpec {
    fn is_of_second_level(&self) -> bool {
        let Self { source: _, target: _, read_only: _, checked, kind } = self;
        *checked || *kind != MountKind::HostPath
    }
}

impl ImageSpec {
    fn level(&self) -> u16 {
        let Self { reference: _, digest: _, command: _, workdir: _ } = self;
        FIRST_LEVEL
    }
}

impl PortSpec {
    fn level(&self) -> u16 {
        let Self { container_port: _, host_port: _, protocol: _, host_ip, publish } = self;
        if host_ip.is_some() || *publish != Publish::Cluster { SECOND_LEVEL } else { FIRST_LEVEL }
    }
}

impl HealthSpec {
    fn level(&self) -> u16 {
        let Self { path: _, interval_ms: _, timeout_ms: _, retries: _ } = self;
        FIRST_LEVEL
    }
}

impl RestartSpec {
    fn level(&self) -> u16 {
        let Self { policy, maximum_retry_count: _ } = self;
        match policy {
            RestartPolicy::Unsaid
            | RestartPolicy::Always
            | RestartPolicy::OnFailure
            | RestartPolicy::UnlessStopped => FIRST_LEVEL,
            RestartPolicy::Never => SECOND_LEVEL,
        }
    }
}

fn highest(levels: impl Iterator<Item = u16>) -> u16 {
    levels.max().unwrap_or(FIRST_LEVEL)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::cluster::testing::{
        Cluster, START, bootstrap, desire, facts, join, join_token, mounting, place, publishing, spec,
        status, with_volume,
    };
    use crate::cluster::{Desired, Entry, Phase};
    use crate::id::{NodeId, ReplicaId, RequestId, TokenId};
    use crate::spec::RestartSpec;

    fn submission(change: impl FnOnce(&mut ServiceSpec)) -> Write {
        let mut spec = spec("web", 1, 1);
        change(&mut spec);
        Write::Submit { spec: Arc::new(spec), origin: NodeId(1) }
    }

    fn entry_of(write: Write) -> Entry {
        Entry::new(
            START,
            vec![Command::Write { request: RequestId([0; 16]), made_at: START, write, by: None }],
        )
    }

    #[test]
    fn an_entry_takes_the_level_of_the_newest_value_in_it() {
        let check = |command: Command, expect: u16| {
            let hold = Command::Hold { node: NodeId(1), until: None };
            assert_eq!(Entry::new(START, vec![hold, command.clone()]).level, expect, "{command:?}");
        };
        let plan = |steps| Command::Plan(Plan { steps });
        let report = |proven| {
            let status = ReplicaStatus { proven, ..status(0, Phase::Running) };
            Command::Report { node: NodeId(1), statuses: BTreeMap::from([(ReplicaId(1), status)]) }
        };
        check(plan(vec![place("web", 0, 1, 1), desire(1, Desired::Stop)]), FIRST_LEVEL);
        check(join(None, 2), FIRST_LEVEL);
        check(Command::Facts { node: NodeId(1), facts: facts("one") }, FIRST_LEVEL);
        let rollback = Write::Rollback { service: crate::cluster::testing::name("web"), version: None };
        assert_eq!(entry_of(rollback).level, SECOND_LEVEL);
        check(report(false), FIRST_LEVEL);
        check(report(true), SECOND_LEVEL);
        check(Command::Level { level: 1 }, FIRST_LEVEL);
        check(Command::Level { level: SECOND_LEVEL }, SECOND_LEVEL);
        check(bootstrap(), LEVEL);
        let token = join_token();
        check(
            Command::Write {
                request: RequestId([0; 16]),
                made_at: START,
                write: Write::AddToken { id: TokenId([0; 8]), token },
                by: None,
            },
            FIRST_LEVEL,
        );
    }

    #[test]
    fn a_specification_takes_the_level_of_what_it_says() {
        let check = |change: &dyn Fn(&mut ServiceSpec), expect: u16| {
            assert_eq!(entry_of(submission(change)).level, expect);
        };
        let restart =
            |policy| move |spec: &mut ServiceSpec| spec.restart = RestartSpec { policy, ..spec.restart };
        check(&|_| (), FIRST_LEVEL);
        check(&restart(RestartPolicy::Unsaid), FIRST_LEVEL);
        check(&restart(RestartPolicy::OnFailure), FIRST_LEVEL);
        check(&restart(RestartPolicy::Never), SECOND_LEVEL);
        check(&|spec| spec.min_healthy_ms = Some(0), SECOND_LEVEL);
        check(&|spec| spec.volumes = with_volume(spec.clone()).volumes, FIRST_LEVEL);
        check(&|spec| spec.volumes = mounting("data", spec.clone()).volumes, SECOND_LEVEL);
        let published = |host_ip: Option<[u8; 4]>| {
            move |spec: &mut ServiceSpec| {
                *spec = publishing(spec.clone(), &[80]);
                spec.ports[0].host_ip = host_ip.map(Into::into);
            }
        };
        check(&published(None), FIRST_LEVEL);
        check(&published(Some([127, 0, 0, 1])), SECOND_LEVEL);
    }

    #[test]
    fn what_some_member_does_not_know_is_refused_and_names_it() {
        let mut cluster = Cluster::of_level(2, FIRST_LEVEL);
        let new = submission(|spec| spec.min_healthy_ms = Some(1));
        let refused = |cluster: &Cluster| cluster.state.check_level(&new).map_err(|why| why.to_string());
        assert_eq!(cluster.state.check_level(&submission(|_| ())), Ok(()));
        let expect = "this takes feature level 2, the cluster is at 1; node 1 (one) runs version 0.1.0, which knows 1: upgrade it";
        assert_eq!(refused(&cluster), Err(expect.to_owned()));
        for node in [NodeId(1), NodeId(2)] {
            cluster.command(Command::Facts { node, facts: facts("n") });
        }
        let why = refused(&cluster).expect_err("the level is not raised yet");
        assert!(why.ends_with("try again in a moment"), "{why}");
        cluster.command(Command::Level { level: SECOND_LEVEL });
        assert_eq!(refused(&cluster), Ok(()));
    }

    #[test]
    fn a_cluster_of_the_first_level_takes_in_what_it_knows_of_a_status() {
        let proven = ReplicaStatus { proven: true, ..status(1, Phase::Running) };
        assert_eq!(proven.clone().at_level(FIRST_LEVEL), status(1, Phase::Running));
        assert_eq!(proven.clone().at_level(FIRST_LEVEL).level(), FIRST_LEVEL);
        assert_eq!(proven.clone().at_level(SECOND_LEVEL), proven);
        let killed = ReplicaStatus { oom_killed: true, ..status(1, Phase::Waiting) };
        assert_eq!(killed.level(), SECOND_LEVEL);
        assert_eq!(killed.clone().at_level(FIRST_LEVEL), status(1, Phase::Waiting));
        assert_eq!(killed.clone().at_level(SECOND_LEVEL), killed);
    }
}
