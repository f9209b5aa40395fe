// SPDX-License-Identifier: Apache-2.0
//! Where a sandbox process comes from, and goes back to when its pod is over.
//!
//! While there is a pod, its process is in the pod's cgroup, so that what it uses is accounted to the pod, and in the pod's
//! network namespace. The kubelet removes the cgroup, and CNI the network, as soon as the pod has stopped.

use crate::cgroup::{Cgroup, moves};
use crate::error::{Context, Result};
use crate::record::{PodDir, PodRecord};
use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// How long the kernel may take to let an empty cgroup go.
const EMPTY: Duration = Duration::from_secs(10);

/// Where this process was before there was a pod.
#[derive(Debug)]
pub struct Home {
    cgroup: Cgroup,
    network: OwnedFd,
    /// The pod's cgroup.
    pods: Cgroup,
}

impl Home {
    /// Records the pod's own cgroup, beside those of its containers and below what the kubelet made, for this process and what
    /// it runs. It is not made yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn leave(dir: &PodDir, record: &mut PodRecord, parent: Option<&str>) -> Result<Self> {
        let id = &record.sandbox;
        let path = match parent {
            Some(slice) if slice.ends_with(".slice") => {
                let slice = slice.rsplit('/').next().unwrap_or(slice);
                format!("{slice}:magnetar:{id}")
            }
            Some(parent) => format!("{}/{id}", parent.trim_end_matches('/')),
            None => format!("/magnetar/{id}"),
        };
        let cgroup = Cgroup::of_process(std::process::id())?;
        let home = Self { cgroup, network: namespace(Path::new("/proc/self/ns/net"))?, pods: Cgroup::at(&path)? };
        record.cgroup = Some(path);
        dir.write_pod(record)?;
        Ok(home)
    }

    /// Makes the cgroup. This process does not move yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make_cgroup(&self) -> Result<()> {
        self.pods.create()
    }

    /// Goes back, and removes the cgroup, if it was made. Idempotent.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn go_back(&self) -> Result<()> {
        setns(&self.network, CloneFlags::CLONE_NEWNET).context(|| "cannot leave the pod's network namespace".into())?;
        moves::join(&self.cgroup)?;
        self.pods.remove(EMPTY).await
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
