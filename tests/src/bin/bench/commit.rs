//! From a client's request to its acknowledgement: blixard's API beside etcd.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use blixard_tests::cluster::Cluster;
use serde_json::json;

use crate::api::{self, Api};
use crate::etcd::Etcd;
use crate::load::{self, Load, Protocol, Target};
use crate::report::{Figure, Section, duration};
use crate::sample::Samples;
use crate::{Plan, disk};

/// The bytes of one request's body on both sides.
const PAYLOAD_BYTES: usize = 512;
/// How many clients ask at a time.
const CLIENTS: [usize; 3] = [1, 64, 1024];

/// The rows.
pub(crate) fn measure(plan: &Plan) -> Result<Vec<Section>> {
    let cluster = Cluster::formed(3)?;
    let leader = cluster.leader(0)?;
    let api = Api::new(&cluster.hosts[leader])?;
    let etcd = Etcd::start(3)?;
    let contenders = [
        api.submissions(&cluster.hosts[leader], Arc::new(body)),
        etcd.puts(Protocol::Grpc, Arc::new(body))?,
        etcd.puts(Protocol::Http1, Arc::new(body))?,
    ];
    let mut figures = Vec::new();
    let mut floor = Samples::default();
    let mut counts = 0;
    for clients in CLIENTS {
        // Keys and services are made before the clock starts: what is measured replaces them.
        for target in &contenders {
            load::once(target, clients, counts)?;
        }
        let mut loads = [(); 3].map(|()| Load::default());
        for _ in 0..plan.rounds {
            floor.extend(disk::fdatasync(cluster.directory(), Duration::from_millis(300))?);
            for (target, load) in contenders.iter().zip(&mut loads) {
                counts += 1_000_000;
                load.extend(round(target, clients, plan.round, counts)?);
            }
        }
        let [ours, grpc, gateway] = &loads;
        figures.extend(compare(clients, ours, "etcd gRPC", grpc, true));
        figures.extend(compare(clients, ours, "etcd JSON", gateway, false));
        if clients == 1 {
            let what = "1 client: p50 beside one fdatasync";
            figures.push(Figure::duration(what, ours.samples.p50(), "fdatasync", floor.p50()));
        }
    }
    let floor = format!("fdatasync p50 {}, p99 {}", duration(floor.p50()), duration(floor.p99()));
    figures.push(Figure::plain("the disk, in the same run", String::new(), floor));
    let how = format!(
        "Three blixard nodes and three members of Debian's etcd, all on hosts of their own (network namespaces) and \
         one disk, both durable before they acknowledge. A client keeps one TCP connection to the leader and sends \
         its next request when the last is answered. Requests carry {PAYLOAD_BYTES} bytes: a service's \
         specification, which blixard checks, stores as a new version and plans for, and which etcd stores as a \
         value. blixard speaks HTTP/1.1 and JSON; etcd was asked over its own gRPC and over its JSON gateway \
         (HTTP/1.1), which needs the value in base64. Aims are judged against gRPC, the faster of the two."
    );
    Ok(vec![Section { title: "Client to acknowledgement, three durable nodes", how, figures }])
}

fn round(target: &Target, clients: usize, time: Duration, first: u64) -> Result<Load> {
    load::run(target, clients, time, first)
}

fn compare(clients: usize, ours: &Load, peer: &str, theirs: &Load, judged: bool) -> Vec<Figure> {
    let who = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
    let p50 = Figure::duration(format!("{who}: p50"), ours.samples.p50(), peer, theirs.samples.p50());
    let p99 = Figure::duration(format!("{who}: p99"), ours.samples.p99(), peer, theirs.samples.p99());
    let rate = Figure::rate(format!("{who}: acknowledged"), ours.rate(), peer, theirs.rate());
    match (judged, clients) {
        (false, _) => vec![p50, p99, rate],
        (true, 1) => vec![p50.at_most(0.5), p99, rate],
        (true, _) => vec![p50, p99, rate.at_least(1.0)],
    }
}

/// One request's body; another one for every client and count.
pub(crate) fn body(client: usize, count: u64) -> Vec<u8> {
    let of = |note: &str| json!({"spec": api::unplaceable(&format!("bench-{client:04}"), note)}).to_string();
    let note = format!("{count:012}");
    let bare = of(&note).len();
    of(&format!("{note}{}", "x".repeat(PAYLOAD_BYTES.saturating_sub(bare)))).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_has_the_same_size_and_other_bytes() {
        let bodies = [body(0, 0), body(0, 1), body(1023, 987_654_321)];
        assert!(bodies.iter().all(|body| body.len() == PAYLOAD_BYTES));
        assert_ne!(bodies[0], bodies[1]);
    }
}
