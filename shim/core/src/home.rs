// SPDX-License-Identifier: Apache-2.0
//! The cgroup and the network namespace of a sandbox process.
//!
//! ```text
//!   /magnetar-sandboxes/<namespace>/<pod>   the sandbox process, and its short-lived programs: runtimes, makers, a holder
//!   <cgroup that the kubelet made>/…        the pod's containers; a virtual machine and its helpers
//! ```
//!
//! A sandbox process is not in its pod's cgroup. So it can fork for an exec probe when the pod is
//! at its limits, and stopping the pod need not wait until the process leaves. Nor is it in the
//! cgroup of `serve` or containerd, so that those can be stopped without it. The path of its cgroup
//! follows from the pod's names, so clean-up finds left processes without any record.
//!
//! It is in the pod's network namespace. It leaves that when the pod is over, because CNI then
//! removes the namespace.

use crate::cgroup::{Cgroup, OwnedCgroup, moves};
use crate::error::{Context, Result};
use crate::record::PodRecord;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the kernel may take until an empty cgroup can be removed.
const EMPTY: Duration = Duration::from_secs(10);

/// The network namespace from which this process came.
#[derive(Debug)]
pub struct Home {
    network: OwnedFd,
}

impl Home {
    /// Remembers this process's current network namespace.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn remember() -> Result<Self> {
        Ok(Self { network: namespace(Path::new("/proc/self/ns/net"))? })
    }

    /// The network namespace from which this process came: the host's.
    pub fn network(&self) -> &OwnedFd {
        &self.network
    }

    /// Begins to move this process and `others` into the cgroup of the pod's sandbox process. The
    /// receiver gets the outcome.
    ///
    /// # Errors
    /// When the cgroup cannot be made, or no thread can be started.
    pub fn move_in(record: &PodRecord, others: Vec<u32>) -> Result<oneshot::Receiver<Result<()>>> {
        let own = OwnedCgroup::of_sandbox(&record.namespace, &record.sandbox)?;
        moves::join_soon(own, others)
    }

    /// Leaves the pod's network namespace. Idempotent.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn leave_network(&self) -> Result<()> {
        setns(&self.network, CloneFlags::CLONE_NEWNET).context(|| "cannot leave the pod's network namespace".into())
    }
}

/// The path of a pod's own cgroup, in which a virtual machine and its helpers run. It is below the
/// kubelet's cgroup of the pod, beside those of the containers.
pub fn pod_cgroup(sandbox: &str, parent: Option<&str>) -> String {
    match parent {
        Some(slice) if slice.ends_with(".slice") => {
            let slice = slice.rsplit('/').next().unwrap_or(slice);
            format!("{slice}:magnetar:{sandbox}")
        }
        Some(parent) => format!("{}/{sandbox}", parent.trim_end_matches('/')),
        None => format!("/magnetar/{sandbox}"),
    }
}

/// The cgroup that accounts for all of a pod: the one that the kubelet made for it, or else the
/// pod's own.
///
/// # Errors
/// Those of [`Cgroup::at`].
pub fn accounted(record: &PodRecord) -> Result<Option<Cgroup>> {
    record.parent.as_ref().or(record.cgroup.as_ref()).map(|path| Cgroup::at(path)).transpose()
}

/// Removes the pod's own cgroup, if it has one. It must have no processes. Idempotent.
///
/// # Errors
/// `DeadlineExceeded` if it still has processes.
pub async fn remove_pod_cgroup(record: &PodRecord) -> Result<()> {
    match &record.cgroup {
        Some(path) => OwnedCgroup::recorded(path, record.sandbox.as_str(), false)?.remove(EMPTY).await,
        None => Ok(()),
    }
}

/// Opens a namespace by its file.
///
/// # Errors
/// The kernel's error.
pub fn namespace(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("cannot open the namespace {}", path.display()))
}
