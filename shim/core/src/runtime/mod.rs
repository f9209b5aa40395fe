// SPDX-License-Identifier: Apache-2.0
//! How one container is made: the seam between the Task API and whatever runs processes.
//!
//! An implementation makes processes and says their ids; it never waits for them (the
//! [`Reaper`](crate::reaper::Reaper) does) and keeps no state of its own that is not on disk.

pub mod cli;
pub mod libcontainer;

use crate::error::Result;
use crate::ids::{ContainerId, ExecId};
use crate::stdio::ChildStreams;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

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

/// Makes containers. All methods are idempotent where their name suggests it. None but `start` is cancel-safe:
/// they are run to their end by the task that owns the container.
pub trait Runtime: Send + Sync + 'static {
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

    /// Whether it gains from a kernel that moves processes between cgroups at once when it makes an exec: not one that counts on the
    /// time this takes otherwise.
    fn execs_into_warm_cgroups(&self) -> bool {
        true
    }

    /// Whether it runs a container's last hooks when it cannot make the container. runc does, others do not.
    fn undoes_hooks(&self) -> bool {
        false
    }

    /// The program that can delete the container if this process dies.
    fn program(&self) -> &Path;
}
