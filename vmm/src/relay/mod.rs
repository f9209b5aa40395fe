// SPDX-License-Identifier: Apache-2.0
//! The containers of a pod that is a virtual machine: what containerd asks is asked of the agent in the guest, which has them.
//!
//! The host's part is files, streams and book-keeping. State and Wait are answered from the book, so a guest that hangs delays
//! neither; the rest ends with the guest's answer or with the machine.

mod container;
mod containers;
mod create;
mod disks;
pub mod guest;
mod memory;
pub mod streams;
pub mod translate;

use crate::host::share::Share;
use crate::hypervisor::connection::Connection;
use container::Container;
use create::ASKED;
use guest::{Failure, Guest, TaskAnswer};
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::events::Events;
use magnetar_core::idle::Idle;
use magnetar_core::ids::ContainerId;
use magnetar_core::reaper::Reaper;
use magnetar_core::record::PodDir;
use magnetar_core::sandbox_files::SandboxFiles;
use magnetar_core::server::Parts;
use magnetar_core::task::gate::{Gate, MADE};
use magnetar_core::task::registry::Registry;
use memory::Volumes;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;
use tracing::warn;

/// Between the moment when a connection to the guest breaks and the one when the machine is known to have ended: a machine
/// that is switched off takes some seconds.
const ENDED: Duration = Duration::from_secs(10);

/// How long the last output of a container without a pod may take to be read, before its machine is switched off.
const OUTPUTS: Duration = Duration::from_secs(10);

/// The containers of one pod. Cheap to clone.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

struct Shared {
    pod: PodDir,
    reaper: Reaper,
    events: Events,
    idle: Idle,
    tasks: TaskTracker,
    /// The pod's /dev/shm, as the specifications of containers have it.
    shm: PathBuf,
    files: OnceLock<SandboxFiles>,
    running: OnceLock<Running>,
    /// Set where the one container has no pod: its machine is started with it, and not before.
    is_single: OnceLock<()>,
    memory: Volumes,
    /// What passes on outputs that the guest may still write.
    outputs: TaskTracker,
    gate: Gate,
    containers: Registry<ContainerId, Container>,
}

/// A machine that runs.
pub struct Running {
    /// Its agent.
    pub guest: Guest,
    /// What it sees of the host's files.
    pub share: Share,
    /// Its hypervisor.
    pub hypervisor: Connection,
    /// The process that it is on the host.
    pub pid: u32,
    /// Why it has ended, once it has.
    pub death: watch::Receiver<Option<Arc<str>>>,
    /// Ends it, for a reason.
    pub condemn: mpsc::Sender<String>,
}

impl Running {
    /// Why it has ended, once it has.
    pub fn death(&self) -> Option<Arc<str>> {
        self.death.borrow().clone()
    }

    /// Waits for the machine's end. Cancel-safe.
    async fn ended(&self) -> Error {
        let mut death = self.death.clone();
        let reason = death.wait_for(Option::is_some).await;
        let reason = reason.ok().as_deref().and_then(Option::as_deref).unwrap_or("it was stopped").to_string();
        Error::new(Code::Unavailable, format!("the pod's virtual machine has ended: {reason}"))
    }

    /// Why a connection to the guest has broken: the machine's end, which is known a moment later, or just `error`.
    async fn broken(&self, error: Error) -> Error {
        tokio::time::timeout(ENDED, self.ended()).await.unwrap_or(error)
    }

    /// What a call to the guest brings that needs no waiting there.
    async fn answered<T>(&self, call: impl Future<Output = TaskAnswer<T>>) -> Result<T> {
        tokio::time::timeout(ASKED, self.call(call)).await.unwrap_or_else(|_| Err(guest::late(ASKED)))
    }

    /// What a call to the guest brings, or the machine's end.
    async fn call<T>(&self, call: impl Future<Output = TaskAnswer<T>>) -> Result<T> {
        let outcome = tokio::select! {
            biased;
            outcome = call => outcome,
            ended = self.ended() => return Err(ended),
        };
        match outcome {
            Ok(value) => Ok(value),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Broken(error)) => {
                let error = self.broken(error).await;
                if self.death().is_none() {
                    // Nothing can be asked of it any more. It fails where another reason was sooner.
                    let _sooner = self.condemn.try_send(format!("the connection to the agent in the guest is broken: {error}"));
                }
                Err(error)
            }
        }
    }
}

impl Relay {
    /// The containers of `pod`, whose machine does not run yet. `shm` is what they mount as /dev/shm.
    pub fn new(pod: PodDir, shm: PathBuf, parts: &Parts) -> Self {
        let Parts { reaper, events, idle, tasks } = parts.clone();
        let (files, running, memory, containers) =
            (OnceLock::new(), OnceLock::new(), Volumes::default(), Registry::new("container", "this pod"));
        let (gate, is_single, outputs) = (Gate::new(), OnceLock::new(), TaskTracker::new());
        Self(Arc::new(Shared { pod, reaper, events, idle, tasks, shm, files, running, is_single, memory, outputs, gate, containers }))
    }

    /// Sees to it that every container finds these files.
    pub fn keep_published(&self, files: SandboxFiles) {
        let _the_first_counts = self.0.files.set(files);
    }

    /// The one container has no pod. It can be created before the machine runs, and is made when it is started.
    pub fn is_for_a_single_container(&self) {
        let _the_first_counts = self.0.is_single.set(());
    }

    fn is_single(&self) -> bool {
        self.0.is_single.get().is_some()
    }

    /// The machine runs.
    pub fn runs(&self, running: Running) {
        let _the_first_counts = self.0.running.set(running);
    }

    /// Lets no more containers be made, and waits for those that are being made.
    pub async fn close(&self) {
        if !self.0.gate.close(MADE).await {
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
