// SPDX-License-Identifier: Apache-2.0
//! What the kernel shows of a node: its processes and their memory, and everything that a pod
//! can leave behind.
//!
//! ```text
//!   Snapshot::take ─┐                       Processes::now
//!        a test     ├─► Diff: what is new        │ .since(before) .without(payload)
//!   Snapshot::take ─┘    and what is gone        └─► Processes::memory: USS and PSS
//! ```
//!
//! The end-to-end tests compare snapshots, the benchmark and the demo add up memory. Nothing
//! here knows containerd or any sandboxer: what they do is seen from outside, by the same means
//! for every runtime.

pub mod cgroup;
mod process;
mod snapshot;

pub use process::{Memory, Process, Processes, open_files};
pub use snapshot::{Diff, Snapshot};

/// The kernel did not show what was asked for.
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

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
