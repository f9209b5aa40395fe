// SPDX-License-Identifier: Apache-2.0
//! Sends frames through a real kernel. The tests need root; without it, they say that they are
//! skipped.

use super::*;
use magnetar_core::home::namespace;
use magnetar_vm_agent_api::network::{Mac, Neighbour, Prefix};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use tokio::net::UdpSocket;

const POD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const POD_MAC: Mac = Mac([2, 0, 0, 0, 9, 2]);
const OUTSIDE_MAC: Mac = Mac([2, 0, 0, 0, 9, 1]);
const PATIENCE: Duration = Duration::from_secs(10);
const VIRTIO_NET_HEADER: usize = 10;

/// A pod's network namespace with an `eth0`, whose peer is in another namespace. The test runs in
/// it.
struct Pod {
    inside: OwnedFd,
    outside: OwnedFd,
}

impl Pod {
    async fn new() -> Self {
        let inside = here();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let pod = Self { inside, outside: here() };
        setns(&pod.inside, CloneFlags::CLONE_NEWNET).unwrap();
        let outside = pod.outside.as_raw_fd();
        ask(|handle| async move {
            let veth = LinkVeth::new("eth0", "peer").address(POD_MAC.0.to_vec()).mtu(9000).build();
            handle.link().add(veth).execute().await.unwrap();
            handle.link().set(LinkUnspec::new_with_name("peer").setns_by_fd(outside).build()).execute().await.unwrap();
            let eth0 = up(&handle, "eth0", POD, OUTSIDE, OUTSIDE_MAC).await;
            handle.address().add(eth0, "2001:db8::2".parse().unwrap(), 64).execute().await.unwrap();
            let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(OUTSIDE).build();
            handle.route().add(default).execute().await.unwrap();
        })
        .await;
        pod.outside(async || {
            ask(|handle| async move {
                let message = LinkUnspec::new_with_name("peer").address(OUTSIDE_MAC.0.to_vec()).mtu(9000).build();
                handle.link().set(message).execute().await.unwrap();
                up(&handle, "peer", OUTSIDE, POD, POD_MAC).await;
            })
            .await;
        })
        .await;
        pod
    }

    /// Runs `work` in the peer's namespace.
    async fn outside<T>(&self, work: impl AsyncFnOnce() -> T) -> T {
        setns(&self.outside, CloneFlags::CLONE_NEWNET).unwrap();
        let done = work().await;
        setns(&self.inside, CloneFlags::CLONE_NEWNET).unwrap();
        done
    }
}

/// Runs `test` in a network namespace that ends with it.
fn in_pod(test: impl AsyncFnOnce(Pod) + Send) {
    std::thread::scope(|scope| {
        let body = move || {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                // Written past libtest's capture, so that a skipped test is seen.
                let _unheard = writeln!(std::io::stderr(), "skipped: a network namespace needs root ({error})");
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let whole = async { test(Pod::new().await).await };
            runtime.block_on(async { tokio::time::timeout(PATIENCE, whole).await }).unwrap();
        };
        scope.spawn(body).join().unwrap();
    });
}

fn here() -> OwnedFd {
    namespace(Path::new("/proc/thread-self/ns/net")).unwrap()
}

async fn ask<T, F: Future<Output = T>>(work: impl FnOnce(Handle) -> F) -> T {
    netlink::with(|handle| async move { Ok(work(handle).await) }).await.unwrap()
}

async fn up(handle: &Handle, name: &str, ip: Ipv4Addr, other: Ipv4Addr, mac: Mac) -> u32 {
    handle.link().set(LinkUnspec::new_with_name(name).up().build()).execute().await.unwrap();
    let index = all(handle.link().get().match_name(name).execute()).await.unwrap()[0].header.index;
    handle.address().add(index, ip.into(), 24).execute().await.unwrap();
    handle.neighbours().add(index, other.into()).link_layer_address(&mac.0).execute().await.unwrap();
    index
}

/// Everything in the namespace: interfaces, and queueing disciplines with their ingress rules.
async fn inventory() -> Vec<String> {
    ask(|handle| async move {
        let links = links(&handle).await.unwrap();
        let mut found = Vec::new();
        for link in &links {
            let index = link.header.index as i32;
            found.push(format!(
                "{} is up: {}",
                state::name(link),
                link.header.flags.contains(rtnetlink::packet_route::link::LinkFlags::Up)
            ));
            for qdisc in all(handle.qdisc().get().index(index).execute()).await.unwrap() {
                if qdisc.header.parent == TcHandle::INGRESS {
                    let rules = all(handle.traffic_filter(index).get().ingress().execute()).await.unwrap();
                    found.push(format!("{:?} with {} rules", qdisc.attributes[0], rules.len()));
                }
            }
        }
        found
    })
    .await
}

/// An IPv4 datagram from the guest. Its checksum is left to the next hop.
fn frame(text: &[u8], port: u16) -> Vec<u8> {
    let udp_length = 8 + text.len() as u16;
    let mut frame = vec![1, 0, 0, 0, 0, 0];
    frame.extend(34_u16.to_ne_bytes());
    frame.extend(6_u16.to_ne_bytes());
    frame.extend(OUTSIDE_MAC.0.iter().chain(&POD_MAC.0).chain(&[8, 0]));
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_length).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(POD.octets().iter().chain(&OUTSIDE.octets()));
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(&ip);
    let mut pseudo = [POD.octets(), OUTSIDE.octets()].concat();
    pseudo.extend([0, 17]);
    pseudo.extend(udp_length.to_be_bytes());
    for number in [7, port, udp_length, sum(&pseudo)] {
        frame.extend(number.to_be_bytes());
    }
    frame.extend(text);
    frame
}

fn sum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[test]
fn frames_pass_both_ways_and_detach_removes_everything() {
    in_pod(async |pod| {
        let before = inventory().await;
        let Attached { network, mut nics } = attach().await.unwrap();

        let eth0 = &network.interfaces[..1][0];
        assert_eq!((eth0.name.as_str(), eth0.mac, eth0.mtu, network.interfaces.len()), ("eth0", POD_MAC, 9000, 1));
        assert!(eth0.addresses.contains(&Prefix { ip: POD.into(), length: 24 }), "{eth0:?}");
        assert!(eth0.addresses.contains(&Prefix { ip: "2001:db8::2".parse().unwrap(), length: 64 }), "{eth0:?}");
        let link = network.routes.iter().position(|route| route.to == Prefix { ip: [10, 9, 0, 0].into(), length: 24 });
        let default = network.routes.iter().position(|route| route.gateway == Some(OUTSIDE.into()));
        assert!(link.unwrap() < default.unwrap(), "{network:?}");
        assert_eq!(network.neighbours, [Neighbour { interface: "eth0".into(), ip: IpAddr::from(OUTSIDE), mac: OUTSIDE_MAC }]);

        let Nic { tap, mac, mtu } = nics.remove(0);
        assert_eq!((mac, mtu), (POD_MAC, 9000));
        let tap = magnetar_sys::readiness::watch(tap).unwrap();
        let socket = pod.outside(async || UdpSocket::bind((OUTSIDE, 0)).await.unwrap()).await;
        // Longer than usual Ethernet frames.
        let text = [b'x'; 8000];
        socket.send_to(&text, (POD, 7)).await.unwrap();
        let mut buffer = [0; 10_000];
        loop {
            let mut ready = tap.readable().await.unwrap();
            let Ok(length) = ready.try_io(|tap| Ok(rustix::io::read(tap.as_fd(), &mut buffer)?)) else { continue };
            let arrived = &buffer[VIRTIO_NET_HEADER..length.unwrap()];
            // The peer's kernel sends IPv6 packets as well.
            if arrived.ends_with(&text) {
                assert_eq!(arrived[..14], [&POD_MAC.0[..], &OUTSIDE_MAC.0, &[8, 0]].concat());
                assert_eq!(arrived.len(), 14 + 20 + 8 + text.len());
                break;
            }
        }

        rustix::io::write(tap.as_fd(), &frame(b"from the guest", socket.local_addr().unwrap().port())).unwrap();
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from), (&b"from the guest"[..], (POD, 7).into()));

        drop(tap);
        assert!(inventory().await.iter().all(|line| !line.starts_with("mag0")), "a tap outlives its descriptor");
        detach().await.unwrap();
        assert_eq!(inventory().await, before);
        detach().await.unwrap();
        assert_eq!(inventory().await, before);
    });
}

#[test]
fn attach_removes_what_an_earlier_attempt_left() {
    in_pod(async |_pod| {
        let before = inventory().await;
        let earlier = attach().await.unwrap();
        let attached = attach().await.unwrap();
        // The rest may differ in link-local addresses, which the kernel adds with a delay.
        assert_eq!(attached.network.neighbours, earlier.network.neighbours);
        drop(earlier);
        assert!(inventory().await.contains(&"mag0 is up: true".into()));
        detach().await.unwrap();
        assert_eq!(inventory().await, before, "the taps go even while somebody has their descriptors");
    });
}

#[test]
fn rules_of_others_stay() {
    in_pod(async |_pod| {
        ask(|handle| async move {
            let links = links(&handle).await.unwrap();
            let eth0 = links.iter().find(|link| link.attributes.contains(&LinkAttribute::IfName("eth0".into()))).unwrap();
            let mut qdisc = TcMessage::with_index(eth0.header.index as i32);
            qdisc.header.parent = TcHandle::CLSACT;
            qdisc.header.handle = TcHandle { major: u16::MAX, minor: 0 };
            qdisc.attributes = vec![TcAttribute::Kind("clsact".into())];
            let flags = rtnetlink::packet_core::NLM_F_CREATE;
            netlink::request(&handle, RouteNetlinkMessage::NewQueueDiscipline(qdisc), flags).await.unwrap();
        })
        .await;
        let before = inventory().await;
        let attached = attach().await.unwrap();
        assert_ne!(inventory().await, before);
        drop(attached);
        detach().await.unwrap();
        assert_eq!(inventory().await, before);
        assert!(before.iter().any(|line| line.contains("clsact")), "{before:?}");
    });
}

#[test]
fn a_pod_may_be_made_on_any_thread() {
    fn is_send(_: impl Send) {}
    is_send(attach());
    is_send(detach());
}
