//! What an idle node takes: memory and CPU time, beside an idle member of etcd.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use blixard_tests::cluster::Cluster;

use crate::Plan;
use crate::etcd::Etcd;
use crate::report::{Figure, Section, digits, mebibytes};

/// What an idle node may keep resident.
const RESIDENT_MAX: u64 = 40 << 20;
/// How long everything settles before the clock starts.
const SETTLE: Duration = Duration::from_secs(3);

/// One process over the measured time.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    /// Resident memory at the end.
    bytes: u64,
    /// CPU time over real time.
    cpu: f64,
}

/// The rows.
pub(crate) fn measure(plan: &Plan) -> Result<Vec<Section>> {
    let cluster = Cluster::formed(3)?;
    let etcd = Etcd::start(3)?;
    let nodes: Vec<u32> = cluster.hosts.iter().filter_map(|host| host.pid()).collect();
    let containerds = cluster.hosts.iter().map(|host| host.containerd_pid()).collect::<Result<Vec<_>>>()?;
    let members = etcd.pids();
    std::thread::sleep(SETTLE);
    let all = [nodes, containerds, members];
    let before = all.clone().map(|pids| pids.into_iter().map(cpu_time).collect::<Result<Vec<_>>>());
    std::thread::sleep(plan.idle);
    let mut usages = Vec::new();
    for (pids, before) in all.into_iter().zip(before) {
        let mut worst = Usage::default();
        for (pid, before) in pids.into_iter().zip(before?) {
            let cpu = cpu_time(pid)?.saturating_sub(before).as_secs_f64() / plan.idle.as_secs_f64();
            worst = Usage { bytes: worst.bytes.max(resident(pid)?), cpu: worst.cpu.max(cpu) };
        }
        usages.push(worst);
    }
    let [node, containerd, member] = usages[..] else { unreachable!("three kinds were measured") };
    let memory = |what: &str, usage: Usage| Figure {
        what: what.to_owned(),
        ratio: Some(usage.bytes as f64 / member.bytes as f64),
        value: mebibytes(usage.bytes),
        beside: format!("etcd member {}", mebibytes(member.bytes)),
        aim: None,
    };
    let percent = |share: f64| format!("{}% of a CPU", digits(share * 100.0));
    let cpu = |what: &str, usage: Usage| Figure {
        what: what.to_owned(),
        ratio: (member.cpu > 0.0).then(|| usage.cpu / member.cpu),
        value: percent(usage.cpu),
        beside: format!("etcd member {}", percent(member.cpu)),
        aim: None,
    };
    let figures = vec![
        memory("node: resident memory", node)
            .aim(format!("under {}", mebibytes(RESIDENT_MAX)), node.bytes < RESIDENT_MAX),
        cpu("node: CPU", node),
        memory("its private containerd: resident memory", containerd),
        cpu("its private containerd: CPU", containerd),
    ];
    let how = format!(
        "Three formed nodes that run nothing, for {} s, and three members of etcd in the same time; the largest of \
         the three each, so the leader's. Resident memory holds the pages of the program's file as well.",
        plan.idle.as_secs()
    );
    Ok(vec![Section { title: "An idle node", how, figures }])
}

/// The CPU time a process has used, in user and system mode.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("a measured process has ended")?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<u64>().ok());
    let ticks = ticks(11).zip(ticks(12)).context("no times in stat")?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64((ticks.0 + ticks.1) as f64 / per_second as f64))
}

fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("a measured process has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in status")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}
