// SPDX-License-Identifier: Apache-2.0
//! Tests the configuration in a network namespace of its own. That needs root; without it the tests
//! say that they are skipped.

use super::*;
use magnetar_core::error::Code;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkVeth;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use std::io::Write as _;

const FIRST: Mac = Mac([2, 0, 0, 0, 7, 1]);
const SECOND: Mac = Mac([2, 0, 0, 0, 7, 2]);

/// Runs `test` in a network namespace that ends with it, and has two interfaces: `eth0`, which is
/// `SECOND`, and `eth1`.
fn in_guest(test: impl AsyncFnOnce(Handle) -> Result<()> + Send) {
    std::thread::scope(|scope| {
        let body = move || {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                // Written past libtest's capture, so that the log shows that this test ran nothing.
                let _unheard = writeln!(std::io::stderr(), "skipped: a network namespace needs root ({error})");
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let whole = netlink::with(|handle| async move {
                let veth = LinkVeth::new("eth0", "eth1").address(SECOND.0.to_vec()).build();
                handle.link().add(veth).execute().await.unwrap();
                let first = LinkUnspec::new_with_name("eth1").address(FIRST.0.to_vec()).build();
                handle.link().set(first).execute().await.unwrap();
                test(handle).await
            });
            runtime.block_on(whole).unwrap();
        };
        scope.spawn(body).join().unwrap();
    });
}

fn prefix(text: &str) -> Prefix {
    let (ip, length) = text.split_once('/').unwrap();
    Prefix { ip: ip.parse().unwrap(), length: length.parse().unwrap() }
}

fn interface(name: &str, mac: Mac, addresses: &[&str]) -> Interface {
    Interface { name: name.into(), mac, device: None, mtu: 9000, addresses: addresses.iter().map(|text| prefix(text)).collect() }
}

fn route(to: &str, gateway: Option<&str>, interface: &str) -> Route {
    let scope = if gateway.is_none() && !to.contains(':') { 253 } else { 0 };
    let gateway = gateway.map(|gateway| gateway.parse().unwrap());
    Route { to: prefix(to), gateway, interface: interface.into(), source: None, mtu: None, scope, on_link: false, metric: None }
}

async fn link(handle: &Handle, name: &str) -> LinkMessage {
    all(handle.link().get().match_name(name).execute()).await.unwrap().remove(0)
}

/// The addresses of an interface, as text. Asserts that none is checked for duplicates, and that
/// none made a route.
async fn addresses(handle: &Handle, index: u32) -> Vec<String> {
    let mut found: Vec<_> =
        all(handle.address().get().set_link_index_filter(index).execute()).await.unwrap().iter().map(describe_address).collect();
    found.sort();
    found
}

fn describe_address(message: &AddressMessage) -> String {
    let ip = message.attributes.iter().find_map(|attribute| if let AddressAttribute::Address(ip) = attribute { Some(ip) } else { None });
    let flags =
        message.attributes.iter().find_map(|attribute| if let AddressAttribute::Flags(flags) = attribute { Some(*flags) } else { None });
    let flags = flags.unwrap();
    assert!(!flags.contains(AddressFlags::Tentative), "{message:?}");
    assert!(flags.contains(AddressFlags::Noprefixroute), "{message:?}");
    format!("{}/{}", ip.unwrap(), message.header.prefix_len)
}

/// The unicast routes of the main table, as text.
async fn routes(handle: &Handle) -> Vec<String> {
    let dump = all(handle.route().get(RouteMessage::default()).execute()).await.unwrap();
    let kept = dump.iter().filter(|route| route.header.table == RouteHeader::RT_TABLE_MAIN && route.header.kind == RouteType::Unicast);
    let mut found: Vec<_> = kept.map(describe_route).collect();
    found.sort();
    found
}

fn describe_route(message: &RouteMessage) -> String {
    let mut words = vec![format!("/{}", message.header.destination_prefix_length)];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => words.push(format!("{to:?}")),
            RouteAttribute::Gateway(by) => words.push(format!("by {by:?}")),
            RouteAttribute::Via(by) => words.push(format!("by {by:?}")),
            RouteAttribute::Oif(index) => words.push(format!("on {index}")),
            RouteAttribute::Priority(metric) => words.push(format!("metric {metric}")),
            RouteAttribute::Metrics(metrics) => words.push(format!("with {metrics:?}")),
            RouteAttribute::PrefSource(source) => words.push(format!("from {source:?}")),
            _ => {}
        }
    }
    if message.header.flags.contains(RouteFlags::Onlink) {
        words.push("onlink".into());
    }
    // Kernels differ in the order of attributes.
    words.sort();
    words.join(" ")
}

#[test]
fn the_guest_gets_the_pod_s_network() {
    in_guest(async |handle| {
        let on_link = Route { on_link: true, ..route("0.0.0.0/0", Some("169.254.1.1"), "eth0") };
        let narrow = Route { mtu: Some(1450), metric: Some(7), ..route("10.4.0.0/16", Some("10.3.0.1"), "eth1") };
        let from = Route { source: Some("10.3.0.2".parse().unwrap()), ..route("10.3.0.0/24", None, "eth1") };
        let network = Network {
            interfaces: vec![
                // Each gets the current name of the other.
                interface("eth0", FIRST, &["10.2.0.9/32", "fe80::7:1/64", "2001:db8:2::9/64"]),
                interface("eth1", SECOND, &["10.3.0.2/24", "fe80::7:2/64"]),
            ],
            routes: vec![
                route("169.254.1.1/32", None, "eth0"),
                from,
                Route { metric: Some(256), ..route("fe80::/64", None, "eth0") },
                Route { metric: Some(256), ..route("fe80::/64", None, "eth1") },
                on_link,
                narrow,
                route("::/0", Some("fe80::1"), "eth0"),
                route("10.5.0.0/16", Some("fe80::1"), "eth1"),
            ],
            neighbours: vec![Neighbour { interface: "eth0".into(), ip: "169.254.1.1".parse().unwrap(), mac: SECOND }],
        };
        configure(&network).await.unwrap();

        let (first, second, loopback) = (link(&handle, "eth0").await, link(&handle, "eth1").await, link(&handle, "lo").await);
        assert!(is(&first, FIRST) && is(&second, SECOND));
        for link in [&first, &second, &loopback] {
            assert!(link.header.flags.contains(LinkFlags::Up), "{link:?}");
        }
        assert!(first.attributes.contains(&LinkAttribute::Mtu(9000)));
        let (first, second) = (first.header.index, second.header.index);
        assert_eq!(addresses(&handle, first).await, ["10.2.0.9/32", "2001:db8:2::9/64", "fe80::7:1/64"]);
        assert_eq!(addresses(&handle, second).await, ["10.3.0.2/24", "fe80::7:2/64"]);
        let expected = [
            format!("/0 by Inet(169.254.1.1) on {first} onlink"),
            format!("/0 by Inet6(fe80::1) metric 1024 on {first}"),
            format!("/16 Inet(10.4.0.0) by Inet(10.3.0.1) metric 7 on {second} with [Mtu(1450)]"),
            format!("/16 Inet(10.5.0.0) by Inet6(fe80::1) on {second}"),
            format!("/24 Inet(10.3.0.0) from Inet(10.3.0.2) on {second}"),
            format!("/32 Inet(169.254.1.1) on {first}"),
            format!("/64 Inet6(fe80::) metric 256 on {first}"),
            format!("/64 Inet6(fe80::) metric 256 on {second}"),
        ];
        assert_eq!(routes(&handle).await, expected);

        let neighbours = all(handle.neighbours().get().execute()).await.unwrap();
        let ip = NeighbourAttribute::Destination(NeighbourAddress::Inet("169.254.1.1".parse().unwrap()));
        let known = neighbours.iter().find(|neighbour| neighbour.attributes.contains(&ip)).unwrap();
        assert_eq!((known.header.state, known.header.ifindex), (NeighbourState::Permanent, first));
        assert!(known.attributes.contains(&NeighbourAttribute::LinkLayerAddress(SECOND.0.to_vec())));

        // A second request succeeds as well.
        configure(&network).await
    });
}

#[test]
fn a_templates_interface_gets_the_pods_hardware_address() {
    in_guest(async |handle| {
        let own = Mac([2, 0, 0, 0, 7, 9]);
        let interface = Interface { device: Some(FIRST), ..interface("net1", own, &["10.2.0.9/24"]) };
        configure(&Network { interfaces: vec![interface], ..Network::default() }).await.unwrap();
        let link = link(&handle, "net1").await;
        assert!(is(&link, own), "{link:?}");
        assert_eq!(addresses(&handle, link.header.index).await.first().map(String::as_str), Some("10.2.0.9/24"));
        Ok(())
    });
}

#[test]
fn an_error_names_the_interface_or_route() {
    in_guest(async |_handle| {
        let missing = Network { interfaces: vec![interface("net1", Mac([2, 0, 0, 0, 7, 3]), &[])], ..Network::default() };
        let error = configure(&missing).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert!(error.to_string().contains("02:00:00:00:07:03") && error.to_string().contains("net1"), "{error}");

        let taken = Network { interfaces: vec![interface("eth0", FIRST, &[])], ..Network::default() };
        let error = configure(&taken).await.unwrap_err();
        assert!(error.to_string().contains("cannot name the interface eth0: "), "{error}");

        let interfaces = vec![interface("eth1", SECOND, &["10.0.0.2/24"])];
        let unreachable = Network { interfaces, routes: vec![route("0.0.0.0/0", Some("10.9.9.9"), "eth1")], ..Network::default() };
        let error = configure(&unreachable).await.unwrap_err();
        assert!(error.to_string().contains("cannot make the route to 0.0.0.0/0 by way of 10.9.9.9 on eth1: "), "{error}");
        Ok(())
    });
}
