//! Changing who is a member, who votes and who leads.

use std::collections::BTreeSet;
use std::time::Duration;

use blixard_core::id::NodeId;
use openraft::{ChangeMembers, EmptyNode};

use super::propose::{Attempt, Refused};
use super::{ProposeError, RaftNode};

impl RaftNode {
    /// Makes `id` a member without a vote; a member it already is stays as it is. Returns when that
    /// is committed, not when `id` has caught up: see [`RaftNode::replication_lag`].
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn add_learner(&self, id: NodeId, deadline: Duration) -> Result<(), ProposeError> {
        let nodes = [(id.0, EmptyNode {})].into_iter().collect();
        self.change(ChangeMembers::AddNodes(nodes), true, deadline).await
    }

    /// Makes exactly `voters`, all of them members, vote; members that lose their vote stay as
    /// learners. A leader that would lose its own hands leadership over first, since openraft lets
    /// it lead without a vote, and answers [`ProposeError::NotLeader`]: ask the next one.
    ///
    /// # Errors
    /// See [`ProposeError`]; [`ProposeError::Invalid`] when one is not a member.
    pub async fn change_voters(
        &self,
        voters: BTreeSet<NodeId>,
        deadline: Duration,
    ) -> Result<(), ProposeError> {
        self.step_aside(|id| voters.contains(&id), deadline).await?;
        self.change(ChangeMembers::ReplaceAllVoters(raft_ids(&voters)), true, deadline).await
    }

    /// Removes members, voters or not. A leader that would remove itself hands leadership over
    /// first and answers [`ProposeError::NotLeader`]: ask the next one.
    ///
    /// # Errors
    /// See [`ProposeError`]; [`ProposeError::Invalid`] when no voter would be left.
    pub async fn remove(&self, ids: BTreeSet<NodeId>, deadline: Duration) -> Result<(), ProposeError> {
        self.step_aside(|id| !ids.contains(&id), deadline).await?;
        let voting = self.status().voters();
        let (voters, learners): (BTreeSet<_>, BTreeSet<_>) =
            ids.into_iter().partition(|id| voting.contains(id));
        if !voters.is_empty() {
            self.change(ChangeMembers::RemoveVoters(raft_ids(&voters)), false, deadline).await?;
        }
        if !learners.is_empty() {
            self.change(ChangeMembers::RemoveNodes(raft_ids(&learners)), false, deadline).await?;
        }
        Ok(())
    }

    /// Hands leadership to a voter that `stays` when this leader does not.
    async fn step_aside(
        &self,
        stays: impl Fn(NodeId) -> bool,
        deadline: Duration,
    ) -> Result<(), ProposeError> {
        if !self.leads() || stays(self.id()) {
            return Ok(());
        }
        let matched = self.matched();
        let staying = self.status().voters().into_iter().filter(|id| stays(*id));
        let Some(next) = staying.max_by_key(|id| matched.get(id).copied()) else {
            return Err(ProposeError::Invalid("at least one of the voters must stay one".to_owned()));
        };
        self.transfer_leader(next, deadline).await?;
        Err(ProposeError::NotLeader { leader: Some(next) })
    }

    async fn change(
        &self,
        change: ChangeMembers<u64, EmptyNode>,
        retain: bool,
        deadline: Duration,
    ) -> Result<(), ProposeError> {
        let change = &change;
        let attempt = move || -> Attempt<'_, ()> {
            Box::pin(async move {
                let changed = self.raft().change_membership(change.clone(), retain).await;
                changed.map(|_| ()).map_err(|error| self.refused(error))
            })
        };
        self.until(deadline, attempt).await
    }

    async fn try_transfer(&self, to: NodeId) -> Result<(), Refused> {
        let triggered = self.raft().trigger().transfer_leader(to.0).await;
        triggered.map_err(|fatal| Refused::Final(ProposeError::Fatal(self.words(&fatal))))?;
        // openraft tries once; a failed try shows only in that nothing happens.
        let _ = tokio::time::timeout(self.config().election_max, self.lost_leadership()).await;
        if self.leads() { Err(Refused::NotNow) } else { Ok(()) }
    }

    /// Hands leadership to `to`, a voter, and waits until this member no longer leads. Asks again
    /// while `to` has not caught up.
    ///
    /// # Errors
    /// See [`ProposeError`]; [`ProposeError::Unavailable`] when `to` did not take over in time.
    pub async fn transfer_leader(&self, to: NodeId, deadline: Duration) -> Result<(), ProposeError> {
        let status = self.status();
        if status.leader != Some(self.id()) {
            return Err(ProposeError::NotLeader { leader: status.leader });
        }
        if !status.voters().contains(&to) {
            return Err(ProposeError::Invalid(format!("node {to} does not vote, so it cannot lead")));
        }
        if to == self.id() {
            return Ok(());
        }
        let attempt = move || -> Attempt<'_, ()> { Box::pin(self.try_transfer(to)) };
        match self.until(deadline, attempt).await {
            Err(ProposeError::Unavailable(_)) => {
                Err(ProposeError::Unavailable(format!("node {to} did not take over within {deadline:?}")))
            }
            other => other,
        }
    }

    async fn lost_leadership(&self) {
        let mut changes = self.watch_status();
        while changes.current().leader == Some(self.id()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

fn raft_ids(ids: &BTreeSet<NodeId>) -> BTreeSet<u64> {
    ids.iter().map(|id| id.0).collect()
}
