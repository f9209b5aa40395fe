// SPDX-License-Identifier: Apache-2.0
//! Each test runs as root, in a network namespace of its own.

use super::*;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;

/// Runs `test` in a new network namespace. Its only interface is a loopback that is up and has the
/// address 10.1.2.3 as well. Without the privilege to make a namespace, it says so and runs
/// nothing.
fn in_network(test: impl FnOnce() + Send) {
    let body = move || {
        // SAFETY: the thread leaves only the network namespace that it shares with others, and ends
        // here.
        if let Err(error) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
            // Written past libtest's capture, so that the log shows that this test ran nothing.
            let _unheard = writeln!(std::io::stderr(), "skipped: a network namespace needs root ({error})");
            return;
        }
        let kernel = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
        // `RTM_NEWLINK` and `RTM_NEWADDR`, each with `NLM_F_REQUEST`: the first device up, its
        // address.
        let up = [&header(32, 16)[..], &[0; 4], &1_u32.to_ne_bytes(), &1_u32.to_ne_bytes(), &1_u32.to_ne_bytes()].concat();
        let address =
            [&header(32, 20)[..], &[2, 32, 0, 0], &1_u32.to_ne_bytes(), &8_u16.to_ne_bytes(), &2_u16.to_ne_bytes(), &[10, 1, 2, 3]];
        for message in [up, address.concat()] {
            rustix::net::send(&kernel, &message, SendFlags::empty()).unwrap();
        }
        test();
    };
    std::thread::scope(|scope| scope.spawn(body).join().unwrap());
}

fn header(length: u32, kind: u16) -> Vec<u8> {
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &1_u16.to_ne_bytes(), &[0; 8]].concat()
}

fn listen(address: IpAddr) -> TcpListener {
    TcpListener::bind((address, 0)).unwrap()
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Whether `listener` gets a connection to `address`. The accepted socket must show that address as
/// its own.
fn arrives(listener: &TcpListener, address: SocketAddr) -> bool {
    let mut client = match TcpStream::connect(address) {
        Ok(client) => client,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
            return false;
        }
    };
    let (mut server, peer) = listener.accept().unwrap();
    assert_eq!((server.local_addr().unwrap(), peer), (address, client.local_addr().unwrap()));
    client.write_all(b"ping").unwrap();
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).unwrap();
    server.write_all(&bytes).unwrap();
    client.read_exact(&mut bytes).unwrap();
    &bytes == b"ping"
}

#[test]
fn every_port_of_the_loopback_is_steered_until_the_steering_is_dropped() {
    in_network(|| {
        let (v4, v6) = (listen(V4), listen(V6));
        let own = v4.local_addr().unwrap().port();
        assert!(!arrives(&v4, (V4, 80).into()));
        let steering = steer(v4.as_fd(), Some(v6.as_fd())).unwrap();
        let _copy = steering.link.try_clone().unwrap();
        for port in [1, 80, 8080, 65535, own] {
            assert!(arrives(&v4, (V4, port).into()), "{port}");
            assert!(arrives(&v4, (Ipv4Addr::new(127, 200, 3, 4), port).into()), "{port}");
            assert!(arrives(&v6, (V6, port).into()), "{port}");
        }
        drop(steering);
        assert!(!arrives(&v4, (V4, 80).into()));
        assert!(!arrives(&v6, (V6, 80).into()));
        assert!(arrives(&v4, (V4, own).into()), "as before");
    });
}

#[test]
fn a_steered_listener_takes_precedence_over_others() {
    in_network(|| {
        let (ours, other) = (listen(V4), listen(V4));
        let address = other.local_addr().unwrap();
        let _steering = steer(ours.as_fd(), None).unwrap();
        assert!(arrives(&ours, address));
    });
}

#[test]
fn other_addresses_and_protocols_are_not_steered() {
    in_network(|| {
        let (ours, other) = (listen(V4), listen(Ipv4Addr::UNSPECIFIED.into()));
        let _steering = steer(ours.as_fd(), None).unwrap();
        let port = other.local_addr().unwrap().port();
        assert!(arrives(&other, (Ipv4Addr::new(10, 1, 2, 3), port).into()));
        assert!(!arrives(&ours, (Ipv4Addr::new(10, 1, 2, 3), 80).into()));
        assert!(!arrives(&ours, (V6, 80).into()), "none was given for IPv6");

        let (here, there) = (UdpSocket::bind((V4, 0)).unwrap(), UdpSocket::bind((V4, 0)).unwrap());
        here.send_to(b"datagram", there.local_addr().unwrap()).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(there.recv_from(&mut bytes).unwrap(), (8, here.local_addr().unwrap()));
    });
}

#[test]
fn connections_are_not_steered_to_a_closed_listener() {
    in_network(|| {
        let (v4, v6) = (listen(V4), listen(V6));
        let _steering = steer(v4.as_fd(), Some(v6.as_fd())).unwrap();
        drop(v4);
        // A process that another test forks may have a copy for a moment.
        while TcpStream::connect((V4, 80)).is_ok() {
            std::thread::yield_now();
        }
        assert!(arrives(&v6, (V6, 80).into()));
    });
}

#[test]
fn other_namespaces_are_not_steered() {
    in_network(|| {
        let ours = listen(V4);
        let _steering = steer(ours.as_fd(), None).unwrap();
        in_network(|| assert_eq!(TcpStream::connect((V4, 80)).unwrap_err().kind(), ErrorKind::ConnectionRefused));
        assert!(arrives(&ours, (V4, 80).into()));
    });
}
