// SPDX-License-Identifier: Apache-2.0
//! How a container is made: the interface between the Task API and whatever runs processes.
//!
//! An implementation makes processes and returns their ids. It keeps all its state on disk. All
//! further operations on a process go through it too. Their defaults are for containers that are
//! processes of this host, as with runc and libcontainer: the [`Reaper`] handles signals and ends,
//! and the container's cgroup the rest. A runtime whose containers live inside its own process, as
//! with an app kernel, overrides them.

pub mod cli;
pub mod libcontainer;

use crate::cgroup::OwnedCgroup;
use crate::cgroup::oom::{self, OomWatch};
use crate::cgroup::stats::{self, Metrics};
use crate::error::{Code, Error, Result};
use crate::ids::{ContainerId, ExecId};
use crate::reaper::{Exit, Reaper};
use crate::sandbox::Death;
use crate::stdio::ChildStreams;
use crate::task::subject;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use tokio_stream::Stream;

/// The streams for a new process.
#[derive(Debug)]
pub enum Streams {
    /// Three descriptors.
    Pipes(ChildStreams),
    /// A new terminal. Its master is returned in [`Made`].
    Terminal,
}

/// A process that was made.
#[derive(Debug)]
pub struct Made {
    /// Its id on the host. It is a child of this process, or becomes one soon.
    pub pid: u32,
    /// The master of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
}

/// The request to make a container from a bundle.
#[derive(Debug)]
pub struct Creation<'a> {
    /// Its name.
    pub container: &'a ContainerId,
    /// The OCI bundle: a directory with `config.json`.
    pub bundle: &'a Path,
    /// The streams of its init.
    pub streams: Streams,
    /// The checkpoint to restore it from, instead of starting its program.
    pub checkpoint: Option<&'a Path>,
    /// Its cgroup, if its specification names one.
    pub cgroup: Option<&'a OwnedCgroup>,
}

/// A further process in a running container.
#[derive(Debug)]
pub struct Execution<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// The process's name, for messages and file names.
    pub exec: &'a ExecId,
    /// `process` of the OCI specification, as JSON.
    pub process: &'a [u8],
    /// Its streams.
    pub streams: Streams,
}

/// The request for a checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// The directory for the image.
    pub image: PathBuf,
    /// Whether the container ends with it.
    pub exit: bool,
}

/// A process that was made and has not been deleted.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its container.
    pub container: &'a ContainerId,
    /// The exec; `None` for the container's init.
    pub exec: Option<&'a ExecId>,
    /// Its process id, from [`Made`].
    pub pid: u32,
}

/// The number of a container's processes that the kernel has killed for lack of memory. Yields a
/// value whenever it grows.
pub type Kills = Pin<Box<dyn Stream<Item = u64> + Send>>;

/// Makes containers. Methods are idempotent if their name suggests it. Only `start` is cancel-safe:
/// the task that owns the container runs the others to completion.
///
/// The methods with defaults are for containers that are processes of this host.
pub trait Runtime: Send + Sync + 'static {
    /// Runs the process that the pod's containers will live in, if they do so, as in an app kernel.
    /// Called once, before the first container is made. [`stop_sandbox`](Self::stop_sandbox)
    /// removes what a failed call has made.
    fn start_sandbox(&self) -> impl Future<Output = Result<()>> + Send {
        std::future::ready(Ok(()))
    }

    /// Ends that process after the last container. Idempotent; also called if it was not started.
    fn stop_sandbox(&self) -> impl Future<Output = Result<()>> + Send {
        std::future::ready(Ok(()))
    }

    /// Waits until that process has ended by itself. Returns how. Cancel-safe.
    fn sandbox_died(&self) -> impl Future<Output = Death> + Send {
        std::future::pending()
    }

    /// Makes a container whose init waits for [`start`](Self::start).
    fn create(&self, creation: Creation<'_>) -> impl Future<Output = Result<Made>> + Send;

    /// Lets the init run the user's program.
    fn start(&self, container: &ContainerId) -> impl Future<Output = Result<()>> + Send;

    /// Starts a further process.
    fn exec(&self, execution: Execution<'_>) -> impl Future<Output = Result<Made>> + Send;

    /// Freezes (`true`) or thaws all processes.
    fn freeze(&self, container: &ContainerId, frozen: bool) -> impl Future<Output = Result<()>> + Send;

    /// Changes limits; `resources` is `linux.resources` of the OCI specification, as JSON.
    fn update(&self, container: &ContainerId, resources: &[u8]) -> impl Future<Output = Result<()>> + Send;

    /// Writes a container's state to disk.
    fn checkpoint(&self, container: &ContainerId, checkpoint: Checkpoint) -> impl Future<Output = Result<()>> + Send;

    /// Kills the remaining processes and removes the container. An unknown container is no error.
    fn delete(&self, container: &ContainerId) -> impl Future<Output = Result<()>> + Send;

    /// Watches a process from this call on, and waits for its end. Cancel-safe.
    fn ended(&self, process: Subject<'_>, reaper: &Reaper) -> impl Future<Output = Exit> + Send + 'static + use<Self> {
        let ended = reaper.watch(process.pid);
        async move { ended.await.unwrap_or_else(|_| Exit::killed()) }
    }

    /// Sends a signal to a process that is watched.
    ///
    /// # Errors
    /// `NotFound` if it has ended, `InvalidArgument` for an invalid signal.
    fn signal(&self, process: Subject<'_>, reaper: &Reaper, signal: u32) -> impl Future<Output = Result<()>> + Send {
        let sent = reaper.signal(process.pid, signal).map_err(|e| {
            let code = if e.raw_os_error() == Some(libc::ESRCH) { Code::NotFound } else { Code::InvalidArgument };
            Error::new(code, format!("cannot send signal {signal} to {}: {e}", subject(process.container, process.exec)))
        });
        std::future::ready(sent)
    }

    /// Sends a signal to all processes of a container; no process is no error. Here and below,
    /// `cgroup` is the container's own, if its specification names one.
    fn signal_all(&self, container: &ContainerId, cgroup: Option<&OwnedCgroup>, signal: u32) -> impl Future<Output = Result<()>> + Send {
        std::future::ready(required_cgroup(container, cgroup).and_then(|cgroup| cgroup.signal(signal)))
    }

    /// The host's ids of all processes of a container.
    fn pids(&self, container: &ContainerId, cgroup: Option<&OwnedCgroup>) -> impl Future<Output = Result<Vec<u32>>> + Send {
        std::future::ready(required_cgroup(container, cgroup).and_then(|cgroup| cgroup.pids(true)))
    }

    /// A container's resource usage.
    fn statistics(&self, container: &ContainerId, cgroup: Option<&OwnedCgroup>) -> impl Future<Output = Result<Metrics>> + Send {
        std::future::ready(required_cgroup(container, cgroup).and_then(|cgroup| stats::metrics(cgroup)))
    }

    /// How many processes of a container were killed for lack of memory.
    fn kills(&self, _container: &ContainerId, cgroup: Option<&OwnedCgroup>) -> u64 {
        cgroup.map_or(0, |cgroup| oom::oom_kills(cgroup))
    }

    /// Watches [`kills`](Self::kills) while the container exists.
    ///
    /// # Errors
    /// If it cannot be watched.
    fn watch_kills(&self, _container: &ContainerId, cgroup: Option<&OwnedCgroup>) -> Result<Kills> {
        match cgroup {
            Some(cgroup) => Ok(Box::pin(OomWatch::new(cgroup)?.stream())),
            None => Ok(Box::pin(tokio_stream::pending())),
        }
    }

    /// Whether to let the kernel prepare fast moves between cgroups before an exec. A runtime that
    /// relies on the slow move says no.
    fn execs_into_warm_cgroups(&self) -> bool {
        true
    }

    /// Whether the runtime itself runs a container's last hooks if it cannot make the container.
    /// runc does, others do not.
    fn undoes_hooks(&self) -> bool {
        false
    }
}

/// A container's cgroup, or an error if it has none.
fn required_cgroup<'a>(container: &ContainerId, cgroup: Option<&'a OwnedCgroup>) -> Result<&'a OwnedCgroup> {
    cgroup.ok_or_else(|| Error::precondition(format!("container {container} has no cgroup of its own")))
}
