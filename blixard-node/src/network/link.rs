//! Bridges and link pairs, over netlink.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
};
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
        Some(index) => index,
        None => {
            netlink.link().add(LinkBridge::new(name).build()).execute().await.map_err(failed(what()))?;
            let made = index_of(&netlink, name).await.map_err(failed(what()))?;
            made.ok_or_else(|| failed(what())(Error::RequestFailed))?
        }
    };
    let address = IpAddr::V4(first_host(subnet));
    netlink.address().add(index, address, 24).replace().execute().await.map_err(failed(what()))?;
    netlink.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.map_err(failed(what()))
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

async fn name_of(netlink: &Handle, index: u32) -> Result<String, Error> {
    let link = netlink.link().get().match_index(index).execute().try_next().await?;
    let name = link.into_iter().flat_map(|link| link.attributes).find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    });
    Ok(name.unwrap_or_else(|| format!("device {index}")))
}

/// Links a namespace to the bridge and gives it an address and a way out.
pub(super) async fn connect(
    bridge: &str,
    outside: &str,
    inside: Namespace,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
) -> Result<(), NetworkError> {
    let what = || format!("link a container to the bridge {bridge}");
    let netlink = netlink()?;
    plug(&netlink, bridge, outside, &inside).await.map_err(failed(what()))?;
    set_up(&inside.netlink, address, gateway).await.map_err(failed(what()))
}

async fn plug(netlink: &Handle, bridge: &str, outside: &str, inside: &Namespace) -> Result<(), Error> {
    let bridge = index_of(netlink, bridge).await?.ok_or(Error::RequestFailed)?;
    if let Some(left) = index_of(netlink, outside).await? {
        netlink.link().del(left).execute().await?;
    }
    // The other end is made inside: moving a device to another namespace waits for every CPU.
    let peer = LinkUnspec::new_with_name(INSIDE).setns_by_fd(inside.descriptor.as_raw_fd()).build();
    let pair = LinkVeth::new(outside, INSIDE).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    netlink.link().add(pair.controller(bridge).up().build()).execute().await?;
    let index = index_of(netlink, outside).await?.ok_or(Error::RequestFailed)?;
    // Without it a container cannot reach its own published port: the bridge does not send a
    // frame back where it came from.
    let hairpin = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
    let port = LinkUnspec::new_with_index(index).set_port_kind(InfoPortKind::Bridge).set_port_data(hairpin);
    netlink.link().set_port(port.build()).execute().await
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

/// Deletes the device `name`, if it is there: a link pair goes by either end.
pub(super) async fn delete(name: &str) -> Result<(), NetworkError> {
    let netlink = netlink()?;
    let what = || format!("delete the device {name}");
    if let Some(index) = index_of(&netlink, name).await.map_err(failed(what()))? {
        netlink.link().del(index).execute().await.map_err(failed(what()))?;
    }
    Ok(())
}
