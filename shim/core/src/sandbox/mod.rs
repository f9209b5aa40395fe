// SPDX-License-Identifier: Apache-2.0
//! The pod: the interface of a sandboxer, and the task that owns a pod's life.
//!
//! ```text
//!   Empty ──CreateSandbox──> Created ──StartSandbox──> Ready ──StopSandbox──> Stopped
//! ```
//!
//! One task owns the sandbox. Commands reach it through a channel and run one after another. The
//! phase is a watch channel, so that Status, Wait and Ping never wait for a boot.

mod info;
mod service;
mod single;
pub mod update;

pub use info::shown;
pub use service::{NOT_READY, SandboxService};
pub use single::{Single, run_last_hooks};

use crate::cgroup::stats::Metrics;
use crate::error::{Code, Error, Result};
use crate::pod_config::{PodConfig, Resources};
use crate::reaper::Exit;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

/// How many commands may wait behind the current one. containerd sends one at a time.
const QUEUE: usize = 8;

/// The request to make a sandbox: from CreateSandbox, or for a container without a pod.
#[derive(Debug, Clone)]
pub struct PodRequest {
    /// The pod's configuration.
    pub config: PodConfig,
    /// Its network namespace; `None` if it uses the host's. For a [`Single`] container, `None` also
    /// means a new namespace if its specification asks for one without a path.
    pub netns: Option<PathBuf>,
    /// The container without a pod, if the sandbox is for one.
    pub single: Option<Single>,
}

/// A kind of sandbox, for one pod. Only the pod's owner calls it, one call at a time.
pub trait Sandboxer: Send + 'static {
    /// Prepares the pod. What a failed call has made, [`stop`](Self::stop) removes.
    fn create(&mut self, request: &PodRequest) -> impl Future<Output = Result<()>> + Send;

    /// Makes the pod ready for containers. Returns the process whose namespaces containers join.
    fn start(&mut self) -> impl Future<Output = Result<u32>> + Send;

    /// Ends all containers and releases what the pod holds. Idempotent.
    fn stop(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// The pod's resource usage.
    fn metrics(&self) -> Result<Metrics>;

    /// Lets a ready pod follow the new sum of its containers' resources. The kubelet has changed
    /// the pod's cgroup before. Returns at once, so that the pod can be stopped meanwhile; the
    /// outcome may be sent later: `FailedPrecondition` if the pod cannot follow, and is as before.
    fn resize(&mut self, resources: Resources, outcome: oneshot::Sender<Result<()>>);

    /// Waits until a ready pod has ended by itself. Returns how. Cancel-safe. Never returns for
    /// namespaces, which do not end by themselves.
    fn died(&mut self) -> impl Future<Output = Death> + Send {
        std::future::pending()
    }
}

/// The end of a pod without a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// How it ended.
    pub exit: Exit,
    /// The reason as a sentence, which users of the pod see.
    pub reason: Arc<str>,
}

/// A pod's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    /// Not created yet.
    Empty,
    /// Created, not started.
    Created,
    /// Containers can be made.
    Ready {
        /// The process whose namespaces containers join.
        pid: u32,
        /// The time when it became ready.
        since: SystemTime,
    },
    /// Ended.
    Stopped {
        /// The time when it became ready; the epoch if it never was.
        since: SystemTime,
        /// How it ended.
        exit: Exit,
    },
}

/// A command with the channel for its answer.
enum Command {
    Create(Box<PodRequest>, oneshot::Sender<Result<()>>),
    Start(oneshot::Sender<Result<u32>>),
    Stop(oneshot::Sender<Result<()>>),
    Metrics(oneshot::Sender<Result<Metrics>>),
    Resize(Box<Resources>, oneshot::Sender<Result<()>>),
}

/// The handle of a pod. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pod {
    commands: mpsc::Sender<Command>,
    phase: watch::Receiver<PodPhase>,
    death: watch::Receiver<Option<Arc<str>>>,
    shutdown: Arc<watch::Sender<bool>>,
}

impl Pod {
    /// A pod served by `sandboxer`, and the loop that owns it.
    pub fn new<S: Sandboxer>(sandboxer: S) -> (Self, impl Future<Output = ()> + Send) {
        let (commands, received) = mpsc::channel(QUEUE);
        let (phase_sender, phase) = watch::channel(PodPhase::Empty);
        let (death_sender, death) = watch::channel(None);
        let pod = Self { commands, phase, death, shutdown: Arc::new(watch::Sender::new(false)) };
        (pod, own(sandboxer, received, phase_sender, death_sender))
    }

    /// The current phase.
    pub fn phase(&self) -> PodPhase {
        *self.phase.borrow()
    }

    /// Why the pod has ended, if nobody asked for it.
    pub fn reason(&self) -> Option<Arc<str>> {
        self.death.borrow().clone()
    }

    /// Prepares the pod.
    pub async fn create(&self, request: PodRequest) -> Result<()> {
        self.ask(|answer| Command::Create(Box::new(request), answer)).await
    }

    /// Makes the pod ready; returns the process whose namespaces containers join.
    pub async fn start(&self) -> Result<u32> {
        self.ask(Command::Start).await
    }

    /// Ends the pod. Idempotent.
    pub async fn stop(&self) -> Result<()> {
        self.ask(Command::Stop).await
    }

    /// The pod's resource usage.
    pub async fn metrics(&self) -> Result<Metrics> {
        self.ask(Command::Metrics).await
    }

    /// Lets the pod follow new resources.
    ///
    /// # Errors
    /// `FailedPrecondition` if the pod does not run, or cannot follow them.
    pub async fn resize(&self, resources: Resources) -> Result<()> {
        self.ask(|answer| Command::Resize(Box::new(resources), answer)).await
    }

    /// Waits for the pod's end. Cancel-safe.
    pub async fn exit(&self) -> Exit {
        let mut phase = self.phase.clone();
        match phase.wait_for(|phase| matches!(phase, PodPhase::Stopped { .. })).await.map(|phase| *phase) {
            Ok(PodPhase::Stopped { exit, .. }) => exit,
            Ok(PodPhase::Empty | PodPhase::Created | PodPhase::Ready { .. }) | Err(_) => Exit::killed(),
        }
    }

    /// Ends the pod and asks the process to end.
    pub async fn shut_down(&self) -> Result<()> {
        self.stop().await?;
        self.shutdown.send_replace(true);
        Ok(())
    }

    /// Waits until [`shut_down`](Self::shut_down) was asked for. Cancel-safe.
    pub async fn asked_to_shut_down(&self) {
        let mut asked = self.shutdown.subscribe();
        // It cannot fail: the sender lives in self.
        let _asked = asked.wait_for(|asked| *asked).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let gone = || Error::new(Code::Unavailable, "the sandbox is shutting down");
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// The pod's owner. Runs each command to completion, even if the caller no longer waits.
async fn own<S: Sandboxer>(
    mut sandboxer: S,
    mut commands: mpsc::Receiver<Command>,
    phase: watch::Sender<PodPhase>,
    death: watch::Sender<Option<Arc<str>>>,
) {
    loop {
        let now = *phase.borrow();
        let command = tokio::select! {
            // Report a death before running commands on a dead pod.
            biased;
            died = sandboxer.died(), if matches!(now, PodPhase::Ready { .. }) => {
                let PodPhase::Ready { since, .. } = now else { continue };
                error!(reason = %died.reason, "the pod has died");
                death.send_replace(Some(died.reason));
                phase.send_replace(PodPhase::Stopped { since, exit: died.exit });
                continue;
            }
            command = commands.recv() => match command {
                Some(command) => command,
                None => return,
            },
        };
        match command {
            Command::Create(request, answer) => {
                let result = match now {
                    PodPhase::Empty => sandboxer.create(&request).await,
                    PodPhase::Created | PodPhase::Ready { .. } | PodPhase::Stopped { .. } => {
                        Err(Error::new(Code::AlreadyExists, "the sandbox was created before"))
                    }
                };
                match &result {
                    Ok(()) => {
                        phase.send_replace(PodPhase::Created);
                    }
                    Err(_) if now == PodPhase::Empty => undo(&mut sandboxer).await,
                    Err(_) => {}
                }
                reply(answer, result);
            }
            Command::Start(answer) => {
                let result = match now {
                    PodPhase::Created => sandboxer.start().await,
                    PodPhase::Ready { .. } => Err(Error::new(Code::AlreadyExists, "the sandbox was started before")),
                    PodPhase::Empty => Err(Error::precondition("the sandbox was not created")),
                    PodPhase::Stopped { .. } => Err(Error::precondition("the sandbox has ended")),
                };
                match &result {
                    Ok(pid) => {
                        info!(pid, "ready");
                        phase.send_replace(PodPhase::Ready { pid: *pid, since: SystemTime::now() });
                    }
                    Err(_) if now == PodPhase::Created => undo(&mut sandboxer).await,
                    Err(_) => {}
                }
                reply(answer, result);
            }
            Command::Stop(answer) => {
                let result = sandboxer.stop().await;
                if result.is_ok() && !matches!(now, PodPhase::Stopped { .. }) {
                    let since = match now {
                        PodPhase::Ready { since, .. } => since,
                        PodPhase::Empty | PodPhase::Created | PodPhase::Stopped { .. } => SystemTime::UNIX_EPOCH,
                    };
                    info!("stopped");
                    phase.send_replace(PodPhase::Stopped { since, exit: Exit { code: 0, at: SystemTime::now() } });
                }
                reply(answer, result);
            }
            Command::Metrics(answer) => reply(answer, sandboxer.metrics()),
            Command::Resize(resources, answer) => match now {
                PodPhase::Ready { .. } => sandboxer.resize(*resources, answer),
                PodPhase::Empty | PodPhase::Created | PodPhase::Stopped { .. } => {
                    reply(answer, Err(Error::precondition("the sandbox does not run")));
                }
            },
        }
    }
}

async fn undo<S: Sandboxer>(sandboxer: &mut S) {
    if let Err(error) = sandboxer.stop().await {
        warn!(%error, "cannot remove all of a sandbox that could not be made");
    }
}

/// Sends an answer. The caller may have left.
pub fn reply<T>(answer: oneshot::Sender<Result<T>>, result: Result<T>) {
    let _unheard = answer.send(result);
}

#[cfg(test)]
mod tests;
