// SPDX-License-Identifier: Apache-2.0
//! The containers of a pod, and what containerd's Task API does with them.
//!
//! ```text
//!   ttrpc ──> TaskService (service.rs) ──> Tasks ── Containers<R: Runtime>   processes of this host, or of this guest
//!                  wire types stop here          └─ vmm's relay              containers of a guest, asked of its agent
//! ```
//!
//! [`Tasks`] is the Task API without its wire: no type of it comes from a protocol. Semantics are those of containerd's
//! `api/runtime/task/v3/shim.proto` and of its own runc shim.

mod container;
mod containers;
pub mod gate;
pub mod registry;
mod service;
mod single;
mod spec;

pub use container::{Container, Process};
pub use containers::Containers;
pub use service::{TaskService, any};
pub use spec::read_bundle;

use crate::cgroup::stats::Metrics;
use crate::error::{Error, Result};
use crate::ids::{ContainerId, ExecId};
use crate::mount::Mount;
use crate::process::Phase;
use crate::reaper::Exit;
use crate::runtime::Checkpoint;
use crate::stdio::StdioSpec;
use crate::terminal::Size;
use std::path::PathBuf;

/// The containers of one pod. Cheap to clone.
///
/// More methods than a trait of ours usually has: each is a call of the Task API, and every kind of pod answers all of them.
/// `exec: None` means a container's first process, its init. Unless said otherwise a method fails with `NotFound` for an unknown
/// container or exec.
pub trait Tasks: Clone + Send + Sync + 'static {
    /// Makes a container, whose init waits for [`start`](Self::start). Returns the init's process id on the host. Not cancel-safe.
    ///
    /// # Errors
    /// `AlreadyExists` for a name in use, and whatever the bundle, the mounts or the runtime refuse; then nothing of it is left.
    fn create(&self, request: CreateRequest) -> impl Future<Output = Result<u32>> + Send;

    /// Lets a container's program run, or runs an exec. Returns the process id on the host.
    ///
    /// # Errors
    /// `FailedPrecondition` in the wrong phase, or what the runtime says.
    fn start(&self, id: &ContainerId, exec: Option<&ExecId>) -> impl Future<Output = Result<u32>> + Send;

    /// Removes an exec, or a container that has ended (or never ran). Returns the process id that it had and how it ended. Not
    /// cancel-safe; can be repeated.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    fn delete(&self, id: &ContainerId, exec: Option<&ExecId>) -> impl Future<Output = Result<(u32, Exit)>> + Send;

    /// Announces an exec, which [`start`](Self::start) runs. `process` is `process` of the OCI specification, as JSON.
    ///
    /// # Errors
    /// `FailedPrecondition` where the container does not run, `AlreadyExists` for a name in use.
    fn exec(&self, id: &ContainerId, exec: ExecId, process: Vec<u8>, stdio: StdioSpec) -> Result<()>;

    /// Sends a signal to one process, or to all of the container's.
    ///
    /// # Errors
    /// `NotFound` also where the process has ended, which callers take for success; `FailedPrecondition` for an exec that has not been
    /// started.
    fn kill(&self, id: &ContainerId, exec: Option<&ExecId>, signal: u32, all: bool) -> impl Future<Output = Result<()>> + Send;

    /// Freezes (`true`) or thaws a container.
    ///
    /// # Errors
    /// `FailedPrecondition` in the wrong phase.
    fn freeze(&self, id: &ContainerId, frozen: bool) -> impl Future<Output = Result<()>> + Send;

    /// Writes a container's state to disk.
    ///
    /// # Errors
    /// `FailedPrecondition` where it does not run, `Unimplemented` where its kind has no checkpoints.
    fn checkpoint(&self, id: &ContainerId, checkpoint: Checkpoint) -> impl Future<Output = Result<()>> + Send;

    /// Changes a container's limits. `resources` is `linux.resources` of the OCI specification, as JSON.
    ///
    /// # Errors
    /// `NotFound` also for one that has ended: containerd takes that, and nothing else, for an end that it has not heard of yet.
    /// `FailedPrecondition` where it does not run yet.
    fn update(&self, id: &ContainerId, resources: &[u8]) -> impl Future<Output = Result<()>> + Send;

    /// Gives a process's terminal another size. A process without a terminal (yet) has nothing to resize, which is no error.
    ///
    /// # Errors
    /// `FailedPrecondition` for an exec that has ended.
    fn resize(&self, id: &ContainerId, exec: Option<&ExecId>, size: Size) -> impl Future<Output = Result<()>> + Send;

    /// Ends a process's input.
    fn close_stdin(&self, id: &ContainerId, exec: Option<&ExecId>) -> impl Future<Output = Result<()>> + Send;

    /// Where a process is in its life. Never waits.
    fn state(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<State>;

    /// Waits for a process's end. Cancel-safe.
    fn wait(&self, id: &ContainerId, exec: Option<&ExecId>) -> impl Future<Output = Result<Exit>> + Send;

    /// The process ids on the host of all of a container's processes. containerd, started anew, takes a task without processes for one
    /// that was never made, and removes it (`core/runtime/v2/shim_load.go`): so one that has ended has its init's.
    fn pids(&self, id: &ContainerId) -> impl Future<Output = Result<Vec<u32>>> + Send;

    /// What a container uses.
    fn statistics(&self, id: &ContainerId) -> impl Future<Output = Result<Metrics>> + Send;

    /// Whether there is a container.
    fn any(&self) -> bool;

    /// Waits until a container's init has ended, and all that it has written has been passed on. Does not wait for a container that is
    /// not there. Cancel-safe.
    fn ended(&self, id: &ContainerId) -> impl Future<Output = ()> + Send;
}

/// A container to be made, as it was asked for.
#[derive(Debug)]
pub struct CreateRequest {
    /// Its name.
    pub container: ContainerId,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What its root filesystem is mounted from; none if the bundle has it.
    pub rootfs: Vec<Mount>,
    /// Its streams.
    pub stdio: StdioSpec,
    /// Where to restore it from.
    pub checkpoint: Option<PathBuf>,
}

/// A process, as State answers for it.
#[derive(Debug, Clone)]
pub struct State {
    /// Its container's bundle.
    pub bundle: PathBuf,
    /// Where it is in its life. What lives in a frozen container is frozen.
    pub phase: Phase,
    /// Where its streams lead.
    pub stdio: StdioSpec,
}

/// A process's name in messages.
pub fn subject(id: &ContainerId, exec: Option<&ExecId>) -> String {
    match exec {
        None => format!("container {id}"),
        Some(exec) => format!("exec {exec} of container {id}"),
    }
}

/// The answer to a resize of a process in this `phase` that has no terminal (yet): there is nothing to resize.
///
/// # Errors
/// `FailedPrecondition` for an exec that has ended.
pub fn no_terminal(id: &ContainerId, exec: Option<&ExecId>, phase: Phase) -> Result<()> {
    match exec {
        Some(_) if phase.exit().is_some() => Err(Error::precondition(format!("cannot resize {}: it has ended", subject(id, exec)))),
        Some(_) | None => Ok(()),
    }
}
