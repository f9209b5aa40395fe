// SPDX-License-Identifier: Apache-2.0
//! Removing a pod from its record alone, whatever state it was left in.
//!
//! ```text
//! 1. the sandbox process is killed if it lives, and its lock taken: from here on we are alone
//! 2. every process in the pod's and the containers' cgroups is killed, until they stay empty
//! 3. what was mounted is unmounted, and the files that containers mount are removed
//! 4. the cgroups are removed
//! 5. the record goes last, so that a clean-up that was cut short is found again
//! ```
//!
//! No OCI runtime is run for it: its state lies in the pod's directory and its cgroups are in the
//! record, so there is nothing that it could add, and a hanging one could not be in the way.

use crate::cgroup::Cgroup;
use crate::error::{Code, Context, Error, Result};
use crate::ids::ContainerId;
use crate::mount;
use crate::record::{ContainerRecord, PodDir, PodLock, PodRecord};
use crate::sandbox_files::SandboxFiles;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::path::Path;
use std::time::Duration;
use tracing::{info, warn};

/// How long a killed sandbox process may take to end: it is given nothing to wait for.
const KILLED: Duration = Duration::from_secs(5);
/// How long killed processes may take to leave their cgroup: longer is the kernel's trouble.
const CGROUP_EMPTY: Duration = Duration::from_secs(10);
/// The folder in containerd's root and state directories that its bundles are in.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// A runtime that was killed in the middle of making a container may have moved a child meanwhile.
const SWEEPS: usize = 5;

/// Removes all that is left of a pod. A pod of which nothing is left is fine.
///
/// # Errors
/// What could not be removed; the record stays and the call can be repeated.
pub async fn clean_pod(dir: &PodDir) -> Result<()> {
    if !dir.path().exists() {
        return Ok(());
    }
    let pod = match dir.pod() {
        Ok(pod) => Some(pod),
        // Made, but the record was never written: then nothing else was made either.
        Err(error) if error.code() == Code::NotFound => None,
        Err(error) => return Err(error),
    };
    let _alone = take_over(dir, pod.as_ref()).await?;
    let containers = dir.container_records()?;
    if let Some(pod) = &pod {
        kill_all(pod, &containers).await?;
        for container in &containers {
            remove_container(container).await?;
        }
        for mount in &pod.mounts {
            mount::unmount(mount)?;
        }
        if let Some(path) = &pod.cgroup {
            Cgroup::at(path)?.remove(CGROUP_EMPTY).await?;
        }
        SandboxFiles::new(&pod.config.containerd, &pod.sandbox, dir).remove()?;
        info!(sandbox = %pod.sandbox, containers = containers.len(), "removed");
    }
    dir.remove()
}

/// Removes all that is left of one container of a pod whose sandbox process is gone.
///
/// # Errors
/// As [`clean_pod`]; `FailedPrecondition` while the sandbox process lives, whose container it is.
pub async fn clean_container(dir: &PodDir, id: &ContainerId) -> Result<()> {
    if !dir.path().exists() {
        return Ok(());
    }
    let Some(_alone) = dir.try_lock()? else {
        return Err(Error::precondition(format!("container {id} belongs to a sandbox process that lives")));
    };
    let Some(container) = dir.container_records()?.into_iter().find(|record| record.container == *id) else {
        return Ok(());
    };
    remove_container(&container).await?;
    dir.remove_container(id)
}

/// Kills the sandbox process if there is one, and takes its lock.
async fn take_over(dir: &PodDir, pod: Option<&PodRecord>) -> Result<PodLock> {
    if let Some(lock) = dir.try_lock()? {
        return Ok(lock);
    }
    // The lock is held, so its holder lives; the holder writes its own pid.
    if let Some(pid) = pod.and_then(|pod| Pid::from_raw(pod.pid as i32))
        && let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)
    {
        warn!(pid = pid.as_raw_nonzero().get(), dir = %dir.path().display(), "killing the sandbox process");
        let _ended_meanwhile = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        let pidfd = magnetar_sys::readiness::watch(pidfd).context(|| "cannot watch a sandbox process".into())?;
        let _bounded = tokio::time::timeout(KILLED, pidfd.readable()).await;
    }
    match dir.try_lock()? {
        Some(lock) => Ok(lock),
        None => Err(Error::new(Code::Unavailable, format!("{}: another process serves or removes this pod", dir.path().display()))),
    }
}

async fn kill_all(pod: &PodRecord, containers: &[ContainerRecord]) -> Result<()> {
    let paths: Vec<&str> = pod.cgroup.iter().chain(containers.iter().filter_map(|c| c.cgroup.as_ref())).map(String::as_str).collect();
    for _ in 0..SWEEPS {
        let mut killed = false;
        for path in &paths {
            let cgroup = Cgroup::at(path)?;
            // A clean-up that runs in the pod's own cgroup must outlive it.
            let own = std::process::id();
            let pids = cgroup.pids(true)?;
            if pids.contains(&own) {
                return Err(Error::precondition(format!("cannot remove a pod from inside its own cgroup {path}")));
            }
            if !pids.is_empty() {
                cgroup.kill_all(CGROUP_EMPTY).await?;
                killed = true;
            }
        }
        if !killed {
            return Ok(());
        }
    }
    Err(Error::internal(format!("processes keep appearing in {}", paths.join(", "))))
}

async fn remove_container(container: &ContainerRecord) -> Result<()> {
    if let Some(path) = &container.cgroup {
        let cgroup = Cgroup::at(path)?;
        cgroup.kill_all(CGROUP_EMPTY).await?;
        cgroup.remove(CGROUP_EMPTY).await?;
    }
    // Its root filesystem, and what was mounted beside it only to make that.
    for mounted in mount::mounts_below(&container.bundle)? {
        mount::unmount(&mounted)?;
    }
    remove_bundle(container)
}

/// Removes the bundle and what its `work` leads to, where both are containerd's.
///
/// containerd forgets them when it loses the connection between Create and Start: its Delete fails, is not
/// tried again, and they stay until containerd starts anew. Where it does come to remove them, it does not mind that they are gone.
fn remove_bundle(container: &ContainerRecord) -> Result<()> {
    let is_containerds = |path: &Path| {
        let mut names = path.components().rev().map(|component| component.as_os_str());
        let (id, _namespace, tasks) = (names.next(), names.next(), names.next());
        path.is_absolute() && id.is_some_and(|id| id == container.container.as_str()) && tasks.is_some_and(|name| name == TASKS)
    };
    let bundle = &container.bundle;
    let work = std::fs::read_link(bundle.join("work")).ok();
    for dir in work.iter().chain([bundle]).filter(|dir| is_containerds(dir)) {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(|| format!("cannot remove {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
