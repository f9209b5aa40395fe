// SPDX-License-Identifier: Apache-2.0
//! Accepts the host's connections. Each states its purpose and is served by a task of its own.

use crate::streams::Streams;
use crate::{events, pod};
use magnetar_core::error::{Context, Result};
use magnetar_core::events::Event;
use magnetar_core::ids::SandboxId;
use magnetar_core::runtime::libcontainer::Libcontainer;
use magnetar_core::task::{Containers, TaskService};
use magnetar_vm_agent_api::secret::Secret;
use magnetar_vm_agent_api::{self as api, Opened, Opening, Purpose, chunk, frame};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use tracing::{debug, info, warn};
use ttrpc::asynchronous::transport::Listener;

/// How many connections for the Task API may wait to be served.
const QUEUE: usize = 8;

/// How long a peer may take to prove that it is the host.
const PROOF: Duration = Duration::from_secs(10);

/// How many connections may be unproved at a time. For one more the oldest is closed: the real host
/// proves itself at once.
const UNPROVED: usize = 64;

/// How long to wait after a connection could not be accepted, for example because there are too
/// many.
const AGAIN: Duration = Duration::from_millis(20);

/// The addresses at which a forwarded port is tried.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Listens for the host's connections and has everything that they may use.
pub struct Connections {
    listener: VsockListener,
    tasks: TaskTracker,
    inside: Arc<Inside>,
    /// Serves the Task API.
    server: ttrpc::asynchronous::Server,
}

struct Inside {
    secret: Secret,
    containers: Containers<Libcontainer>,
    streams: Streams,
    calls: mpsc::Sender<std::io::Result<VsockStream>>,
    /// Taken by the only connection for events.
    events: Mutex<Option<mpsc::UnboundedReceiver<(SystemTime, Event)>>>,
}

impl Connections {
    /// Listens on the agent's port.
    pub fn open(
        sandbox: SandboxId,
        secret: Secret,
        containers: Containers<Libcontainer>,
        events: mpsc::UnboundedReceiver<(SystemTime, Event)>,
        tasks: TaskTracker,
    ) -> Result<Self> {
        let address = VsockAddr::new(VMADDR_CID_ANY, api::PORT);
        let listener = VsockListener::bind(address).context(|| format!("cannot listen on the vsock port {}", api::PORT))?;
        let (calls, connections) = mpsc::channel(QUEUE);
        let server = ttrpc::asynchronous::Server::new().add_listener(Listener::new(ReceiverStream::new(connections)));
        let server = TaskService::new(sandbox, containers.clone(), tasks.clone()).register(server);
        let inside = Arc::new(Inside { secret, containers, streams: Streams::default(), calls, events: Mutex::new(Some(events)) });
        Ok(Self { listener, tasks, inside, server })
    }

    /// Tells the host, which waits for it, that the agent listens.
    pub async fn announce(&self) -> Result<()> {
        let address = VsockAddr::new(VMADDR_CID_HOST, api::READY_PORT);
        // The connection itself is the message.
        VsockStream::connect(address).await.map(drop).context(|| format!("cannot connect to the host at vsock port {}", api::READY_PORT))
    }

    /// Serves connections until the host switches the guest off.
    pub async fn serve(mut self) -> Result<()> {
        self.server.start().await?;
        let (off, mut switched_off) = mpsc::channel(1);
        let mut unproved = Unproved::default();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) if is_host(peer) => {
                        self.tasks.spawn(serve_connection(self.inside.clone(), unproved.add(), stream, off.clone()));
                    }
                    Ok((_, peer)) => warn!(cid = peer.cid(), "refused a connection that is not from the host"),
                    Err(error) => {
                        warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(AGAIN).await;
                    }
                },
                _ = switched_off.recv() => {
                    info!("switched off");
                    return Ok(());
                }
            }
        }
    }
}

/// Connections whose other end has not proved to be the host, the oldest first.
#[derive(Debug, Default)]
struct Unproved(VecDeque<Weak<CancellationToken>>);

impl Unproved {
    /// Adds a connection. It counts as unproved for as long as the returned token is kept. The
    /// token is cancelled when too many later connections are unproved.
    fn add(&mut self) -> Arc<CancellationToken> {
        self.0.retain(|connection| connection.strong_count() > 0);
        while self.0.len() >= UNPROVED {
            if let Some(oldest) = self.0.pop_front().and_then(|oldest| oldest.upgrade()) {
                oldest.cancel();
            }
        }
        let connection = Arc::new(CancellationToken::new());
        self.0.push_back(Arc::downgrade(&connection));
        connection
    }
}

/// Whether a connection is from the host, whichever vsock device is used. A process in the guest
/// can reach the agent's port only through the kernel's loopback. Its connections have the
/// loopback's address, even if they were bound to another one.
fn is_host(peer: VsockAddr) -> bool {
    peer.cid() == VMADDR_CID_HOST
}

/// Serves one connection, from its first message to its end.
async fn serve_connection(inside: Arc<Inside>, unproved: Arc<CancellationToken>, mut stream: VsockStream, off: mpsc::Sender<()>) {
    let authenticated = tokio::time::timeout(PROOF, authenticate(&inside.secret, &mut stream));
    let opening = match unproved.run_until_cancelled(authenticated).await {
        Some(Ok(Ok(opening))) => opening,
        Some(Ok(Err(error))) => {
            warn!(%error, "refused a connection that did not prove to be the host's");
            return;
        }
        Some(Err(_)) | None => {
            warn!("closed a connection that did not prove in time to be the host's");
            return;
        }
    };
    drop(unproved);
    debug!(?opening, "connection");
    let ended = match opening.purpose {
        Purpose::Control => match welcome(&mut stream).await {
            Ok(()) => pod::answer(&inside.containers, &inside.streams, stream, off).await,
            gone => gone,
        },
        Purpose::Events => {
            let events = inside.events.lock().unwrap_or_else(PoisonError::into_inner).take();
            match events {
                Some(events) => match welcome(&mut stream).await {
                    Ok(()) => {
                        events::send(stream, events).await;
                        Ok(())
                    }
                    gone => gone,
                },
                None => frame::write(&mut stream, &refuse("another connection for events exists".into())).await,
            }
        }
        Purpose::Tasks => match welcome(&mut stream).await {
            // It fails only when the guest ends.
            Ok(()) => inside.calls.send(Ok(stream)).await.map_err(|_| std::io::ErrorKind::BrokenPipe.into()),
            gone => gone,
        },
        Purpose::Stream(name) => match inside.streams.open(&name) {
            Ok(opened) => match welcome(&mut stream).await {
                Ok(()) => opened.copy(stream).await,
                gone => gone,
            },
            Err(error) => frame::write(&mut stream, &refuse(error.to_string())).await,
        },
        Purpose::Forward { port } => match TcpStream::connect(&LOOPBACK.map(|address| (address, port).into())[..]).await {
            Ok(tcp) => match welcome(&mut stream).await {
                Ok(()) => forward(tcp, stream).await,
                gone => gone,
            },
            Err(error) => frame::write(&mut stream, &refuse(format!("nothing listens on port {port}: {error}"))).await,
        },
    };
    if let Err(error) = ended {
        debug!(%error, "a connection failed");
    }
}

/// Reads a connection's opening and checks that it is from the host. Answers the reason otherwise.
async fn authenticate(secret: &Secret, stream: &mut VsockStream) -> std::io::Result<Opening> {
    let opening = frame::read::<Opening>(stream, frame::FROM_ANYONE).await?;
    let reason = if opening.version != api::VERSION {
        format!("the agent speaks version {} of the guest protocol, not {}", api::VERSION, opening.version)
    } else if !secret.is_said(stream).await? {
        // All processes of the host have the host's address.
        "the connection does not know the pod's secret".into()
    } else {
        return Ok(opening);
    };
    frame::write(stream, &refuse(reason.clone())).await?;
    Err(std::io::Error::other(reason))
}

fn refuse(reason: String) -> Opened {
    Opened::Refused { version: api::VERSION, reason }
}

/// Forwards a TCP connection until both directions have ended. On a failure it resets the TCP
/// connection, because a regular close would mean that all data has arrived.
async fn forward(mut tcp: TcpStream, stream: VsockStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let (from, to) = tcp.split();
    let carried = chunk::carry(from, to, stream).await;
    if carried.is_err() {
        tcp.set_zero_linger()?;
    }
    carried
}

async fn welcome(stream: &mut VsockStream) -> std::io::Result<()> {
    frame::write(stream, &Opened::Ready).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_limit_the_oldest_unproved_connection_is_closed() {
        let mut unproved = Unproved::default();
        let mut kept: Vec<_> = (0..UNPROVED).map(|_| unproved.add()).collect();
        drop(kept.remove(1));
        let one_more = unproved.add();
        assert!(kept.iter().all(|connection| !connection.is_cancelled()), "there was room for one more");
        let another = unproved.add();
        assert!(kept[0].is_cancelled());
        assert!(kept[1..].iter().chain([&one_more, &another]).all(|connection| !connection.is_cancelled()));
    }

    #[test]
    fn only_the_host_s_address_is_the_host() {
        assert!(is_host(VsockAddr::new(2, 1024)));
        // The hypervisor, the loopback, a guest, and the wildcard.
        for cid in [0, 1, 3, VMADDR_CID_ANY] {
            assert!(!is_host(VsockAddr::new(cid, 1024)), "{cid}");
        }
    }
}
