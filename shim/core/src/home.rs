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
use crate::error::{Context, Error, Result};
use crate::pod_config::{CPU_PERIOD, Resources};
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

/// Checks that the cgroup which the kubelet made for a pod allows as much as the pod is said to
/// have. Whoever resizes a pod changes that cgroup first, so here nothing is left to change in it.
///
/// # Errors
/// `FailedPrecondition`, with both numbers; those of [`Cgroup::at`].
pub fn check_parent(record: &PodRecord, resources: &Resources) -> Result<()> {
    let Some(path) = &record.parent else { return Ok(()) };
    let cgroup = Cgroup::at(path)?;
    match shortage(cgroup.memory_limit(), cgroup.cpu_limit(), resources) {
        Some(less) => Err(Error::precondition(format!("{path}, the cgroup that was made for it, has {less}: raise that first"))),
        None => Ok(()),
    }
}

/// What a cgroup with these limits lacks, which are in bytes, and in microseconds in each period.
fn shortage(memory: Option<u64>, cpu: Option<(u64, u64)>, asked: &Resources) -> Option<String> {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(1);
    // Negative is unlimited: nothing is then asked for that the cgroup would have to allow.
    let bytes = asked.memory_limit.and_then(|bytes| u64::try_from(bytes).ok());
    if let (Some(has), Some(bytes)) = (memory, bytes)
        // The kernel counts whole pages.
        && has / page < bytes / page
    {
        return Some(format!("a memory limit of {has} bytes, less than {bytes}"));
    }
    let quota = asked.cpu_quota.and_then(|quota| u64::try_from(quota).ok());
    let period = asked.cpu_period.unwrap_or(CPU_PERIOD);
    if let (Some((has, of)), Some(quota)) = (cpu, quota)
        && u128::from(has) * u128::from(period) < u128::from(quota) * u128::from(of)
    {
        return Some(format!("a quota of {has} µs of processor time in {of}, less than {quota} in {period}"));
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_with_less_than_the_pod_is_said_to_have_is_named() {
        let asked = |memory, quota| Resources { memory_limit: memory, cpu_quota: quota, ..Resources::default() };
        let cpu = Some((150_000, 100_000));
        assert_eq!(shortage(Some(1 << 20), cpu, &asked(Some(1 << 20), Some(150_000))), None);
        assert_eq!(shortage(Some(1 << 20), cpu, &asked(Some((1 << 20) + 1), None)), None, "the kernel has cut it to a page");
        assert_eq!(shortage(None, None, &asked(Some(1 << 40), Some(1 << 40))), None, "there is no limit");
        assert_eq!(shortage(Some(1), Some((1, 1)), &asked(Some(-1), Some(-1))), None, "nothing is asked for");
        assert_eq!(shortage(Some(1), Some((1, 1)), &asked(None, None)), None);
        let less = shortage(Some(1 << 20), None, &asked(Some(2 << 20), None)).unwrap();
        assert_eq!(less, "a memory limit of 1048576 bytes, less than 2097152");
        let less = shortage(None, cpu, &asked(None, Some(150_001))).unwrap();
        assert_eq!(less, "a quota of 150000 µs of processor time in 100000, less than 150001 in 100000");
    }
}
