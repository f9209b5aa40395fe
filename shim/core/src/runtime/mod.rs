// SPDX-License-Identifier: Apache-2.0
//! How one container is made: the seam between the Task API and whatever runs processes.
//!
//! An implementation makes processes and says their ids; it keeps no state of its own that is not on disk. What happens to a
//! process afterwards goes through it too, with defaults for containers that are processes of this host, as those of runc and
//! libcontainer are: signals and ends by the [`Reaper`], the rest by the container's cgroup. A runtime whose containers live inside
//! a process of its own, as those of an app kernel do, answers differently.

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
    /// A new terminal, whose master comes back in [`Made`].
    Terminal,
}

/// A process that was made.
#[derive(Debug)]
pub struct Made {
    /// Its id on the host. It is a child of this process, or is about to be handed to it.
    pub pid: u32,
    /// The master of its terminal, where it has one.
    pub terminal: Option<OwnedFd>,
}

/// A container to be made from a bundle.
#[derive(Debug)]
pub struct Creation<'a> {
    /// Its name.
    pub container: &'a ContainerId,
    /// The OCI bundle: a directory with `config.json`.
    pub bundle: &'a Path,
    /// The streams of its init.
    pub streams: Streams,
    /// Where to restore it from, instead of starting its program.
    pub checkpoint: Option<&'a Path>,
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

/// How a checkpoint is made.
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
    /// The exec that it is; none for the container's init.
    pub exec: Option<&'a ExecId>,
    /// Its process id, as [`Made`] had it.
    pub pid: u32,
}

/// How many processes of a container the kernel has killed for want of memory, told each time that there are more.
pub type Kills = Pin<Box<dyn Stream<Item = u64> + Send>>;

/// Makes containers. All methods are idempotent where their name suggests it. None but `start` is cancel-safe:
/// they are run to their end by the task that owns the container.
///
/// The methods with defaults are for containers that are processes of this host.
pub trait Runtime: Send + Sync + 'static {
    /// Runs the process that the pod's containers will live in, where they live in one, as in an app kernel. Called once, before the
    /// first container is made. [`stop_sandbox`](Self::stop_sandbox) removes what a failed call has made.
    fn start_sandbox(&self) -> impl Future<Output = Result<()>> + Send {
        std::future::ready(Ok(()))
    }

    /// Ends that process, when no container is left. Idempotent, and called also where it was not started.
    fn stop_sandbox(&self) -> impl Future<Output = Result<()>> + Send {
        std::future::ready(Ok(()))
    }

    /// Waits until that process has ended by itself, and says how. Cancel-safe.
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

    /// Kills what is left and forgets the container. One that is unknown is fine.
    fn delete(&self, container: &ContainerId) -> impl Future<Output = Result<()>> + Send;

    /// Follows a process to its end, from the moment of this call on. Cancel-safe.
    fn ended(&self, process: Subject<'_>, reaper: &Reaper) -> impl Future<Output = Exit> + Send + 'static + use<Self> {
        let ended = reaper.watch(process.pid);
        async move { ended.await.unwrap_or_else(|_| Exit::killed()) }
    }

    /// Sends a signal to a process that is followed.
    ///
    /// # Errors
    /// `NotFound` for one that has ended, `InvalidArgument` for what is no signal.
    fn signal(&self, process: Subject<'_>, reaper: &Reaper, signal: u32) -> impl Future<Output = Result<()>> + Send {
        let sent = reaper.signal(process.pid, signal).map_err(|e| {
            let code = if e.raw_os_error() == Some(libc::ESRCH) { Code::NotFound } else { Code::InvalidArgument };
            Error::new(code, format!("cannot send signal {signal} to {}: {e}", subject(process.container, process.exec)))
        });
        std::future::ready(sent)
    }

    /// Sends a signal to all processes of a container, be they none. `cgroup` is the container's own, here and below, if its
    /// specification names one.
    fn signal_all(&self, container: &ContainerId, cgroup: Option<&OwnedCgroup>, signal: u32) -> impl Future<Output = Result<()>> + Send {
        std::future::ready(own(container, cgroup).and_then(|cgroup| cgroup.signal(signal)))
    }

    /// The ids of all processes of a container, as the host has them.
    fn pids(&self, container: &ContainerId, cgroup: Option<&OwnedCgroup>) -> impl Future<Output = Result<Vec<u32>>> + Send {
        std::future::ready(own(container, cgroup).and_then(|cgroup| cgroup.pids(true)))
    }

    /// What a container uses.
    fn statistics(&self, container: &ContainerId, cgroup: Option<&OwnedCgroup>) -> impl Future<Output = Result<Metrics>> + Send {
        std::future::ready(own(container, cgroup).and_then(|cgroup| stats::metrics(cgroup)))
    }

    /// How many processes of a container were killed for want of memory.
    fn kills(&self, _container: &ContainerId, cgroup: Option<&OwnedCgroup>) -> u64 {
        cgroup.map_or(0, |cgroup| oom::oom_kills(cgroup))
    }

    /// Follows [`kills`](Self::kills) for as long as the container is there.
    ///
    /// # Errors
    /// Where that cannot be watched.
    fn watch_kills(&self, _container: &ContainerId, cgroup: Option<&OwnedCgroup>) -> Result<Kills> {
        match cgroup {
            Some(cgroup) => Ok(Box::pin(OomWatch::new(cgroup)?.stream())),
            None => Ok(Box::pin(tokio_stream::pending())),
        }
    }

    /// Whether it gains from a kernel that moves processes between cgroups at once when it makes an exec: not one that counts on the
    /// time this takes otherwise.
    fn execs_into_warm_cgroups(&self) -> bool {
        true
    }

    /// Whether it runs a container's last hooks when it cannot make the container. runc does, others do not.
    fn undoes_hooks(&self) -> bool {
        false
    }
}

/// A container's cgroup, for what needs one.
fn own<'a>(container: &ContainerId, cgroup: Option<&'a OwnedCgroup>) -> Result<&'a OwnedCgroup> {
    cgroup.ok_or_else(|| Error::precondition(format!("container {container} has no cgroup of its own")))
}
