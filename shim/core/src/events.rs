// SPDX-License-Identifier: Apache-2.0
//! Sends events to containerd: what happened to a task, in the order in which it happened.
//!
//! Events go to containerd's ttrpc socket (service `containerd.services.events.ttrpc.v1`). They
//! wait in a bounded queue while containerd restarts. The connection is opened for pending events
//! and closed afterwards, so an idle pod has none.

mod wire;

use crate::ids::{ContainerId, ExecId, Namespace};
use crate::reaper::Exit;
use crate::stdio::StdioSpec;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// How many events are kept while containerd is away. A container makes a handful.
const QUEUE: usize = 512;
/// The time between attempts to connect to containerd.
const RETRY: Duration = Duration::from_millis(500);
/// How long one event may take to be accepted.
const TIMEOUT: Duration = Duration::from_secs(5);

/// An event of a task.
#[derive(Debug, Clone)]
pub enum Event {
    /// A container was made.
    Created {
        /// Its name.
        container: ContainerId,
        /// Its bundle.
        bundle: PathBuf,
        /// Its streams.
        stdio: StdioSpec,
        /// Its init.
        pid: u32,
        /// The checkpoint it was restored from.
        checkpoint: Option<PathBuf>,
    },
    /// A container's program, or an exec, was started.
    Started {
        /// The container.
        container: ContainerId,
        /// The exec; `None` for the container's program.
        exec: Option<ExecId>,
        /// The process.
        pid: u32,
    },
    /// An exec was announced.
    ExecAdded {
        /// Its container.
        container: ContainerId,
        /// Its name.
        exec: ExecId,
    },
    /// A container was frozen.
    Paused {
        /// Its name.
        container: ContainerId,
    },
    /// A container was thawed.
    Resumed {
        /// Its name.
        container: ContainerId,
    },
    /// The kernel has killed a process of a container for lack of memory.
    OutOfMemory {
        /// The container.
        container: ContainerId,
    },
    /// A process has ended.
    Exited {
        /// Its container.
        container: ContainerId,
        /// The exec; `None` for the container's init.
        exec: Option<ExecId>,
        /// The process id that it had.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
    /// A container was removed.
    Deleted {
        /// Its name.
        container: ContainerId,
        /// The process id that its init had.
        pid: u32,
        /// How that ended.
        exit: Exit,
    },
}

impl Event {
    /// The event that a container was frozen (`true`) or thawed.
    pub fn frozen(container: &ContainerId, frozen: bool) -> Self {
        let container = container.clone();
        if frozen { Self::Paused { container } } else { Self::Resumed { container } }
    }
}

/// A queue of events. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct Events(Queue);

#[derive(Debug, Clone)]
enum Queue {
    /// Overflow is dropped; containerd asks for the task's state again.
    Bounded(mpsc::Sender<(SystemTime, Event)>),
    /// Nothing is dropped, because the receiver never asks again.
    Whole(mpsc::UnboundedSender<(SystemTime, Event)>),
}

impl Events {
    /// A queue, and the loop that sends its events to the containerd at `address`.
    pub fn new(address: PathBuf, namespace: Namespace) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, events) = mpsc::channel(QUEUE);
        (Self(Queue::Bounded(queue)), forward_all(address, namespace, events))
    }

    /// A queue whose events go elsewhere: that of an agent in a guest, where there is no
    /// containerd. It is unbounded and loses no event, because nobody would ask again for an exit
    /// that was not reported. It has at most one event for each process that was requested, and the
    /// OOM kills.
    pub fn queue() -> (Self, mpsc::UnboundedReceiver<(SystemTime, Event)>) {
        let (queue, events) = mpsc::unbounded_channel();
        (Self(Queue::Whole(queue)), events)
    }

    /// Queues an event. If containerd has been away for so long that the queue is full, the event
    /// is dropped and logged. containerd asks for the state of every task when it comes back.
    pub fn publish(&self, event: Event) {
        let topic = wire::topic(&event);
        let event = (SystemTime::now(), event);
        let taken = match &self.0 {
            Queue::Bounded(queue) => queue.try_send(event).is_ok(),
            Queue::Whole(queue) => queue.send(event).is_ok(),
        };
        if !taken {
            warn!(topic, "event dropped: the queue is full, because containerd does not take events");
        }
    }
}

async fn forward_all(address: PathBuf, namespace: Namespace, mut events: mpsc::Receiver<(SystemTime, Event)>) {
    let target = format!("unix://{}", address.display());
    while let Some(first) = events.recv().await {
        let mut client = connect(&target).await;
        let mut next = Some(first);
        while let Some((at, event)) = next.take() {
            let Some(request) = wire::request(&namespace, at, &event) else { continue };
            loop {
                let context = ttrpc::context::with_duration(TIMEOUT);
                match client.forward(context, &request).await {
                    Ok(_) => break,
                    // containerd has read the event and refused it, and would refuse it again.
                    Err(ttrpc::Error::RpcStatus(status)) => {
                        warn!(topic = wire::topic(&event), error = status.message, "containerd refused an event");
                        break;
                    }
                    Err(error) => {
                        debug!(%error, "the connection to containerd broke while an event was sent");
                        client = connect(&target).await;
                    }
                }
            }
            next = events.try_recv().ok();
        }
    }
}

/// Connects, and retries without limit. The queue bounds the events that wait meanwhile.
async fn connect(target: &str) -> wire::Client {
    let mut warned = false;
    loop {
        match ttrpc::asynchronous::Client::connect(target).await {
            Ok(client) => return wire::Client::new(client),
            Err(error) => {
                if !warned {
                    warn!(target, %error, "cannot connect to containerd to send events; trying again");
                    warned = true;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
