//! A local network of namespaces: one bridge, any number of hosts on it.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use crate::cleanup;
use crate::command::run;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One Ethernet segment, 10.77.0.0/24, in a namespace of its own; gone when dropped.
#[derive(Debug)]
pub struct Lan {
    name: String,
}

impl Lan {
    /// Makes the segment. Its own address, from which tests and registries speak, is
    /// 10.77.0.254.
    ///
    /// # Errors
    /// When the kernel or a missing permission forbids namespaces or bridges.
    pub fn new() -> Result<Self> {
        cleanup::sweep();
        cleanup::check_interrupted()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{number}", cleanup::prefix(std::process::id()));
        run("ip", &["netns", "add", &name])?;
        let lan = Self { name };
        lan.ip(&["link", "set", "lo", "up"])?;
        lan.ip(&["link", "add", "lan", "type", "bridge"])?;
        lan.ip(&["addr", "add", &format!("{}/24", Self::gateway()), "dev", "lan"])?;
        lan.ip(&["link", "set", "lan", "up"])?;
        Ok(lan)
    }

    /// The segment's own address.
    pub fn gateway() -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 254)
    }

    /// The namespace the bridge is in: the place to stand in to see the hosts from outside.
    pub fn namespace(&self) -> &str {
        &self.name
    }

    /// The namespace of host `number`.
    pub fn namespace_of(&self, number: u8) -> String {
        format!("{}-{number}", self.name)
    }

    /// Makes the namespace of host `number` and plugs it in with `address`.
    ///
    /// # Errors
    /// When it exists already.
    pub fn plug_host(&self, number: u8, address: Ipv4Addr) -> Result<()> {
        let host = self.namespace_of(number);
        run("ip", &["netns", "add", &host])?;
        let port = format!("p{number}");
        self.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &host])?;
        self.ip(&["link", "set", &port, "master", "lan", "up"])?;
        let ip = |arguments: &[&str]| run("ip", &[&["-n", &host], arguments].concat()).map(drop);
        ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "set", "eth0", "up"])?;
        ip(&["route", "add", "default", "via", &Self::gateway().to_string()])
    }

    /// Removes the namespace of host `number` with every interface and firewall rule in it.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn unplug_host(&self, number: u8) -> Result<()> {
        // The cable goes first: a namespace lives on while anything holds it open.
        self.ip(&["link", "delete", &format!("p{number}")])?;
        run("ip", &["netns", "delete", &self.namespace_of(number)]).map(drop)
    }

    /// Pulls host `number`'s cable, or plugs it back.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn set_cable(&self, number: u8, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        self.ip(&["link", "set", &format!("p{number}"), state])
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        run("ip", &[&["-n", &self.name], arguments].concat()).map(drop)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let listed = run("ip", &["netns", "list"]).unwrap_or_default();
        let names = listed.lines().filter_map(|line| line.split_whitespace().next());
        let own = format!("{}-", self.name);
        for name in names.filter(|name| *name == self.name || name.starts_with(&own)) {
            // Nothing more can be done about a namespace that does not go.
            run("ip", &["netns", "delete", name]).ok();
        }
    }
}
