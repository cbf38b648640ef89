//! Announcements on the simulated local network: they come late, are lost for a while, are heard twice,
//! stay after whoever made them is gone, and some are forged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blixard_core::discovery::announce::{self, Announcement, Heard, NODES};
use blixard_core::id::{ClusterId, NodeId, NodeKey};
use blixard_node::platform::Announcer;
use tokio::time::Instant;

use crate::net::Net;
use crate::random::Stream;

/// How late an announcement is heard at most, in milliseconds.
const LATE_MS_MAX: u64 = 1_500;
/// The chance that somebody does not hear an announcement at one look, in thousandths.
const LOST: u64 = 300;
/// The chance that somebody hears one twice.
const DOUBLED: u64 = 100;
/// The chance that somebody hears one that nobody of the world made.
const FORGED: u64 = 200;

/// What is in the air. Cloning shares it.
#[derive(Clone)]
pub struct Ether(Arc<Mutex<Air>>);

struct Air {
    random: Stream,
    /// What each machine announced last as its node, and from when on it is heard.
    said: BTreeMap<u64, (Instant, BTreeSet<Announcement>)>,
}

impl Ether {
    /// Silence.
    pub fn new(seed: u64) -> Self {
        let random = Stream::new(seed, "ether");
        Self(Arc::new(Mutex::new(Air { random, said: BTreeMap::new() })))
    }

    fn air(&self) -> MutexGuard<'_, Air> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One machine's side.
pub struct SimAnnouncer {
    /// What is in the air.
    pub ether: Ether,
    /// The network that carries it.
    pub net: Net,
    /// The machine.
    pub machine: u64,
}

impl Announcer for SimAnnouncer {
    fn announce(&self, all: BTreeSet<Announcement>) {
        let nodes: BTreeSet<Announcement> = all.into_iter().filter(|said| said.service == NODES).collect();
        let mut air = self.ether.air();
        if air.said.get(&self.machine).is_some_and(|(_, before)| *before == nodes) {
            return;
        }
        let late = Duration::from_millis(air.random.below(LATE_MS_MAX));
        air.said.insert(self.machine, (Instant::now() + late, nodes));
    }

    fn nodes(&self) -> Result<Vec<Heard>, String> {
        let now = Instant::now();
        let air = self.ether.air();
        let mut heard = Vec::new();
        for (machine, (from, said)) in &air.said {
            let arrives =
                *machine != self.machine && *from <= now && self.net.reaches(*machine, self.machine);
            for announcement in said.iter().filter(|_| arrives) {
                if air.random.chance(LOST) {
                    continue;
                }
                heard.push(as_heard(*machine, announcement));
                if air.random.chance(DOUBLED) {
                    heard.push(as_heard(*machine, announcement));
                }
            }
        }
        if air.random.chance(FORGED) {
            let cluster = ClusterId([0x5a; 16]);
            let forged = announce::node(NodeId(1), NodeKey([0x5a; 32]), cluster, 7001, "0.1.0");
            heard.push(as_heard(250, &forged));
        }
        Ok(heard)
    }
}

fn as_heard(machine: u64, said: &Announcement) -> Heard {
    let host = u8::try_from(machine).unwrap_or(u8::MAX);
    let texts = said.texts.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    Heard { addresses: vec![IpAddr::from([10, 77, 0, host])], port: said.port, texts: texts.collect() }
}
