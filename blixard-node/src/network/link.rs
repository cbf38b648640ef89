//! Bridges and link pairs, over netlink.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::{AddressFamily, route::RouteType};
use rtnetlink::{Error, Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::namespace::Namespace;
use super::{NetworkError, first_host, namespace};

/// The name of a container's end of its link pair.
const INSIDE: &str = "eth0";

fn failed(what: impl Into<String>) -> impl FnOnce(Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Netlink { what, source }
}

/// Netlink in the daemon's own namespace.
fn netlink() -> Result<Handle, NetworkError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(NetworkError::io("open a netlink socket"))?;
    namespace::spawn(connection);
    Ok(handle)
}

/// The hardware address of whoever has `address`: locally administered, and the same whenever the
/// address is given out again, so that nobody's memory of it is ever wrong.
fn hardware_address(address: Ipv4Addr) -> Vec<u8> {
    [&[0x02, 0x42], address.octets().as_slice()].concat()
}

/// The index of the device `name`; absent when there is none.
async fn index_of(netlink: &Handle, name: &str) -> Result<Option<u32>, Error> {
    let mut found = netlink.link().get().match_name(name.to_owned()).execute();
    match found.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(Error::NetlinkError(error)) if error.raw_code() == -rustix::io::Errno::NODEV.raw_os_error() => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Makes the bridge with the network's first address, unless it is there.
pub(super) async fn ensure_bridge(name: &str, subnet: Ipv4Addr) -> Result<(), NetworkError> {
    let netlink = netlink()?;
    let what = || format!("make the bridge {name}");
    if let Some(device) = overlapping(&netlink, name, subnet).await.map_err(failed("list addresses"))? {
        return Err(NetworkError::Overlap { subnet, device });
    }
    let index = match index_of(&netlink, name).await.map_err(failed(what()))? {
        Some(index) => {
            keep_hardware_address(&netlink, index, first_host(subnet)).await.map_err(failed(what()))?;
            index
        }
        None => {
            let bridge = LinkBridge::new(name).address(hardware_address(first_host(subnet)));
            netlink.link().add(bridge.build()).execute().await.map_err(failed(what()))?;
            let made = index_of(&netlink, name).await.map_err(failed(what()))?;
            made.ok_or_else(|| failed(what())(Error::RequestFailed))?
        }
    };
    let address = IpAddr::V4(first_host(subnet));
    netlink.address().add(index, address, 24).replace().execute().await.map_err(failed(what()))?;
    netlink.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.map_err(failed(what()))
}

/// Gives a bridge the hardware address that it has. One that was never given any has the lowest of
/// its ports', and a change of it cuts every container off from its gateway until it asks again.
/// The one that follows from its address it was given; to give it again would empty the node's memory
/// of where containers are.
async fn keep_hardware_address(netlink: &Handle, index: u32, bridge: Ipv4Addr) -> Result<(), Error> {
    let link = netlink.link().get().match_index(index).execute().try_next().await?;
    let address = link.into_iter().flat_map(|link| link.attributes).find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address),
        _ => None,
    });
    let Some(address) = address.filter(|own| *own != hardware_address(bridge)) else { return Ok(()) };
    let kept = LinkUnspec::new_with_index(index).address(address).build();
    netlink.link().set(kept).execute().await
}

/// The device other than `bridge` whose network holds or lies in the /24, if any.
async fn overlapping(netlink: &Handle, bridge: &str, subnet: Ipv4Addr) -> Result<Option<String>, Error> {
    let own = index_of(netlink, bridge).await?;
    let mut addresses = netlink.address().get().execute();
    while let Some(address) = addresses.try_next().await? {
        if Some(address.header.index) == own {
            continue;
        }
        let prefix = u32::from(address.header.prefix_len).min(24);
        let overlaps = address.attributes.iter().any(|attribute| match attribute {
            AddressAttribute::Address(IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
                u32::from(*other) & mask == u32::from(subnet) & mask
            }
            _ => false,
        });
        if overlaps {
            return Ok(Some(name_of(netlink, address.header.index).await?));
        }
    }
    Ok(None)
}

/// Every IPv4 address of the node.
pub(super) async fn addresses() -> Result<BTreeSet<Ipv4Addr>, NetworkError> {
    let netlink = netlink()?;
    let list = async {
        let mut found = BTreeSet::new();
        let mut addresses = netlink.address().get().execute();
        while let Some(address) = addresses.try_next().await? {
            found.extend(address.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(own)) | AddressAttribute::Address(IpAddr::V4(own)) => {
                    Some(*own)
                }
                _ => None,
            }));
        }
        Ok(found)
    };
    list.await.map_err(failed("list addresses"))
}

async fn name_of(netlink: &Handle, index: u32) -> Result<String, Error> {
    let link = netlink.link().get().match_index(index).execute().try_next().await?;
    let name = link.into_iter().flat_map(|link| link.attributes).find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    });
    Ok(name.unwrap_or_else(|| format!("device {index}")))
}

/// Links a namespace to the bridge and gives it an address and a way out. The node knows from then on
/// where the address is, without having to ask.
pub(super) async fn connect(
    bridge: &str,
    outside: &str,
    inside: Namespace,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
) -> Result<(), NetworkError> {
    let what = || format!("link a container to the bridge {bridge}");
    let netlink = netlink()?;
    let bridge = index_of(&netlink, bridge).await.map_err(failed(what()))?;
    let bridge = bridge.ok_or_else(|| failed(what())(Error::RequestFailed))?;
    plug(&netlink, bridge, outside, &inside, address).await.map_err(failed(what()))?;
    set_up(&inside.netlink, address, gateway).await.map_err(failed(what()))?;
    know(&netlink, bridge, address).await.map_err(failed(what()))
}

/// Whether the bridge is there; else it is made anew, with the ends of `links` on it, each with the address
/// of its container, which another program has taken it away from.
pub(super) async fn restore_bridge(
    name: &str,
    subnet: Ipv4Addr,
    links: impl Iterator<Item = (String, Ipv4Addr)>,
) -> Result<bool, NetworkError> {
    let what = || format!("make the bridge {name} anew");
    let netlink = netlink()?;
    if index_of(&netlink, name).await.map_err(failed(what()))?.is_some() {
        return Ok(true);
    }
    ensure_bridge(name, subnet).await?;
    let bridge = index_of(&netlink, name).await.map_err(failed(what()))?;
    let bridge = bridge.ok_or_else(|| failed(what())(Error::RequestFailed))?;
    for (outside, address) in links {
        if let Some(index) = index_of(&netlink, &outside).await.map_err(failed(what()))? {
            let link = LinkUnspec::new_with_index(index).controller(bridge).up().build();
            netlink.link().set(link).execute().await.map_err(failed(what()))?;
            hairpin(&netlink, index).await.map_err(failed(what()))?;
            know(&netlink, bridge, address).await.map_err(failed(what()))?;
        }
    }
    Ok(false)
}

/// Tells the node where an address is.
async fn know(netlink: &Handle, bridge: u32, address: Ipv4Addr) -> Result<(), Error> {
    let known = netlink.neighbours().add(bridge, address.into());
    known.link_local_address(&hardware_address(address)).replace().execute().await
}

/// Lets a container reach its own published port: without it the bridge does not send a frame back where
/// it came from.
async fn hairpin(netlink: &Handle, index: u32) -> Result<(), Error> {
    let hairpin = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
    let port = LinkUnspec::new_with_index(index).set_port_kind(InfoPortKind::Bridge).set_port_data(hairpin);
    netlink.link().set_port(port.build()).execute().await
}

async fn plug(
    netlink: &Handle,
    bridge: u32,
    outside: &str,
    inside: &Namespace,
    address: Ipv4Addr,
) -> Result<(), Error> {
    if let Some(left) = index_of(netlink, outside).await? {
        netlink.link().del(left).execute().await?;
    }
    // The other end is made inside: moving a device to another namespace waits for every CPU.
    let peer = LinkUnspec::new_with_name(INSIDE).address(hardware_address(address));
    let peer = peer.setns_by_fd(inside.descriptor.as_raw_fd()).build();
    let pair = LinkVeth::new(outside, INSIDE).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    netlink.link().add(pair.controller(bridge).up().build()).execute().await?;
    let index = index_of(netlink, outside).await?.ok_or(Error::RequestFailed)?;
    hairpin(netlink, index).await
}

async fn set_up(netlink: &Handle, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), Error> {
    for name in ["lo", INSIDE] {
        let index = index_of(netlink, name).await?.ok_or(Error::RequestFailed)?;
        if name == INSIDE {
            netlink.address().add(index, address.into(), 24).execute().await?;
        }
        netlink.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    }
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
    netlink.route().add(route).execute().await
}

/// Deletes a container's link pair, and what the node knows of its address.
pub(super) async fn disconnect(bridge: &str, outside: &str, address: Ipv4Addr) -> Result<(), NetworkError> {
    delete(outside).await?;
    let netlink = netlink()?;
    let what = || format!("forget where {address} was");
    let Some(bridge) = index_of(&netlink, bridge).await.map_err(failed(what()))? else { return Ok(()) };
    let mut known = NeighbourMessage::default();
    known.header.family = AddressFamily::Inet;
    known.header.ifindex = bridge;
    known.header.kind = RouteType::Unspec;
    known.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    match netlink.neighbours().del(known).execute().await {
        Err(Error::NetlinkError(error)) if error.raw_code() == -rustix::io::Errno::NOENT.raw_os_error() => {
            Ok(())
        }
        other => other.map_err(failed(what())),
    }
}

/// Deletes the device `name`, if it is there: a link pair goes by either end.
pub(super) async fn delete(name: &str) -> Result<(), NetworkError> {
    let netlink = netlink()?;
    let what = || format!("delete the device {name}");
    if let Some(index) = index_of(&netlink, name).await.map_err(failed(what()))? {
        netlink.link().del(index).execute().await.map_err(failed(what()))?;
    }
    Ok(())
}
