// SPDX-License-Identifier: Apache-2.0
//! What was made on the host for a pod that is a virtual machine, and how each of it is removed.
//!
//! Each thing is noted before it is made, so that a failure at any line leaves nothing. It is removed in the reverse order, and is
//! forgotten only when that went well: what has failed is tried again.

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

/// One thing.
#[derive(Debug, Clone)]
pub enum Made {
    /// The cgroup of the machine's processes, which the pod's record names.
    Cgroup,
    /// What the first hooks of a container without a pod have made, also where a later one has failed.
    Hooks(Arc<Home>, Box<Single>),
    /// This process is in the pod's network namespace.
    InNetwork(Arc<Home>),
    /// The pod's files.
    Files(SandboxFiles),
    /// The share.
    Share(Share),
    /// What brings the pod's network to the guest. It is in the pod's network namespace.
    Taps,
}

impl Made {
    /// Removes it. Idempotent.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn remove(&self, record: &PodRecord, reaper: &Reaper) -> Result<()> {
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

/// That a hook fails must not keep its container from being removed (runtime-spec, config.md, "Poststop").
async fn run_last_hooks(home: &Home, single: &Single, reaper: &Reaper) {
    let state = single.state("stopped", 0);
    if let Err(error) = hooks::run(&single.hooks.poststop, &state, home.network(), reaper).await {
        warn!(%error, "not all that was made for the container may have been removed");
    }
}
