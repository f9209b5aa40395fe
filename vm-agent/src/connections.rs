// SPDX-License-Identifier: Apache-2.0
//! The host's connections. Each says what it is for, and has a task of its own.

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

/// How long whoever connects may take to prove to be the host.
const PROVED: Duration = Duration::from_secs(10);

/// How many connections may be about to do so. One more, and the oldest is closed: whoever is the host proves it at once.
const UNPROVED: usize = 64;

/// After a connection that could not be accepted, as when there are too many already.
const AGAIN: Duration = Duration::from_millis(20);

/// Where a forwarded port is looked for.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// All that a connection may be for.
pub struct Doors {
    listener: VsockListener,
    tasks: TaskTracker,
    inside: Arc<Inside>,
    /// What serves the Task API.
    server: ttrpc::asynchronous::Server,
}

struct Inside {
    secret: Secret,
    containers: Containers<Libcontainer>,
    streams: Streams,
    calls: mpsc::Sender<std::io::Result<VsockStream>>,
    /// Taken by the one connection that is for them.
    events: Mutex<Option<mpsc::UnboundedReceiver<(SystemTime, Event)>>>,
}

impl Doors {
    /// Listens.
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
        let server = ttrpc::asynchronous::Server::new()
            .add_listener(Listener::new(ReceiverStream::new(connections)))
            .register_service(containerd_shim_protos::shim_async::create_task(Arc::new(TaskService::new(sandbox, containers.clone()))));
        let inside = Arc::new(Inside { secret, containers, streams: Streams::default(), calls, events: Mutex::new(Some(events)) });
        Ok(Self { listener, tasks, inside, server })
    }

    /// Tells the host, who waits for it, that there is somebody to talk to.
    pub async fn announce(&self) -> Result<()> {
        let address = VsockAddr::new(VMADDR_CID_HOST, api::READY_PORT);
        // That there was a connection is all there is to know.
        VsockStream::connect(address).await.map(drop).context(|| "cannot reach the host".into())
    }

    /// Takes connections until the host wants the guest to end.
    pub async fn serve(mut self) -> Result<()> {
        self.server.start().await?;
        let (off, mut switched_off) = mpsc::channel(1);
        let mut unproved = Unproved::default();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) if is_host(peer) => {
                        self.tasks.spawn(take(self.inside.clone(), unproved.add(), stream, off.clone()));
                    }
                    Ok((_, peer)) => warn!(cid = peer.cid(), "a connection that is not the host's"),
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
    /// One more. It is one of them as long as what is returned is kept, which is cancelled when there are too many after it.
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

/// Whether a connection is the host's, whatever carries the vsock. A process in the guest can connect to the agent's port only by
/// the kernel's loopback, which gives such connections the loopback's address, even where they were bound to another one.
fn is_host(peer: VsockAddr) -> bool {
    peer.cid() == VMADDR_CID_HOST
}

/// One connection, from its first word to its end.
async fn take(inside: Arc<Inside>, unproved: Arc<CancellationToken>, mut stream: VsockStream, off: mpsc::Sender<()>) {
    let proved = tokio::time::timeout(PROVED, proved(&inside.secret, &mut stream));
    let opening = match unproved.run_until_cancelled(proved).await {
        Some(Ok(Ok(opening))) => opening,
        Some(Ok(Err(error))) => {
            warn!(%error, "a connection is not the host's, or says nothing");
            return;
        }
        Some(Err(_)) | None => {
            warn!("a connection that does not say what it is for");
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
                        events::tell(stream, events).await;
                        Ok(())
                    }
                    gone => gone,
                },
                None => frame::write(&mut stream, &refuse("somebody is told events already".into())).await,
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
        debug!(%error, "a connection has ended");
    }
}

/// What a connection is for, if it is the host's. One that is not is told why.
async fn proved(secret: &Secret, stream: &mut VsockStream) -> std::io::Result<Opening> {
    let opening = frame::read::<Opening>(stream, frame::FROM_ANYONE).await?;
    let reason = if opening.version != api::VERSION {
        format!("the agent speaks version {} of the guest protocol, not {}", api::VERSION, opening.version)
    } else if !secret.is_said(stream).await? {
        // On the host, all processes have the host's address.
        "it does not know the pod's secret".into()
    } else {
        return Ok(opening);
    };
    frame::write(stream, &refuse(reason.clone())).await?;
    Err(std::io::Error::other(reason))
}

fn refuse(reason: String) -> Opened {
    Opened::Refused { version: api::VERSION, reason }
}

/// Carries a connection to its end. What fails is reset: an end would say that all has been said.
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
    fn of_too_many_that_prove_nothing_the_oldest_goes() {
        let mut unproved = Unproved::default();
        let mut kept: Vec<_> = (0..UNPROVED).map(|_| unproved.add()).collect();
        drop(kept.remove(1));
        let one_more = unproved.add();
        assert!(kept.iter().all(|connection| !connection.is_cancelled()), "there was a place");
        let another = unproved.add();
        assert!(kept[0].is_cancelled());
        assert!(kept[1..].iter().chain([&one_more, &another]).all(|connection| !connection.is_cancelled()));
    }

    #[test]
    fn only_the_host_is_the_host() {
        assert!(is_host(VsockAddr::new(2, 1024)));
        // The hypervisor, the loopback, a guest, and what stands for any.
        for cid in [0, 1, 3, VMADDR_CID_ANY] {
            assert!(!is_host(VsockAddr::new(cid, 1024)), "{cid}");
        }
    }
}
