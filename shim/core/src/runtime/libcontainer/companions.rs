// SPDX-License-Identifier: Apache-2.0
//! What runs beside a container and serves it alone, such as the engine of a language model.
//!
//! The maker finds out that the container needs it, since only the maker knows the container's
//! program. The sandbox process runs it, because that process owns everything that runs.

use crate::cgroup::OwnedCgroup;
use crate::error::Result;
use crate::ids::ContainerId;
use serde_json::Value;
use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::pin::Pin;

/// What a maker asks for.
#[derive(Debug)]
pub struct Asked {
    /// What the container needs: JSON that the maker and the sandbox process agree upon.
    pub what: Value,
    /// What it was given on the host, such as open files.
    pub descriptors: Vec<OwnedFd>,
}

/// Runs what containers need beside them.
pub trait Companions: Debug + Send + Sync {
    /// Begins to serve a container that is made and not started yet. Its processes belong into
    /// `cgroup`.
    ///
    /// # Errors
    /// Why the container cannot have it.
    fn begin(&self, container: &ContainerId, cgroup: Option<&OwnedCgroup>, asked: Asked) -> Result<()>;

    /// Ends everything that was begun for a container. Idempotent.
    fn end<'a>(&'a self, container: &'a ContainerId) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}
