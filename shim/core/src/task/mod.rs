// SPDX-License-Identifier: Apache-2.0
//! The containers of a pod, and containerd's Task API for them.
//!
//! ```text
//!   ttrpc ──> TaskService (service.rs) ──> Tasks ── Containers<R: Runtime>   processes of this host or guest
//!                  wire types stop here          └─ vmm's relay              containers in a guest, through its agent
//! ```
//!
//! [`Tasks`] is the Task API without the protocol's types. Its semantics are those of containerd's
//! `api/runtime/task/v3/shim.proto` and of containerd's own runc shim.

mod container;
mod containers;
pub mod gate;
pub mod registry;
mod service;
mod single;
mod spec;
mod view;

pub use container::{Container, Process};
pub use containers::Containers;
pub use service::{TaskService, metrics_message};
pub use spec::read_bundle;
pub use view::{View, add_exec, mark_deleted};

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
/// The trait has more methods than ours usually have: each is a call of the Task API, and every
/// kind of pod implements all of them. `exec: None` means the container's first process, its init.
/// Unless stated otherwise, a method fails with `NotFound` for an unknown container or exec.
pub trait Tasks: Clone + Send + Sync + 'static {
    /// Makes a container, whose init waits for [`start`](Self::start). Returns the init's process
    /// id on the host. Not cancel-safe.
    ///
    /// # Errors
    /// `AlreadyExists` for a name in use; errors of the bundle, the mounts or the runtime. Nothing
    /// is left after a failure.
    fn create(&self, request: CreateRequest) -> impl Future<Output = Result<u32>> + Send;

    /// Lets a container's program run, or runs an exec. Returns the process id on the host.
    ///
    /// # Errors
    /// `FailedPrecondition` in the wrong phase; errors of the runtime.
    fn start(&self, id: &ContainerId, exec: Option<&ExecId>) -> impl Future<Output = Result<u32>> + Send;

    /// Removes an exec, or a container that has ended or never ran. Returns its process id and its
    /// exit. Not cancel-safe; can be repeated.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    fn delete(&self, id: &ContainerId, exec: Option<&ExecId>) -> impl Future<Output = Result<(u32, Exit)>> + Send;

    /// Announces an exec, which [`start`](Self::start) runs. `process` is `process` of the OCI
    /// specification, as JSON.
    ///
    /// # Errors
    /// `FailedPrecondition` if the container does not run, `AlreadyExists` for a name in use.
    fn exec(&self, id: &ContainerId, exec: ExecId, process: Vec<u8>, stdio: StdioSpec) -> Result<()>;

    /// Sends a signal to one process, or to all processes of the container.
    ///
    /// # Errors
    /// `NotFound` also if the process has ended, which callers treat as success;
    /// `FailedPrecondition` for an exec that has not been started.
    fn kill(&self, id: &ContainerId, exec: Option<&ExecId>, signal: u32, all: bool) -> impl Future<Output = Result<()>> + Send;

    /// Freezes (`true`) or thaws a container.
    ///
    /// # Errors
    /// `FailedPrecondition` in the wrong phase.
    fn freeze(&self, id: &ContainerId, frozen: bool) -> impl Future<Output = Result<()>> + Send;

    /// Writes a container's state to disk.
    ///
    /// # Errors
    /// `FailedPrecondition` if it does not run, `Unimplemented` if its kind has no checkpoints.
    fn checkpoint(&self, id: &ContainerId, checkpoint: Checkpoint) -> impl Future<Output = Result<()>> + Send;

    /// Changes a container's limits. `resources` is `linux.resources` of the OCI specification, as
    /// JSON.
    ///
    /// # Errors
    /// `NotFound` also for a container that has ended: containerd takes only that for an end that
    /// it has not heard of yet. `FailedPrecondition` if it does not run yet.
    fn update(&self, id: &ContainerId, resources: &[u8]) -> impl Future<Output = Result<()>> + Send;

    /// Resizes a process's terminal. Does nothing for a process that has no terminal (yet).
    ///
    /// # Errors
    /// `FailedPrecondition` for an exec that has ended.
    fn resize(&self, id: &ContainerId, exec: Option<&ExecId>, size: Size) -> impl Future<Output = Result<()>> + Send;

    /// Ends a process's input.
    fn close_stdin(&self, id: &ContainerId, exec: Option<&ExecId>) -> impl Future<Output = Result<()>> + Send;

    /// One process, as it is known here. Never waits.
    fn view(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<View>;

    /// A process's state. Never waits.
    fn state(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<State> {
        self.view(id, exec).map(View::state)
    }

    /// Waits for a process's end. Cancel-safe.
    fn wait(&self, id: &ContainerId, exec: Option<&ExecId>) -> impl Future<Output = Result<Exit>> + Send {
        let view = self.view(id, exec);
        async { Ok(view?.life.exit().await) }
    }

    /// The host's process ids of all of a container's processes. After a restart, containerd takes
    /// a task without processes for one that was never made, and removes it
    /// (`core/runtime/v2/shim_load.go`). So a container that has ended reports its init's process
    /// id.
    fn pids(&self, id: &ContainerId) -> impl Future<Output = Result<Vec<u32>>> + Send;

    /// A container's resource usage.
    fn statistics(&self, id: &ContainerId) -> impl Future<Output = Result<Metrics>> + Send;

    /// Whether there is a container.
    fn has_containers(&self) -> bool;

    /// Waits until a container's init has ended and all its output has been passed on. Returns at
    /// once for an unknown container. Cancel-safe.
    fn ended(&self, id: &ContainerId) -> impl Future<Output = ()> + Send;
}

/// The request to make a container.
#[derive(Debug)]
pub struct CreateRequest {
    /// Its name.
    pub container: ContainerId,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The mounts of its root filesystem; empty if the bundle contains it.
    pub rootfs: Vec<Mount>,
    /// Its streams.
    pub stdio: StdioSpec,
    /// The checkpoint to restore it from.
    pub checkpoint: Option<PathBuf>,
}

/// The answer of State for a process.
#[derive(Debug, Clone)]
pub struct State {
    /// Its container's bundle.
    pub bundle: PathBuf,
    /// Its phase. All processes of a frozen container are frozen.
    pub phase: Phase,
    /// Its streams.
    pub stdio: StdioSpec,
}

/// A process's name in messages.
pub fn subject(id: &ContainerId, exec: Option<&ExecId>) -> String {
    match exec {
        None => format!("container {id}"),
        Some(exec) => format!("exec {exec} of container {id}"),
    }
}

/// The answer to a resize of a process in this `phase` that has no terminal (yet): success, because
/// there is nothing to resize.
///
/// # Errors
/// `FailedPrecondition` for an exec that has ended.
pub fn no_terminal(id: &ContainerId, exec: Option<&ExecId>, phase: Phase) -> Result<()> {
    match exec {
        Some(_) if phase.exit().is_some() => Err(Error::precondition(format!("cannot resize {}: it has ended", subject(id, exec)))),
        Some(_) | None => Ok(()),
    }
}
