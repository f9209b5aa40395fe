// SPDX-License-Identifier: Apache-2.0
//! Sends events to containerd: what happened to a task, in the order in which it happened.
//!
//! Events go to containerd's ttrpc socket (service `containerd.services.events.ttrpc.v1`). They
//! wait in a bounded queue while containerd restarts. The connection is opened for pending events
//! and closed afterwards, so an idle pod has none.

use crate::ids::Namespace;
use containerd_shim_protos::events::task as message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::EventsClient;
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
#[derive(Debug)]
pub enum Event {
    /// A container was made.
    Create(message::TaskCreate),
    /// Its program was started.
    Start(message::TaskStart),
    /// A process ended.
    Exit(message::TaskExit),
    /// A container was removed.
    Delete(message::TaskDelete),
    /// An exec was announced.
    ExecAdded(message::TaskExecAdded),
    /// An exec was started.
    ExecStarted(message::TaskExecStarted),
    /// The OOM killer killed a process.
    Oom(message::TaskOOM),
    /// A container was frozen.
    Paused(message::TaskPaused),
    /// A container was thawed.
    Resumed(message::TaskResumed),
}

impl Event {
    /// The topic that containerd's subscribers filter by.
    fn topic(&self) -> &'static str {
        match self {
            Event::Create(_) => "/tasks/create",
            Event::Start(_) => "/tasks/start",
            Event::Exit(_) => "/tasks/exit",
            Event::Delete(_) => "/tasks/delete",
            Event::ExecAdded(_) => "/tasks/exec-added",
            Event::ExecStarted(_) => "/tasks/exec-started",
            Event::Oom(_) => "/tasks/oom",
            Event::Paused(_) => "/tasks/paused",
            Event::Resumed(_) => "/tasks/resumed",
        }
    }

    /// The message's full name, from which the receiver knows its type.
    fn type_url(&self) -> &'static str {
        match self {
            Event::Create(_) => "containerd.events.TaskCreate",
            Event::Start(_) => "containerd.events.TaskStart",
            Event::Exit(_) => "containerd.events.TaskExit",
            Event::Delete(_) => "containerd.events.TaskDelete",
            Event::ExecAdded(_) => "containerd.events.TaskExecAdded",
            Event::ExecStarted(_) => "containerd.events.TaskExecStarted",
            Event::Oom(_) => "containerd.events.TaskOOM",
            Event::Paused(_) => "containerd.events.TaskPaused",
            Event::Resumed(_) => "containerd.events.TaskResumed",
        }
    }

    /// Encodes the message by its own type. Through `dyn` the library would load the descriptors of
    /// all files, 400 KiB, only to name the message in an error that cannot happen.
    fn encode(&self) -> containerd_shim_protos::protobuf::Result<Vec<u8>> {
        match self {
            Event::Create(m) => m.write_to_bytes(),
            Event::Start(m) => m.write_to_bytes(),
            Event::Exit(m) => m.write_to_bytes(),
            Event::Delete(m) => m.write_to_bytes(),
            Event::ExecAdded(m) => m.write_to_bytes(),
            Event::ExecStarted(m) => m.write_to_bytes(),
            Event::Oom(m) => m.write_to_bytes(),
            Event::Paused(m) => m.write_to_bytes(),
            Event::Resumed(m) => m.write_to_bytes(),
        }
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
        let topic = event.topic();
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
            let Some(request) = envelope(&namespace, at, &event) else { continue };
            loop {
                let context = ttrpc::context::with_duration(TIMEOUT);
                match client.forward(context, &request).await {
                    Ok(_) => break,
                    // containerd has read the event and refused it, and would refuse it again.
                    Err(ttrpc::Error::RpcStatus(status)) => {
                        warn!(topic = event.topic(), error = status.message, "containerd refused an event");
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

/// Connects, however long that takes. The queue limits the events that wait meanwhile.
async fn connect(target: &str) -> EventsClient {
    let mut warned = false;
    loop {
        match ttrpc::asynchronous::Client::connect(target).await {
            Ok(client) => return EventsClient::new(client),
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

fn envelope(namespace: &Namespace, at: SystemTime, event: &Event) -> Option<ForwardRequest> {
    let value = match event.encode() {
        Ok(value) => value,
        Err(error) => {
            warn!(topic = event.topic(), %error, "cannot encode an event");
            return None;
        }
    };
    let type_url = event.type_url().to_owned();
    Some(ForwardRequest {
        envelope: MessageField::some(Envelope {
            timestamp: MessageField::some(at.into()),
            namespace: namespace.to_string(),
            topic: event.topic().into(),
            event: MessageField::some(Any { type_url, value, ..Any::default() }),
            ..Envelope::default()
        }),
        ..ForwardRequest::default()
    })
}
