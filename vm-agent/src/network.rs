// SPDX-License-Identifier: Apache-2.0
//! Configures the guest's network as the host describes the pod's.
//!
//! The guest's kernel must add neither routes for the networks of addresses nor checks for
//! duplicate addresses: the host's kernel did both, and CNI may have changed the result. It makes
//! only a link-local address, if the host has none yet.

use magnetar_core::error::{Context, Error, Result};
use magnetar_core::netlink::{self, Answer, all};
use magnetar_vm_agent_api::network::{Interface, Mac, Neighbour, Network, Prefix, Route};
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, LinkUnspec};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Configures the network namespace of this thread. Keeps what is there already.
///
/// # Errors
/// `NotFound` for an interface that the guest lacks, or the kernel's error.
pub async fn configure(network: &Network) -> Result<()> {
    netlink::with(|handle| async move {
        let links = all(handle.link().get().execute()).await.context(|| "cannot list the guest's network interfaces".into())?;
        for link in links.iter().filter(|link| link.header.flags.contains(LinkFlags::Loopback)) {
            let up = LinkUnspec::new_with_index(link.header.index).up().build();
            handle.link().set(up).execute().await.context(|| "cannot bring up the loopback interface".into())?;
        }
        let indices = name(&handle, &links, &network.interfaces).await?;
        let index = |name: &String| indices.get(name).copied().ok_or_else(|| Error::not_found(format!("there is no interface {name}")));
        for interface in &network.interfaces {
            bring_up(&handle, index(&interface.name)?, interface).await?;
        }
        for route in &network.routes {
            let message = RouteNetlinkMessage::NewRoute(message(route, index(&route.interface)?));
            // Append, because a route may differ from another only in its interface, as link-local
            // routes do.
            let made = netlink::request(&handle, message, NLM_F_CREATE | NLM_F_APPEND).await;
            made.or_else(there_already).context(|| format!("cannot make the route {}", describe(route)))?;
        }
        for neighbour in &network.neighbours {
            let Neighbour { interface, ip, mac } = neighbour;
            let request = handle.neighbours().add(index(interface)?, *ip).link_layer_address(&mac.0).replace();
            request.execute().await.context(|| format!("cannot make {ip} at {mac} a neighbour of {interface}"))?;
        }
        Ok(())
    })
    .await
}

/// Finds the interfaces by their hardware addresses and names them. Returns their indices by their
/// names.
async fn name(handle: &Handle, links: &[LinkMessage], interfaces: &[Interface]) -> Result<BTreeMap<String, u32>> {
    let mut indices = BTreeMap::new();
    for interface in interfaces {
        let Interface { name, mac, device, .. } = interface;
        let present = device.as_ref().unwrap_or(mac);
        let link = links.iter().find(|link| is(link, *present));
        let index =
            link.ok_or_else(|| Error::not_found(format!("the guest has no interface with address {present}, for {name}")))?.header.index;
        if device.is_some() {
            let message = LinkUnspec::new_with_index(index).address(mac.0.to_vec()).build();
            handle.link().set(message).execute().await.context(|| format!("cannot give {name} the hardware address {mac}"))?;
        }
        if indices.insert(name.clone(), index).is_some() {
            return Err(Error::invalid(format!("two interfaces have the name {name}")));
        }
    }
    // An interface may have the name that another needs, so first give all of them temporary names.
    for (name, index) in &indices {
        rename(handle, *index, &format!("unnamed{index}"))
            .await
            .context(|| format!("cannot give the future interface {name} a temporary name"))?;
    }
    for (name, index) in &indices {
        rename(handle, *index, name).await.context(|| format!("cannot name the interface {name}"))?;
    }
    Ok(indices)
}

fn is(link: &LinkMessage, mac: Mac) -> bool {
    let loopback = link.header.flags.contains(LinkFlags::Loopback);
    !loopback && link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Address(bytes) if bytes == &mac.0))
}

async fn rename(handle: &Handle, index: u32, name: &str) -> Answer<()> {
    handle.link().set(LinkUnspec::new_with_index(index).name(name).build()).execute().await
}

async fn bring_up(handle: &Handle, index: u32, interface: &Interface) -> Result<()> {
    let Interface { name, mtu, addresses, .. } = interface;
    let message = LinkUnspec::new_with_index(index).mtu(*mtu).build();
    handle.link().set(message).execute().await.context(|| format!("cannot set the MTU of {name} to {mtu}"))?;
    if addresses.iter().any(|Prefix { ip, .. }| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())) {
        let told = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![told])).build();
        let what = || format!("cannot keep the kernel from making a link-local address for {name}");
        handle.link().set(message).execute().await.context(what)?;
    }
    for Prefix { ip, length } in addresses {
        let mut request = handle.address().add(index, *ip, *length).replace();
        let flags = if ip.is_ipv6() { AddressFlags::Noprefixroute | AddressFlags::Nodad } else { AddressFlags::Noprefixroute };
        request.message_mut().attributes.push(AddressAttribute::Flags(flags));
        request.execute().await.context(|| format!("cannot give {name} the address {ip}/{length}"))?;
    }
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.context(|| format!("cannot bring up the interface {name}"))
}

fn message(route: &Route, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if route.to.ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
        destination_prefix_length: route.to.length,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: route.scope.into(),
        kind: RouteType::Unicast,
        flags: if route.on_link { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    let gateway = route.gateway.map(|gateway| match gateway {
        IpAddr::V6(gateway) if route.to.ip.is_ipv4() => RouteAttribute::Via(RouteVia::Inet6(gateway)),
        gateway => RouteAttribute::Gateway(gateway.into()),
    });
    message.attributes = vec![RouteAttribute::Oif(index), RouteAttribute::Destination(route.to.ip.into())];
    message.attributes.extend(gateway);
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    message.attributes.extend(route.metric.map(RouteAttribute::Priority));
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

fn describe(route: &Route) -> String {
    let Route { to: Prefix { ip, length }, interface, .. } = route;
    let gateway = route.gateway.map_or_else(String::new, |gateway| format!(" by way of {gateway}"));
    format!("to {ip}/{length}{gateway} on {interface}")
}

/// Accepts a route that exists: the kernel itself makes the route of a link-local address that it
/// made.
fn there_already(error: rtnetlink::Error) -> Answer<()> {
    if netlink::errno(&error) == Some(Errno::EXIST) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests;
