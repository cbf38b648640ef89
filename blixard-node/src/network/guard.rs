//! Tells when somebody deletes the node's nftables table, over netlink: `nft flush ruleset`, with
//! which many a firewall's script begins, deletes everyone's. See linux/netfilter/nfnetlink.h and
//! nf_tables.h.

use std::io;

use rtnetlink::sys::constants::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use super::conntrack::{NETFILTER_HEADER, attributes, messages};

/// The group that is told of changes of nftables.
const GROUP: u32 = 7;
const TABLE_DELETED: u16 = (10 << 8) | 2;
const TABLE_NAME: u16 = 1;
/// What the kernel says when messages were lost.
const OVERRUN: i32 = 105;

/// News of tables that are deleted.
pub(super) struct Deletions(TokioSocket);

impl Deletions {
    /// Listens in the network namespace of this thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(Self(socket))
    }

    /// Waits until a table of this name may have been deleted. Replacing one deletes it, too.
    pub(super) async fn next(&mut self, name: &str) -> io::Result<()> {
        loop {
            let datagram = match self.0.recv_from_full().await {
                Ok((datagram, _)) => datagram,
                Err(error) if error.raw_os_error() == Some(OVERRUN) => return Ok(()),
                Err(error) => return Err(error),
            };
            if messages(&datagram).any(|(kind, body)| kind == TABLE_DELETED && is_named(body, name)) {
                return Ok(());
            }
        }
    }
}

fn is_named(body: &[u8], name: &str) -> bool {
    let attributes = attributes(body.get(NETFILTER_HEADER..).unwrap_or_default());
    let names = attributes.filter(|(kind, ..)| *kind == TABLE_NAME).map(|(_, value, _)| value);
    names.into_iter().any(|value| value.strip_suffix(&[0]) == Some(name.as_bytes()))
}
