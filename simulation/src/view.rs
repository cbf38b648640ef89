//! A world as a person reads it: its machines, who leads, the services and what runs where.

use std::fmt::Write;

use blixard_core::cluster::ClusterState;

use crate::machine::Machine;
use crate::world::World;

/// The world as it is now.
pub fn of(world: &World) -> String {
    let mut out = format!("at {:.3} s\n", world.trace.elapsed().as_secs_f64());
    for machine in &world.machines {
        node(machine, &mut out);
    }
    match world.checks.newest() {
        Some(state) => services(&state, &mut out),
        None => out.push_str("nobody has applied anything\n"),
    }
    out
}

fn node(machine: &Machine, out: &mut String) {
    let (number, member) = (machine.number, machine.member());
    let Some(running) = machine.running() else {
        let doing = if machine.current_life().is_some() { "starting" } else { "off" };
        line(out, format_args!("machine {number}: node {member} is {doing}"));
        return containers(machine, out);
    };
    let raft = running.handle.raft();
    let leader = match raft.leader {
        Some(leader) if leader == member => "leads".to_owned(),
        Some(leader) => format!("follows node {leader}"),
        None => "hears no leader".to_owned(),
    };
    let (voters, learners) = (ids(&Vec::from_iter(raft.voters())), ids(&raft.learners));
    line(
        out,
        format_args!(
            "machine {number}: node {member} {leader} in term {}, log {}, applied {}, snapshot {}, voters {voters}, learners {learners}",
            raft.term, raft.last_log, raft.applied, raft.snapshot
        ),
    );
    containers(machine, out);
}

fn containers(machine: &Machine, out: &mut String) {
    for (replica, attempt, pid) in machine.containers.running() {
        line(out, format_args!("  container of replica {replica}, attempt {attempt}, process {pid}"));
    }
}

fn services(state: &ClusterState, out: &mut String) {
    line(out, format_args!("the newest state, of index {}:", state.applied));
    for (id, node) in &state.nodes {
        let facts = &node.facts;
        line(out, format_args!("  node {id} ({}) is {:?}, {:?}", facts.name, node.status, node.availability));
    }
    for (name, service) in &state.services {
        let (bounds, version) = (service.spec().replicas, service.current().version);
        let doing = match (service.removing, service.suspended) {
            (true, _) => ", being removed",
            (false, true) => ", stopped",
            (false, false) => "",
        };
        line(
            out,
            format_args!(
                "  service {name}: version {version}, {} of {} to {}{doing}",
                service.desired, bounds.min, bounds.max
            ),
        );
        for (id, replica) in state.replicas.iter().filter(|(_, replica)| replica.service == *name) {
            let lost = if replica.lost_since.is_some() { ", lost" } else { "" };
            line(
                out,
                format_args!(
                    "    slot {}: replica {id} of version {} on node {}, to {:?}, attempt {} {:?}{lost}",
                    replica.slot,
                    replica.version,
                    replica.node,
                    replica.desired,
                    replica.status.attempt,
                    replica.status.phase
                ),
            );
        }
        for (slot, reason) in &service.pending {
            line(out, format_args!("    slot {slot} waits: {reason}"));
        }
    }
}

fn ids(of: &[blixard_core::id::NodeId]) -> String {
    let ids: Vec<String> = of.iter().map(ToString::to_string).collect();
    if ids.is_empty() { "none".to_owned() } else { ids.join(" ") }
}

fn line(out: &mut String, words: std::fmt::Arguments<'_>) {
    writeln!(out, "{words}").expect("a string has room");
}
