// SPDX-License-Identifier: Apache-2.0
//! The containers of a pod in a virtual machine. The agent in the guest has them; requests of
//! containerd are passed on to it.
//!
//! The host keeps files, streams and records. It answers State and Wait from its records, so a
//! guest that hangs does not delay them. All other calls end with the guest's answer or with the
//! machine.

mod container;
mod containers;
mod create;
mod disks;
pub mod guest;
mod memory;
mod resize;
pub mod streams;
pub mod translate;

use crate::host::share::Share;
use crate::hypervisor::connection::Connection;
use crate::machine::size::{Limits, Size, Sizing};
use container::Container;
use create::REQUEST_TIMEOUT;
use guest::{Failure, Guest, TaskAnswer};
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::events::Events;
use magnetar_core::idle::Idle;
use magnetar_core::ids::ContainerId;
use magnetar_core::reaper::Reaper;
use magnetar_core::record::PodDir;
use magnetar_core::sandbox_files::SandboxFiles;
use magnetar_core::server::Parts;
use magnetar_core::task::gate::{CREATE_TIMEOUT, Gate};
use magnetar_core::task::registry::Registry;
use memory::MemoryVolumes;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;
use tracing::warn;

/// How long to wait, after a connection to the guest broke, until the machine's end is known. A
/// machine that switches itself off takes some seconds.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last output of a container without a pod may stay unread before its machine is
/// switched off.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// The containers of one pod. Cheap to clone.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

struct Shared {
    pod: PodDir,
    reaper: Reaper,
    events: Events,
    idle: Idle,
    tasks: TaskTracker,
    /// The pod's /dev/shm on the host, as containers' specifications name it.
    shm: PathBuf,
    files: OnceLock<SandboxFiles>,
    running: OnceLock<Running>,
    /// Set if the only container has no pod. Its machine is started with the container, not before.
    is_single: OnceLock<()>,
    memory: MemoryVolumes,
    /// The tasks that copy the guest's output.
    outputs: TaskTracker,
    gate: Gate,
    /// One change of the machine's size at a time.
    resizing: Semaphore,
    /// The size of the machine that was asked for last; `None` before the first change.
    size: Mutex<Option<Size>>,
    /// What the pod may use as a whole; `None` before somebody says so while it runs.
    pod_limits: Mutex<Option<Limits>>,
    containers: Registry<ContainerId, Container>,
}

/// A running machine.
pub struct Running {
    /// Its agent.
    pub guest: Guest,
    /// The host's files that it sees.
    pub share: Share,
    /// Its hypervisor.
    pub hypervisor: Connection,
    /// How large it may be.
    pub sizing: Sizing,
    /// The hypervisor's process id.
    pub pid: u32,
    /// Why it has ended; `None` while it runs.
    pub death: watch::Receiver<Option<Arc<str>>>,
    /// Ends it with a reason.
    pub condemn: mpsc::Sender<String>,
}

impl Running {
    /// Why it has ended; `None` while it runs.
    pub fn death(&self) -> Option<Arc<str>> {
        self.death.borrow().clone()
    }

    /// Waits for the machine's end, and returns it as an error. Cancel-safe.
    async fn end_error(&self) -> Error {
        let mut death = self.death.clone();
        let reason = death.wait_for(Option::is_some).await;
        let reason = reason.ok().as_deref().and_then(Option::as_deref).unwrap_or("it was stopped").to_string();
        Error::new(Code::Unavailable, format!("the pod's virtual machine has ended: {reason}"))
    }

    /// Explains a broken connection to the guest: by the machine's end, if that becomes known soon,
    /// otherwise by `error`.
    async fn explain_broken(&self, error: Error) -> Error {
        tokio::time::timeout(END_TIMEOUT, self.end_error()).await.unwrap_or(error)
    }

    /// Runs a call to the guest that needs no waiting there.
    async fn answered<T>(&self, call: impl Future<Output = TaskAnswer<T>>) -> Result<T> {
        tokio::time::timeout(REQUEST_TIMEOUT, self.call(call)).await.unwrap_or_else(|_| Err(guest::no_answer(REQUEST_TIMEOUT)))
    }

    /// Runs a call to the guest, until the machine ends.
    async fn call<T>(&self, call: impl Future<Output = TaskAnswer<T>>) -> Result<T> {
        let outcome = tokio::select! {
            biased;
            outcome = call => outcome,
            ended = self.end_error() => return Err(ended),
        };
        match outcome {
            Ok(value) => Ok(value),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Broken(error)) => {
                let error = self.explain_broken(error).await;
                if self.death().is_none() {
                    // No further call can succeed. Sending fails if another reason came first.
                    let _sooner = self.condemn.try_send(format!("the connection to the agent in the guest is broken: {error}"));
                }
                Err(error)
            }
        }
    }
}

impl Relay {
    /// The containers of `pod`, whose machine does not run yet. Their specifications name `shm` as
    /// the source of /dev/shm.
    pub fn new(pod: PodDir, shm: PathBuf, parts: &Parts) -> Self {
        let Parts { reaper, events, idle, tasks } = parts.clone();
        let (files, running, memory, containers) =
            (OnceLock::new(), OnceLock::new(), MemoryVolumes::default(), Registry::new("container", "this pod"));
        let (gate, is_single, outputs, resizing) = (Gate::new(), OnceLock::new(), TaskTracker::new(), Semaphore::new(1));
        Self(Arc::new(Shared {
            pod,
            reaper,
            events,
            idle,
            tasks,
            shm,
            files,
            running,
            is_single,
            memory,
            outputs,
            gate,
            resizing,
            size: Mutex::default(),
            pod_limits: Mutex::default(),
            containers,
        }))
    }

    /// Publishes these files again before each container is made.
    pub fn keep_published(&self, files: SandboxFiles) {
        let _the_first_counts = self.0.files.set(files);
    }

    /// Marks the pod's only container as one without a pod: it can be created before the machine
    /// runs, and is made when it is started.
    pub fn set_single(&self) {
        let _the_first_counts = self.0.is_single.set(());
    }

    fn is_single(&self) -> bool {
        self.0.is_single.get().is_some()
    }

    /// Sets the running machine.
    pub fn set_running(&self, running: Running) {
        let _the_first_counts = self.0.running.set(running);
    }

    /// Refuses to make more containers, and waits for those in progress.
    pub async fn close(&self) {
        if !self.0.gate.close(CREATE_TIMEOUT).await {
            warn!("a container is still being made in a pod that is being stopped");
        }
    }

    fn running(&self) -> Result<&Running> {
        self.0.running.get().ok_or_else(|| Error::precondition("the sandbox has not been started"))
    }

    fn get(&self, id: &ContainerId) -> Result<Arc<Container>> {
        self.0.containers.get(id)
    }
}
