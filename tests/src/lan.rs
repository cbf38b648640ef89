//! A local network of namespaces: one bridge, any number of hosts on it.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

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
        let name = format!("bx{:x}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
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

    /// Makes the namespace of host `number` and plugs it in as 10.77.0.`number`.
    ///
    /// # Errors
    /// When it exists already.
    pub fn plug_host(&self, number: u8) -> Result<String> {
        let host = format!("{}-{number}", self.name);
        run("ip", &["netns", "add", &host])?;
        let port = format!("p{number}");
        self.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &host])?;
        self.ip(&["link", "set", &port, "master", "lan", "up"])?;
        self.readdress(number, Ipv4Addr::new(10, 77, 0, number))?;
        Ok(host)
    }

    /// Gives host `number` another address in place of those it has.
    ///
    /// # Errors
    /// When the address is taken within the namespace.
    pub fn readdress(&self, number: u8, address: Ipv4Addr) -> Result<()> {
        let host = format!("{}-{number}", self.name);
        run("ip", &["-n", &host, "addr", "flush", "dev", "eth0"])?;
        run("ip", &["-n", &host, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        run("ip", &["-n", &host, "link", "set", "lo", "up"])?;
        run("ip", &["-n", &host, "link", "set", "eth0", "up"])?;
        run("ip", &["-n", &host, "route", "replace", "default", "via", &Self::gateway().to_string()])?;
        Ok(())
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
        for name in names.filter(|name| *name == self.name || name.starts_with(&format!("{}-", self.name))) {
            // Nothing more can be done about a namespace that does not go.
            run("ip", &["netns", "delete", name]).ok();
        }
    }
}
