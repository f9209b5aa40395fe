// SPDX-License-Identifier: Apache-2.0
//! What the guest gets of various kernel configurations.

use super::*;
use magnetar_core::error::Code;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::route::{RouteNextHop, RouteScope};

const ETH0: u32 = 2;
const ETH1: u32 = 3;

fn link(index: u32, name: &str, kind: InfoKind) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.link_layer_type = LinkLayerType::Ether;
    link.header.flags = LinkFlags::Up | LinkFlags::Broadcast;
    let mac = vec![2, 0, 0, 0, 0, index as u8];
    link.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Mtu(9000),
        LinkAttribute::Address(mac),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
    ];
    link
}

fn links(links: impl Into<Vec<LinkMessage>>) -> State {
    State { links: links.into(), ..State::default() }
}

fn names(state: &State) -> Vec<String> {
    state.interfaces().unwrap().into_values().map(|interface| interface.name).collect()
}

fn refused(state: &State) -> String {
    let error = state.interfaces().unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    error.to_string()
}

#[test]
fn a_guest_gets_the_ethernet_interfaces_that_are_up() {
    let mut loopback = link(1, "lo", InfoKind::Dummy);
    loopback.header.flags |= LinkFlags::Loopback;
    let mut down = link(4, "eth2", InfoKind::Veth);
    down.header.flags.remove(LinkFlags::Up);
    let mut unused = link(5, "tunl0", InfoKind::IpIp);
    unused.header.flags.remove(LinkFlags::Up);
    unused.header.link_layer_type = LinkLayerType::Tunnel;
    let mut port = link(6, "port", InfoKind::Veth);
    port.attributes.push(LinkAttribute::Controller(7));
    let mut dummy = link(8, "dummy0", InfoKind::Dummy);
    dummy.header.flags |= LinkFlags::Noarp;
    let bridge = link(7, "br0", InfoKind::Bridge);
    let (ours, like_ours) = (link(9, "mag0", InfoKind::Tun), link(10, "mag0", InfoKind::Veth));
    let (first, second) = (link(ETH0, "eth0", InfoKind::Veth), link(ETH1, "net1", InfoKind::MacVlan));
    let state = links([loopback, second, first, down, unused, port, bridge, dummy, ours, like_ours]);
    assert_eq!(names(&state), ["eth0", "net1", "br0", "dummy0", "mag0"]);
}

#[test]
fn unsupported_interfaces_are_refused_by_name() {
    let mut wireguard = link(4, "wg0", InfoKind::Wireguard);
    wireguard.header.link_layer_type = LinkLayerType::None;
    assert!(refused(&links([wireguard])).contains("wg0, a wireguard device: it is no Ethernet"));
    let mut ipvlan = link(4, "ipvl0", InfoKind::IpVlan);
    ipvlan.header.flags |= LinkFlags::Noarp;
    assert!(refused(&links([ipvlan])).contains("ipvl0, a ipvlan device: it does not resolve neighbours"));
    let mut vlan = link(4, "eth0.7", InfoKind::Vlan);
    vlan.attributes[2] = LinkAttribute::Address(vec![2, 0, 0, 0, 0, ETH0 as u8]);
    let message = refused(&links([link(ETH0, "eth0", InfoKind::Veth), vlan]));
    assert!(message.contains("eth0 and eth0.7") && message.contains("02:00:00:00:00:02"), "{message}");
}

fn address(index: u32, length: u8, attributes: impl Into<Vec<AddressAttribute>>) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = length;
    message.attributes = attributes.into();
    message
}

#[test]
fn only_the_interfaces_own_addresses_are_kept() {
    use AddressAttribute::{Address, Flags, Local};
    let at = |text: &str| text.parse::<IpAddr>().unwrap();
    let mut failed = address(ETH0, 64, [Address(at("2001:db8::9"))]);
    failed.header.flags = AddressHeaderFlags::Dadfailed;
    let addresses = vec![
        address(1, 8, [Address(at("127.0.0.1"))]),
        address(ETH0, 24, [Address(at("10.0.0.2")), Local(at("10.0.0.2"))]),
        address(ETH0, 24, [Address(at("10.0.0.3")), Local(at("10.0.0.3")), Flags(AddressFlags::Secondary)]),
        address(ETH0, 30, [Address(at("10.1.0.1")), Local(at("10.1.0.2"))]),
        address(ETH0, 64, [Address(at("fe80::2")), Flags(AddressFlags::Tentative)]),
        address(ETH0, 64, [Address(at("2001:db8::8")), Flags(AddressFlags::Secondary)]),
        failed,
    ];
    let state = State { addresses, ..links([link(ETH0, "eth0", InfoKind::Veth)]) };
    let interfaces = state.interfaces().unwrap();
    let addresses: Vec<_> = interfaces[&ETH0].addresses.iter().map(|Prefix { ip, length }| format!("{ip}/{length}")).collect();
    assert_eq!(addresses, ["10.0.0.2/24", "10.0.0.3/24", "10.1.0.2/32", "fe80::2/64"]);
}

fn to(text: &str, length: u8, attributes: impl Into<Vec<RouteAttribute>>) -> RouteMessage {
    let ip: IpAddr = text.parse().unwrap();
    let mut message = RouteMessage::default();
    message.header.address_family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.header.destination_prefix_length = length;
    message.attributes = attributes.into();
    if length > 0 {
        message.attributes.push(RouteAttribute::Destination(ip.into()));
    }
    message
}

fn by(text: &str) -> RouteAttribute {
    RouteAttribute::Gateway(text.parse::<IpAddr>().unwrap().into())
}

fn guest_routes(routes: Vec<RouteMessage>) -> Vec<Route> {
    let state = State { routes, ..links([link(ETH0, "eth0", InfoKind::Veth), link(ETH1, "net1", InfoKind::Veth)]) };
    state.network(state.interfaces().unwrap()).routes
}

#[test]
fn gateway_routes_come_after_the_routes_to_their_gateways() {
    let oif = RouteAttribute::Oif(ETH0);
    let mut link = to("169.254.1.1", 32, [oif.clone()]);
    link.header.scope = RouteScope::Link;
    let mut on_link = to("0.0.0.0", 0, [by("169.254.1.1"), oif.clone()]);
    on_link.header.flags = RouteFlags::Onlink;
    let six = to("::", 0, [by("fe80::1"), oif.clone(), RouteAttribute::Priority(1024)]);
    let routes = guest_routes(vec![on_link, six, link, to("fe80::", 64, [oif])]);
    let order: Vec<_> = routes.iter().map(|route| (route.to.length, route.gateway.is_some(), route.on_link, route.metric)).collect();
    assert_eq!(order, [(32, false, false, None), (64, false, false, None), (0, true, true, None), (0, true, false, Some(1024))]);
    assert_eq!(routes[0].scope, 253);
    assert_eq!(routes[3].gateway, Some("fe80::1".parse().unwrap()));
}

#[test]
fn routes_of_the_kernel_and_of_others_are_left_out() {
    let oif = RouteAttribute::Oif(ETH0);
    let mut local = to("10.0.0.2", 32, [oif.clone()]);
    local.header.table = 255;
    let mut policy = to("10.2.0.0", 16, [oif.clone(), RouteAttribute::Table(1000)]);
    policy.header.table = 252;
    let mut multicast = to("ff00::", 8, [oif.clone()]);
    multicast.header.kind = RouteType::Multicast;
    let mut blackhole = to("10.3.0.0", 16, []);
    blackhole.header.kind = RouteType::BlackHole;
    let mut cached = to("10.4.0.0", 16, [oif.clone()]);
    cached.header.flags = RouteFlags::Cloned;
    let elsewhere = to("10.5.0.0", 16, [RouteAttribute::Oif(1)]);
    let wrapped = to("10.6.0.0", 16, [oif, RouteAttribute::Encap(Vec::new())]);
    assert_eq!(guest_routes(vec![local, policy, multicast, blackhole, cached, elsewhere, wrapped]), []);
}

#[test]
fn a_route_keeps_its_supported_attributes() {
    let via = RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()));
    let metrics = RouteAttribute::Metrics(vec![RouteMetric::Advmss(1400), RouteMetric::Mtu(1450)]);
    let source = RouteAttribute::PrefSource(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 2)));
    let route = &guest_routes(vec![to("10.2.0.0", 16, [via, metrics, source, RouteAttribute::Oif(ETH1)])])[0];
    assert_eq!((route.gateway, route.mtu, route.interface.as_str()), (Some("fe80::1".parse().unwrap()), Some(1450), "net1"));
    assert_eq!(route.source, Some(IpAddr::from([10, 0, 0, 2])));

    let hop = |index, gateway| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = index;
        hop.flags = RouteNextHopFlags::Onlink;
        hop.attributes = vec![by(gateway)];
        hop
    };
    let ways = RouteAttribute::MultiPath(vec![hop(ETH1, "10.0.0.1"), hop(ETH0, "10.0.0.9")]);
    let route = &guest_routes(vec![to("0.0.0.0", 0, [ways])])[0];
    assert_eq!((route.gateway, route.interface.as_str(), route.on_link), (Some("10.0.0.1".parse().unwrap()), "net1", true));
}

#[test]
fn only_permanent_neighbours_are_kept() {
    let neighbour = |index, state, mac: &[u8]| {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = index;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(169, 254, 1, 1))),
            NeighbourAttribute::LinkLayerAddress(mac.into()),
        ];
        message
    };
    let mac = [2, 0, 0, 0, 0, 1];
    let neighbours = vec![
        neighbour(ETH0, NeighbourState::Reachable, &mac),
        neighbour(1, NeighbourState::Permanent, &mac),
        neighbour(ETH0, NeighbourState::Permanent, &[]),
        neighbour(ETH0, NeighbourState::Permanent, &mac),
    ];
    let state = State { neighbours, ..links([link(ETH0, "eth0", InfoKind::Veth)]) };
    let expected = Neighbour { interface: "eth0".into(), ip: "169.254.1.1".parse().unwrap(), mac: Mac(mac) };
    assert_eq!(state.network(state.interfaces().unwrap()).neighbours, [expected]);
}
