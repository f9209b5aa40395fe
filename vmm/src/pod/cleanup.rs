// SPDX-License-Identifier: Apache-2.0
//! What was made on the host for a pod in a virtual machine, and how to remove it.
//!
//! Each entry is noted before the thing is made, so a failure at any line leaves nothing behind.
//! The share is the exception: what a failed attempt leaves of it is in the pod's directory and in
//! the mount namespace of this process, and goes with them. Entries are removed in reverse order.
//! An entry is dropped only after its removal succeeded, so that a failed removal is repeated.

use crate::host::network;
use crate::host::share::Share;
use magnetar_core::error::Result;
use magnetar_core::home::{self, Home};
use magnetar_core::hooks;
use magnetar_core::reaper::Reaper;
use magnetar_core::record::PodRecord;
use magnetar_core::sandbox::Single;
use magnetar_core::sandbox_files::SandboxFiles;
use std::sync::Arc;
use tracing::warn;

/// Something on the host that must be removed.
#[derive(Debug, Clone)]
pub enum Cleanup {
    /// The cgroup of the machine's processes, which the pod's record names.
    Cgroup,
    /// What the first hooks of a container without a pod have made, even if a later hook failed.
    Hooks(Arc<Home>, Box<Single>),
    /// This process is in the pod's network namespace.
    InNetwork(Arc<Home>),
    /// The pod's files.
    Files(SandboxFiles),
    /// The share.
    Share(Share),
    /// The tap devices and rules that connect the pod's network to the guest. They are in the pod's
    /// network namespace.
    Taps,
}

impl Cleanup {
    /// Removes it. Idempotent.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub async fn run(&self, record: &PodRecord, reaper: &Reaper) -> Result<()> {
        match self {
            Self::Cgroup => home::remove_pod_cgroup(record).await,
            Self::Hooks(home, single) => {
                run_last_hooks(home, single, reaper).await;
                Ok(())
            }
            Self::InNetwork(home) => home.leave_network(),
            Self::Files(files) => files.remove(),
            Self::Share(share) => share.remove(),
            Self::Taps => network::detach().await,
        }
    }
}

/// A failing hook must not keep its container from being removed (runtime-spec, config.md,
/// "Poststop").
async fn run_last_hooks(home: &Home, single: &Single, reaper: &Reaper) {
    let state = single.state("stopped", 0);
    if let Err(error) = hooks::run(&single.hooks.poststop, &state, home.network(), reaper).await {
        warn!(%error, "a poststop hook failed; something that was made for the container may be left");
    }
}
