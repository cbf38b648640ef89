//! Tells when somebody deletes the node's nftables table, over netlink: `nft flush ruleset`, with
//! which many a firewall's script begins, deletes everyone's. See linux/netfilter/nfnetlink.h and
//! nf_tables.h.

use std::io;

use rtnetlink::sys::constants::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use super::conntrack::{NETFILTER_HEADER, attributes, messages};

/// The group that is told of changes of nftables.
const GROUP: u32 = 7;
const TABLE_ADDED: u16 = 10 << 8;
const TABLE_DELETED: u16 = (10 << 8) | 2;
/// The end of a transaction.
const GENERATION: u16 = (10 << 8) | 15;
const TABLE_NAME: u16 = 1;
/// What the kernel says when messages were lost.
const OVERRUN: i32 = 105;

/// News of tables that are deleted.
pub(super) struct Deletions {
    socket: TokioSocket,
    /// Whether the transaction that is being told of has deleted the table and not made it anew, as
    /// replacing its rules does.
    deleted: bool,
}

impl Deletions {
    /// Listens in the network namespace of this thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(Self { socket, deleted: false })
    }

    /// Waits until a table of this name was deleted, or may have been.
    pub(super) async fn next(&mut self, name: &str) -> io::Result<()> {
        loop {
            let datagram = match self.socket.recv_from_full().await {
                Ok((datagram, _)) => datagram,
                Err(error) if error.raw_os_error() == Some(OVERRUN) => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut gone = false;
            for (kind, body) in messages(&datagram) {
                match kind {
                    TABLE_ADDED | TABLE_DELETED if is_named(body, name) => {
                        self.deleted = kind == TABLE_DELETED
                    }
                    GENERATION => gone |= std::mem::take(&mut self.deleted),
                    _ => {}
                }
            }
            if gone {
                return Ok(());
            }
        }
    }
}

pub(super) fn is_named(body: &[u8], name: &str) -> bool {
    let attributes = attributes(body.get(NETFILTER_HEADER..).unwrap_or_default());
    let names = attributes.filter(|(kind, ..)| *kind == TABLE_NAME).map(|(_, value, _)| value);
    names.into_iter().any(|value| value.strip_suffix(&[0]) == Some(name.as_bytes()))
}
