// SPDX-License-Identifier: Apache-2.0
//! Observes a node through the kernel: its processes and their memory, and everything that a pod
//! can leave behind.
//!
//! ```text
//!   Snapshot::take ─┐                       Processes::now
//!        a test     ├─► Diff: what is new        │ .since(before) .without(payload)
//!   Snapshot::take ─┘    and what is gone        └─► Processes::memory: USS and PSS
//! ```
//!
//! The end-to-end tests compare snapshots; the benchmark and the demo add up memory. Nothing here
//! knows containerd or a sandboxer: every runtime is observed from outside, in the same way.

pub mod cgroup;
mod process;
mod snapshot;

pub use process::{Memory, Process, Processes, open_files};
pub use snapshot::{Diff, Snapshot};

/// Something of the kernel's data could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what}")]
pub struct Error {
    what: String,
    source: procfs::ProcError,
}

impl Error {
    fn reading(what: &str) -> impl FnOnce(procfs::ProcError) -> Self {
        move |source| Self { what: what.to_owned(), source }
    }
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
