// SPDX-License-Identifier: Apache-2.0
//! Where a sandbox process lives, which is not where its pod does.
//!
//! ```text
//!   /magnetar-sandboxes/<namespace>/<pod>   the sandbox process, and what it runs for a moment: runtimes, makers, a holder
//!   <cgroup that the kubelet made>/…        the pod's containers; a virtual machine and its helpers
//! ```
//!
//! A sandbox process is not in its pod's cgroup. So it can fork, for an exec probe, when the pod is at its limits, and nothing waits
//! for its leaving when the pod stops. Nor is it in that of the service whose `serve` has started it, or of containerd: either can be
//! stopped without it. The cgroup's place follows from the pod's names, so that clean-up finds whatever was left in there without
//! any record.
//!
//! It is in the pod's network namespace, and leaves that when the pod is over: CNI takes it away then.

use crate::cgroup::{Cgroup, OwnedCgroup, moves};
use crate::error::{Context, Result};
use crate::record::PodRecord;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the kernel may take to let an empty cgroup go.
const EMPTY: Duration = Duration::from_secs(10);

/// Where this process is at home.
#[derive(Debug)]
pub struct Home {
    network: OwnedFd,
}

impl Home {
    /// Remembers the network namespace that this process came from.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remember() -> Result<Self> {
        Ok(Self { network: namespace(Path::new("/proc/self/ns/net"))? })
    }

    /// The network namespace that this process came from: the host's.
    pub fn network(&self) -> &OwnedFd {
        &self.network
    }

    /// Begins to move this process, and `others` with it, into the cgroup of the pod's sandbox process. The receiver
    /// tells the outcome.
    ///
    /// # Errors
    /// Where the cgroup cannot be made, or there can be no thread.
    pub fn move_in(record: &PodRecord, others: Vec<u32>) -> Result<oneshot::Receiver<Result<()>>> {
        let own = OwnedCgroup::of_sandbox(&record.namespace, &record.sandbox)?;
        moves::join_soon(own, others)
    }

    /// Leaves the pod's network. Idempotent.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn leave_network(&self) -> Result<()> {
        setns(&self.network, CloneFlags::CLONE_NEWNET).context(|| "cannot leave the pod's network namespace".into())
    }
}

/// The path of a pod's own cgroup, in which a virtual machine and its helpers run: beside those of its containers, below what the
/// kubelet made.
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

/// What a pod uses: the cgroup that the kubelet made for the whole of it, or else its own.
///
/// # Errors
/// Those of [`Cgroup::at`].
pub fn accounted(record: &PodRecord) -> Result<Option<Cgroup>> {
    record.parent.as_ref().or(record.cgroup.as_ref()).map(|path| Cgroup::at(path)).transpose()
}

/// Removes the pod's own cgroup, if it has one, in which nobody may be left. Idempotent.
///
/// # Errors
/// `DeadlineExceeded` while somebody is in it.
pub async fn remove_pod_cgroup(record: &PodRecord) -> Result<()> {
    match &record.cgroup {
        Some(path) => OwnedCgroup::recorded(path, record.sandbox.as_str(), false)?.remove(EMPTY).await,
        None => Ok(()),
    }
}

/// Opens a file that stands for a namespace.
///
/// # Errors
/// What the kernel says.
pub fn namespace(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("cannot open the namespace {}", path.display()))
}
