//! Volumes: made with the services that mount them, followed by copies, taken over, removed.

use std::collections::BTreeMap;

use super::plan::Step;
use super::{About, Answer};
use crate::cluster::volume::{Volume, VolumeCopy, VolumeStatus};
use crate::cluster::{ClusterState, EventKind, NodeStatus, Outcome, Refusal};
use crate::id::{NodeId, VolumeId, VolumeName};
use crate::limits::VOLUMES_MAX;
use crate::spec::ServiceSpec;

impl ClusterState {
    /// Refuses a specification that would make more volumes than a cluster keeps.
    pub(super) fn check_volumes(&self, spec: &ServiceSpec) -> Result<(), Refusal> {
        let new = spec.mounted_volumes().filter(|name| !self.volumes.contains_key(*name)).count();
        if self.volumes.len() + new > VOLUMES_MAX {
            return Err(Refusal::out_of_bounds(format!("a cluster has at most {VOLUMES_MAX} volumes")));
        }
        Ok(())
    }

    /// Makes the volumes that a specification mounts and that are not there.
    pub(super) fn make_volumes(&mut self, spec: &ServiceSpec) {
        let new: Vec<VolumeName> =
            spec.mounted_volumes().filter(|name| !self.volumes.contains_key(*name)).cloned().collect();
        for name in new {
            if self.volumes.contains_key(&name) {
                continue;
            }
            let id = self.next_volume;
            self.next_volume = VolumeId(id.0 + 1);
            let volume = Volume::new(id, self.time);
            self.insert_volume(name.clone(), volume);
            self.tell_volume(&name, None, "was made");
        }
    }

    pub(super) fn remove_volume(&mut self, name: &VolumeName) -> Answer {
        if !self.volumes.contains_key(name) {
            return Err(Refusal::not_found("volume", name));
        }
        if let Some(service) = self.services_mounting(name).next() {
            return Err(Refusal::conflict(format!(
                "volume `{name}` is mounted by service `{service}`, or was by a version of it that is kept: remove the service first"
            )));
        }
        self.drop_volume(name);
        self.tell_volume(name, None, "was removed");
        Ok(Outcome::Done)
    }

    /// Has `node` hold the primary copies of volumes that nobody has written to yet and `spec` mounts.
    pub(super) fn settle_volumes(&mut self, spec: &ServiceSpec, node: NodeId) {
        let names: Vec<VolumeName> = spec.mounted_volumes().cloned().collect();
        for name in names {
            let Some(volume) = self.volumes.get_mut(&name).filter(|volume| volume.primary.is_none()) else {
                continue;
            };
            volume.primary = Some(node);
            volume.epoch += 1;
            volume.copies.entry(node).or_default();
            self.tell_volume(&name, Some(node), &format!("has its primary copy on node {node}"));
        }
    }

    /// Takes in what a node tells of the volumes that it holds. Of its own epoch only a primary's word
    /// counts, and a copy holds nothing that no primary published.
    pub(super) fn report_volumes(
        &mut self,
        node: NodeId,
        statuses: &BTreeMap<VolumeId, VolumeStatus>,
    ) -> Answer {
        if !self.nodes.contains_key(&node) {
            return Err(Refusal::not_found("node", node));
        }
        for (id, status) in statuses {
            let Some(name) = self.index.volume_name(*id).cloned() else { continue };
            self.report_volume(&name, node, status);
        }
        Ok(Outcome::Done)
    }

    fn report_volume(&mut self, name: &VolumeName, node: NodeId, status: &VolumeStatus) {
        let mut trouble = status.copy.trouble.clone();
        if let Some(text) = &mut trouble {
            self.bound(text);
        }
        let Some(volume) = self.volumes.get_mut(name) else { return };
        let (newest, is_primary) = (volume.version, volume.primary == Some(node));
        let Some(copy) = volume.copies.get_mut(&node) else { return };
        if is_primary && status.epoch != volume.epoch {
            return;
        }
        let told = copy.trouble != trouble && trouble.is_some();
        let held = copy.version;
        copy.trouble.clone_from(&trouble);
        let known = |version| newest.is_some_and(|newest| newest == version || newest.id > version.id);
        match status.copy.version {
            Some(version) if known(version) => copy.version = Some(version),
            Some(version)
                if is_primary
                    && version.id.epoch == volume.epoch
                    && Some(version.id) > newest.map(|newest| newest.id) =>
            {
                copy.version = Some(version);
                volume.version = Some(version);
            }
            Some(_) => {}
            // A primary that has just taken over is publishing anew; what it took over, others hold.
            None if is_primary => {}
            None => copy.version = None,
        }
        let first = held.is_none() && copy.version.is_some() && !is_primary;
        if let Some(trouble) = trouble.filter(|_| told) {
            self.tell_volume(name, Some(node), &format!("on node {node}: {trouble}"));
        } else if first {
            self.tell_volume(name, Some(node), &format!("has a copy on node {node}"));
        }
    }

    pub(super) fn add_copy(&mut self, name: &VolumeName, node: NodeId) -> Step {
        self.up(node)?;
        let volume = self.volumes.get_mut(name).ok_or_else(|| format!("there is no volume `{name}`"))?;
        if volume.primary.is_none() {
            return Err(format!("volume `{name}` has no primary copy"));
        }
        if volume.copies.contains_key(&node) {
            return Err(format!("node {node} is to hold volume `{name}` already"));
        }
        volume.copies.insert(node, VolumeCopy::default());
        Ok(())
    }

    /// Makes a copy the primary one. What others hold that it lacks is of no history any more.
    pub(super) fn promote(&mut self, name: &VolumeName, node: NodeId) -> Step {
        self.up(node)?;
        let volume = self.volumes.get(name).ok_or_else(|| format!("there is no volume `{name}`"))?;
        if !self.primary_is_lost(volume) {
            return Err(format!("the primary copy of volume `{name}` is not lost"));
        }
        let holds = volume.copies.get(&node).and_then(|copy| copy.version);
        let Some(version) = holds.filter(|version| Some(*version) == volume.acknowledged()) else {
            return Err(format!("node {node} lacks what others hold of volume `{name}`"));
        };
        let before = volume.version.map(|newest| newest.id);
        if let Some(volume) = self.volumes.get_mut(name) {
            volume.primary = Some(node);
            volume.epoch += 1;
            volume.version = Some(version);
            for copy in volume.copies.values_mut() {
                copy.version = copy.version.filter(|held| held.id <= version.id);
            }
        }
        let lost = match before.filter(|before| *before > version.id) {
            Some(before) => format!(", and lacks what {before} had besides"),
            None => String::new(),
        };
        let what = format!("has its primary copy on node {node} now: version {}{lost}", version.id);
        self.tell_volume(name, Some(node), &what);
        Ok(())
    }

    /// A node is no member any more: what it held is gone with it.
    pub(super) fn leave_volumes(&mut self, node: NodeId) {
        let held: Vec<VolumeName> = self
            .volumes
            .iter()
            .filter(|(_, volume)| volume.copies.contains_key(&node))
            .map(|(name, _)| name.clone())
            .collect();
        for name in held {
            let Some(volume) = self.volumes.get_mut(&name) else { continue };
            volume.copies.remove(&node);
            if volume.primary == Some(node) {
                volume.primary = None;
            }
        }
    }

    fn up(&self, node: NodeId) -> Step {
        match self.nodes.get(&node) {
            Some(row) if row.status == NodeStatus::Up => Ok(()),
            Some(_) => Err(format!("node {node} is not up")),
            None => Err(format!("there is no node {node}")),
        }
    }

    fn tell_volume(&mut self, name: &VolumeName, node: Option<NodeId>, what: &str) {
        let about = About { node, ..About::default() };
        self.emit(EventKind::VolumeChanged, about, format!("volume {name} {what}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{Cluster, assert_refused, mounting, name, place, spec};
    use crate::cluster::volume::{Home, VersionId, VolumeRoot, VolumeVersion};
    use crate::cluster::{Command, PlanStep, Write};
    use crate::time::UtcMs;

    const ID: VolumeId = VolumeId(1);

    fn volume_name() -> VolumeName {
        "pgdata".parse().expect("a name")
    }

    fn version(epoch: u64, seq: u64) -> VolumeVersion {
        let root = VolumeRoot([u8::try_from(epoch * 16 + seq).expect("small"); 32]);
        VolumeVersion { id: VersionId { epoch, seq }, root, files: 1, bytes: 5, at: UtcMs(1) }
    }

    fn report(cluster: &mut Cluster, node: u64, epoch: u64, version: Option<VolumeVersion>) {
        let copy = VolumeCopy { version, trouble: None };
        let statuses = BTreeMap::from([(ID, VolumeStatus { epoch, copy })]);
        cluster.command(Command::Volumes { node: NodeId(node), statuses });
    }

    fn volume(cluster: &Cluster) -> &Volume {
        &cluster.state.volumes[&volume_name()]
    }

    fn held(cluster: &Cluster, node: u64) -> Option<(u64, u64)> {
        let id = volume(cluster).copies.get(&NodeId(node))?.version?.id;
        Some((id.epoch, id.seq))
    }

    fn copy_on(node: u64) -> Vec<PlanStep> {
        vec![PlanStep::AddVolumeCopy { volume: volume_name(), node: NodeId(node) }]
    }

    fn promote(node: u64) -> Vec<PlanStep> {
        vec![PlanStep::PromoteVolume { volume: volume_name(), node: NodeId(node) }]
    }

    /// A service on node 1 whose volume nodes 2 and 3 hold as well.
    fn three() -> Cluster {
        let mut cluster = Cluster::of(3);
        cluster.submit(mounting("pgdata", spec("db", 1, 1)));
        cluster.planned(vec![place("db", 0, 1, 1)]);
        cluster.planned([copy_on(2), copy_on(3)].concat());
        cluster
    }

    #[test]
    fn a_volume_is_made_with_its_service_and_is_where_its_first_replica_is() {
        let mut cluster = Cluster::of(2);
        cluster.submit(mounting("pgdata", spec("db", 1, 1)));
        assert_eq!((volume(&cluster).id, volume(&cluster).primary, volume(&cluster).epoch), (ID, None, 0));
        assert_eq!(cluster.state.home_of(&mounting("pgdata", spec("db", 1, 1)), NodeId(1)), Home::Anywhere);
        cluster.planned(vec![place("db", 0, 1, 2)]);
        assert_eq!((volume(&cluster).primary, volume(&cluster).epoch), (Some(NodeId(2)), 1));
        cluster.submit(mounting("pgdata", spec("backup", 1, 1)));
        assert_eq!(cluster.state.volumes.len(), 1, "two services mount one volume");
        let refused = cluster.plan(vec![place("backup", 0, 1, 1)]);
        assert_eq!(refused, ["what `backup` mounts is on node 2"]);
        cluster.planned(vec![place("backup", 0, 1, 2)]);
    }

    #[test]
    fn a_volume_is_removed_once_no_service_mounts_it() {
        let mut cluster = three();
        let remove = || Write::RemoveVolume { volume: volume_name() };
        assert_refused(cluster.write(remove()), "mounted by service `db`");
        cluster.submit(spec("db", 1, 1));
        assert_refused(cluster.write(remove()), "a version of it that is kept");
        cluster.write(Write::Remove { service: name("db") });
        cluster.report(1, 1, crate::cluster::testing::status(0, crate::cluster::Phase::Gone));
        cluster.planned(vec![PlanStep::ForgetService { service: name("db") }]);
        assert_eq!(cluster.write(remove()), Outcome::Done);
        assert_refused(cluster.write(remove()), "no volume `pgdata`");
        cluster.submit(mounting("pgdata", spec("db", 1, 1)));
        assert_eq!(volume(&cluster).id, VolumeId(2), "the name is free, the number is not used again");
    }

    #[test]
    fn only_a_primary_of_this_epoch_publishes() {
        let mut cluster = three();
        report(&mut cluster, 2, 1, Some(version(1, 1)));
        assert_eq!((volume(&cluster).version, held(&cluster, 2)), (None, None), "a copy publishes nothing");
        report(&mut cluster, 1, 0, Some(version(1, 1)));
        report(&mut cluster, 1, 1, Some(version(0, 9)));
        assert_eq!(volume(&cluster).version, None);
        report(&mut cluster, 1, 1, Some(version(1, 1)));
        assert_eq!(volume(&cluster).version, Some(version(1, 1)));
        report(&mut cluster, 2, 1, Some(VolumeVersion { root: VolumeRoot([0; 32]), ..version(1, 1) }));
        assert_eq!(held(&cluster, 2), None, "that root is none of its");
        report(&mut cluster, 2, 1, Some(version(1, 1)));
        assert_eq!(held(&cluster, 2), Some((1, 1)));
        report(&mut cluster, 1, 1, Some(version(1, 3)));
        report(&mut cluster, 1, 1, Some(version(1, 2)));
        assert_eq!(volume(&cluster).version, Some(version(1, 3)), "late reports take nothing back");
        report(&mut cluster, 2, 1, None);
        assert_eq!(held(&cluster, 2), None, "a copy that is lost is said to be");
    }

    #[test]
    fn what_was_acknowledged_is_promoted_or_nothing_is() {
        let mut cluster = three();
        report(&mut cluster, 1, 1, Some(version(1, 1)));
        report(&mut cluster, 3, 1, Some(version(1, 1)));
        report(&mut cluster, 1, 1, Some(version(1, 2)));
        report(&mut cluster, 2, 1, Some(version(1, 2)));
        report(&mut cluster, 1, 1, Some(version(1, 3)));
        assert_eq!(cluster.plan(promote(2)), ["the primary copy of volume `pgdata` is not lost"]);
        cluster.health(1, NodeStatus::Down);
        assert_eq!(cluster.plan(promote(3)), ["node 3 lacks what others hold of volume `pgdata`"]);
        cluster.health(2, NodeStatus::Down);
        assert_eq!(volume(&cluster).heir(|node| node == NodeId(3)), None);
        cluster.health(2, NodeStatus::Up);
        cluster.planned(promote(2));
        let now = volume(&cluster);
        assert_eq!((now.primary, now.epoch, now.version), (Some(NodeId(2)), 2, Some(version(1, 2))));
        assert_eq!((held(&cluster, 1), held(&cluster, 3)), (None, Some((1, 1))));
        assert!(cluster.events().join("\n").contains("lacks what 1.3 had besides"));
        cluster.health(1, NodeStatus::Up);
        report(&mut cluster, 1, 1, Some(version(1, 4)));
        assert_eq!(volume(&cluster).version, Some(version(1, 2)), "an earlier primary publishes no more");
        report(&mut cluster, 2, 2, None);
        assert_eq!(held(&cluster, 2), Some((1, 2)), "it publishes anew what it has");
        report(&mut cluster, 2, 2, Some(version(2, 3)));
        assert_eq!(volume(&cluster).version, Some(version(2, 3)));
    }

    #[test]
    fn a_member_that_is_removed_takes_its_copies_along() {
        let mut cluster = three();
        report(&mut cluster, 1, 1, Some(version(1, 1)));
        report(&mut cluster, 2, 1, Some(version(1, 1)));
        cluster.health(1, NodeStatus::Down);
        cluster.write(Write::RemoveNode { node: NodeId(1), force: true });
        assert_eq!((volume(&cluster).primary, held(&cluster, 1)), (None, None));
        cluster.health(2, NodeStatus::Down);
        let home = cluster.state.home_of(&mounting("pgdata", spec("db", 1, 1)), NodeId(3));
        assert_eq!(home, Home::Nowhere("no member holds a copy of volume `pgdata`".to_owned()));
        cluster.health(2, NodeStatus::Up);
        cluster.planned(promote(2));
        assert_eq!(volume(&cluster).epoch, 2);
    }
}
