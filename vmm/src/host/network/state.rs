// SPDX-License-Identifier: Apache-2.0
//! Reads the network configuration of a namespace, and derives the guest's from it.

use magnetar_core::error::{Context, Error, Result};
use magnetar_core::netlink::all;
use magnetar_vm_agent_api::network::{Interface, Mac, Neighbour, Network, Prefix, Route};
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHopFlags, RouteType, RouteVia,
};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tracing::{debug, warn};

/// The tables that every namespace has. The kernel fills the local one (255); 253 is empty.
const TABLES: [u32; 3] = [253, MAIN, 255];
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// The prefix of our taps' names. A number follows.
pub const TAP: &str = "mag";

/// A guest's interfaces by index.
pub type Interfaces = BTreeMap<u32, Interface>;

/// The network configuration of a namespace.
#[derive(Debug, Default)]
pub struct State {
    /// Its interfaces.
    pub links: Vec<LinkMessage>,
    /// Their addresses.
    pub addresses: Vec<AddressMessage>,
    /// The routes of all tables.
    pub routes: Vec<RouteMessage>,
    /// Neighbours of all states.
    pub neighbours: Vec<NeighbourMessage>,
}

impl State {
    /// Reads it from the kernel.
    pub async fn read(handle: &Handle) -> Result<Self> {
        let what = || "cannot read the pod's network".to_string();
        Ok(Self {
            links: super::links(handle).await?,
            addresses: all(handle.address().get().execute()).await.context(what)?,
            routes: all(handle.route().get(RouteMessage::default()).execute()).await.context(what)?,
            neighbours: all(handle.neighbours().get().execute()).await.context(what)?,
        })
    }

    /// The interfaces for a guest, with their addresses. `Unimplemented` for an interface that a
    /// guest cannot have.
    pub fn interfaces(&self) -> Result<Interfaces> {
        let mut interfaces = Interfaces::new();
        for link in &self.links {
            let Some(mut interface) = interface(link)? else { continue };
            let index = link.header.index;
            if let Some(twin) = interfaces.values().find(|other| other.mac == interface.mac) {
                let (first, second, mac) = (&twin.name, &interface.name, interface.mac);
                return Err(Error::unimplemented(format!(
                    "a virtual machine cannot have the pod's interfaces {first} and {second}: both have the hardware address {mac}"
                )));
            }
            interface.addresses = self.addresses.iter().filter(|address| address.header.index == index).filter_map(prefix).collect();
            interfaces.insert(index, interface);
        }
        Ok(interfaces)
    }

    /// The configuration for a guest with these interfaces.
    pub fn network(&self, interfaces: Interfaces) -> Network {
        let mut routes: Vec<_> = self.routes.iter().filter_map(|message| route(message, &interfaces)).collect();
        // Routes without a gateway come first, then by narrower scope, because the kernel resolves
        // a gateway through an existing route of a narrower scope.
        routes.sort_by_key(|route| (route.gateway.is_some(), Reverse(route.scope)));
        let elsewhere = self.routes.iter().filter(|route| !TABLES.contains(&table(route))).count();
        if elsewhere > 0 {
            warn!(elsewhere, "the pod has routes in additional routing tables, which its virtual machine does not get");
        }
        let neighbours = self.neighbours.iter().filter_map(|message| neighbour(message, &interfaces)).collect();
        Network { interfaces: interfaces.into_values().collect(), routes, neighbours }
    }
}

/// Whether this is a tap device of ours.
pub fn is_tap(link: &LinkMessage) -> bool {
    let number = name(link).strip_prefix(TAP);
    number.is_some_and(|number| number.parse::<u32>().is_ok()) && kind(link) == Some(&InfoKind::Tun)
}

/// The name of an interface.
pub fn name(link: &LinkMessage) -> &str {
    let name = link.attributes.iter().find_map(|attribute| if let LinkAttribute::IfName(name) = attribute { Some(name) } else { None });
    name.map_or("", String::as_str)
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    let infos =
        link.attributes.iter().find_map(|attribute| if let LinkAttribute::LinkInfo(infos) = attribute { Some(infos) } else { None });
    infos?.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None })
}

/// An interface without its addresses; `None` if the guest does not get it.
fn interface(link: &LinkMessage) -> Result<Option<Interface>> {
    let (name, flags) = (name(link), link.header.flags);
    // A port of a bridge or bond is used through that bridge or bond.
    let has_master = link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_)));
    if flags.contains(LinkFlags::Loopback) || is_tap(link) || has_master {
        return Ok(None);
    }
    let ethernet = link.header.link_layer_type == LinkLayerType::Ether;
    if !flags.contains(LinkFlags::Up) {
        // Some kernels create unused tunnels in every namespace.
        if ethernet {
            warn!(interface = name, "an interface of the pod is down, so its virtual machine does not get it");
        } else {
            debug!(interface = name, "an interface of the pod is down");
        }
        return Ok(None);
    }
    let kind = kind(link);
    let refused = |why| {
        let kind = kind.map_or_else(|| "device".into(), |kind| format!("{kind} device"));
        Err(Error::unimplemented(format!("a virtual machine cannot have the pod's interface {name}, a {kind}: {why}")))
    };
    let (mut mac, mut mtu) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
            LinkAttribute::Mtu(bytes) => mtu = Some(*bytes),
            _ => {}
        }
    }
    let (true, Some(mac), Some(mtu)) = (ethernet, mac, mtu) else {
        return refused("it is no Ethernet");
    };
    // For example an ipvlan of layer 3, or a VRF. A dummy is allowed: it only discards what it is
    // sent.
    if flags.contains(LinkFlags::Noarp) && kind != Some(&InfoKind::Dummy) {
        return refused("it does not resolve neighbours (NOARP)");
    }
    Ok(Some(Interface { name: name.into(), mac, device: None, mtu, addresses: Vec::new() }))
}

/// An interface's own address; `None` for an address that is unusable or temporary.
fn prefix(message: &AddressMessage) -> Option<Prefix> {
    let (mut ip, mut peer) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => ip = Some(*local),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = ip.or(peer)?;
    // IPv6 marks temporary addresses with the flag that IPv4 uses for secondary addresses.
    if flags.contains(AddressFlags::Dadfailed) || (ip.is_ipv6() && flags.contains(AddressFlags::Secondary)) {
        return None;
    }
    // With a peer address, the prefix length belongs to the peer, and the kernel has a route to it.
    let length = if peer.is_none_or(|peer| peer == ip) { message.header.prefix_len } else { whole(ip) };
    Some(Prefix { ip, length })
}

/// A route for a guest with these interfaces; `None` for one that it cannot have.
fn route(message: &RouteMessage, interfaces: &Interfaces) -> Option<Route> {
    let header = &message.header;
    let anywhere = match header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    if table(message) != MAIN || header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let to = Prefix { ip: anywhere, length: header.destination_prefix_length };
    let on_link = header.flags.contains(RouteFlags::Onlink);
    let scope = header.scope.into();
    let mut route = Route { to, gateway: None, interface: String::new(), source: None, mtu: None, scope, on_link, metric: None };
    let mut leaves_by = None;
    let mut attributes: Vec<_> = message.attributes.iter().collect();
    if let Some(hops) =
        attributes.iter().find_map(|attribute| if let RouteAttribute::MultiPath(hops) = attribute { Some(hops) } else { None })
    {
        let first = hops.first()?;
        warn!(?to, ways = hops.len(), "a virtual machine uses only the first hop of a multipath route");
        leaves_by = Some(first.interface_index);
        route.on_link = first.flags.contains(RouteNextHopFlags::Onlink);
        attributes.extend(&first.attributes);
    }
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.to.ip = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = Some(ip(address)?),
            RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => route.source = Some(ip(address)?),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Oif(index) => leaves_by = Some(*index),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None });
            }
            RouteAttribute::Encap(_) => {
                warn!(?to, "a virtual machine does not get routes with encapsulation");
                return None;
            }
            _ => {}
        }
    }
    route.interface.clone_from(&interfaces.get(&leaves_by?)?.name);
    Some(route)
}

fn table(message: &RouteMessage) -> u32 {
    let table =
        message.attributes.iter().find_map(|attribute| if let RouteAttribute::Table(table) = attribute { Some(*table) } else { None });
    table.unwrap_or(message.header.table.into())
}

/// A permanent neighbour entry.
fn neighbour(message: &NeighbourMessage, interfaces: &Interfaces) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(IpAddr::from(*address)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => ip = Some(IpAddr::from(*address)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
            _ => {}
        }
    }
    let interface = interfaces.get(&message.header.ifindex)?.name.clone();
    Some(Neighbour { interface, ip: ip?, mac: mac? })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn whole(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests;
