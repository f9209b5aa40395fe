// SPDX-License-Identifier: Apache-2.0
//! Forwarding in real network namespaces, with tasks as guests. The tests need root; without it,
//! they say that they are skipped.

use super::*;
use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use std::io::ErrorKind;
use std::io::Write as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

/// The guest's ports.
mod port {
    pub const ECHO: u16 = 7;
    /// Sends nothing, and reads nothing.
    pub const SILENT: u16 = 9;
    /// Sends a text and closes, then reads until the client closes.
    pub const GREETING: u16 = 80;
    /// Sends a text, and disappears without closing.
    pub const FAILING: u16 = 99;
    pub const NOTHING: u16 = 1;
}

struct Pod {
    tasks: TaskTracker,
    cancel: CancellationToken,
    forwarder: Forwarder,
    /// What the guest's listeners read, or how their connections ended.
    received: mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Pod {
    fn start() -> Self {
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let (report, received) = mpsc::unbounded_channel();
        let guest = tasks.clone();
        let dial = move |port| {
            let (connection, end) = duplex(4096);
            let accepted = port != port::NOTHING;
            if accepted {
                guest.spawn(listen_in_guest(port, end, report.clone()));
            }
            async move { if accepted { Ok(connection) } else { Err(Error::new(magnetar_core::error::Code::Unavailable, "refused")) } }
        };
        let forwarder = super::start(&tasks, &cancel, dial).unwrap();
        Self { tasks, cancel, forwarder, received }
    }

    /// Waits for the end, and checks that nothing is left.
    async fn ends(self) {
        drop(self.forwarder);
        self.tasks.close();
        self.tasks.wait().await;
        assert_eq!(dial(port::ECHO).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

async fn listen_in_guest(port: u16, connection: DuplexStream, report: mpsc::UnboundedSender<Vec<u8>>) {
    let (plain, mut socket) = duplex(4096);
    let (from, to) = tokio::io::split(plain);
    let carried = chunk::carry(from, to, connection);
    let talk = async {
        match port {
            port::SILENT => std::future::pending().await,
            port::GREETING => {
                socket.write_all(b"hello").await.unwrap();
                socket.shutdown().await.unwrap();
                let mut received = Vec::new();
                socket.read_to_end(&mut received).await.unwrap();
                report.send(received).unwrap();
            }
            port::FAILING => {
                socket.write_all(b"hel").await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            _ => {
                let (mut from, mut to) = tokio::io::split(socket);
                tokio::io::copy(&mut from, &mut to).await.unwrap();
                to.shutdown().await.unwrap();
            }
        }
    };
    if [port::SILENT, port::FAILING].contains(&port) {
        tokio::select! {
            ended = carried => report.send(format!("{:?}", ended.map_err(|error| error.kind())).into()).unwrap(),
            () = talk => {}
        }
    } else {
        tokio::join!(carried, talk).0.unwrap();
    }
}

/// Runs `test` in a network namespace that has only a loopback, which is up.
fn in_pod(test: impl AsyncFnOnce() + Send) {
    let body = move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            // Written past libtest's capture, so that a skipped test is seen.
            let _unheard = writeln!(std::io::stderr(), "skipped: a network namespace needs root ({error})");
            return;
        }
        // `RTM_NEWLINK` with `NLM_F_REQUEST`: bring up the first device.
        let (head, one) =
            ([32_u32.to_ne_bytes(), [16_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat().try_into().unwrap()], 1_u32.to_ne_bytes());
        let up = [&head.concat()[..], &[0; 12], &one, &one, &one].concat();
        let kernel = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::send(&kernel, &up, SendFlags::empty()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let in_time = async { tokio::time::timeout(Duration::from_secs(20), test()).await };
        runtime.block_on(in_time).unwrap();
    };
    std::thread::scope(|scope| scope.spawn(body).join().unwrap());
}

async fn dial(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await
}

/// The result of reading, and the text that was read.
async fn read_all(client: &mut TcpStream) -> (Result<(), ErrorKind>, String) {
    let mut bytes = Vec::new();
    let ended = client.read_to_end(&mut bytes).await;
    (ended.map(drop).map_err(|error| error.kind()), String::from_utf8(bytes).unwrap())
}

async fn echoes(mut client: TcpStream) {
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let mut back = Vec::new();
    let (mut from, mut to) = client.split();
    let say = async {
        to.write_all(&bytes).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(from.read_to_end(&mut back), say);
    read.unwrap();
    assert!(back == bytes);
}

#[test]
fn connections_to_the_loopback_reach_the_guest() {
    in_pod(async || {
        let pod = Pod::start();
        echoes(dial(port::ECHO).await.unwrap()).await;
        echoes(TcpStream::connect((Ipv6Addr::LOCALHOST, port::ECHO)).await.unwrap()).await;
        echoes(TcpStream::connect((Ipv4Addr::new(127, 8, 8, 8), 65535)).await.unwrap()).await;
        pod.ends().await;
    });
}

#[test]
fn without_ipv6_there_is_still_ipv4() {
    in_pod(async || {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let pod = Pod::start();
        echoes(dial(port::ECHO).await.unwrap()).await;
        pod.ends().await;
    });
}

#[test]
fn a_server_may_close_first() {
    in_pod(async || {
        let mut pod = Pod::start();
        let mut client = dial(port::GREETING).await.unwrap();
        assert_eq!(read_all(&mut client).await, (Ok(()), "hello".into()));
        client.write_all(b"and goodbye").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(pod.received.recv().await.unwrap(), b"and goodbye");
        pod.ends().await;
    });
}

#[test]
fn refused_and_failed_connections_are_reset() {
    in_pod(async || {
        let pod = Pod::start();
        let mut client = dial(port::NOTHING).await.unwrap();
        assert_eq!(read_all(&mut client).await, (Err(ErrorKind::ConnectionReset), String::new()));
        let mut client = dial(port::FAILING).await.unwrap();
        assert_eq!(read_all(&mut client).await, (Err(ErrorKind::ConnectionReset), "hel".into()));
        pod.ends().await;
    });
}

#[test]
fn a_clients_reset_ends_the_connection_even_after_its_close() {
    in_pod(async || {
        let mut pod = Pod::start();
        for said_all in [false, true] {
            let mut client = dial(port::SILENT).await.unwrap();
            client.write_all(b"x").await.unwrap();
            if said_all {
                client.shutdown().await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            client.set_zero_linger().unwrap();
            drop(client);
            assert_eq!(pod.received.recv().await.unwrap(), b"Err(UnexpectedEof)", "{said_all}");
        }
        pod.ends().await;
    });
}

#[test]
fn connections_above_the_limit_wait() {
    in_pod(async || {
        let pod = Pod::start();
        let mut first = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut client = dial(port::ECHO).await.unwrap();
            client.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
            first.push(client);
        }
        let mut last = dial(port::ECHO).await.unwrap();
        last.write_all(b"x").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), last.read_u8()).await.is_err());
        drop(first.pop());
        assert_eq!(last.read_u8().await.unwrap(), b'x');
        drop((first, last));
        let clients = TaskTracker::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            clients.spawn(async { echoes(dial(port::ECHO).await.unwrap()).await });
        }
        clients.close();
        clients.wait().await;
        pod.ends().await;
    });
}

#[test]
fn open_connections_are_reset_at_the_end() {
    in_pod(async || {
        for by_token in [true, false] {
            let mut pod = Pod::start();
            let mut client = dial(port::SILENT).await.unwrap();
            client.write_all(b"x").await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            if by_token {
                pod.cancel.cancel();
                assert_eq!(pod.received.recv().await.unwrap(), b"Err(UnexpectedEof)");
            }
            pod.ends().await;
            assert_eq!(read_all(&mut client).await, (Err(ErrorKind::ConnectionReset), String::new()));
        }
    });
}
