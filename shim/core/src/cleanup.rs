// SPDX-License-Identifier: Apache-2.0
//! Removes a pod whose sandbox process is gone, whatever state the pod is in.
//!
//! ```text
//! 1. kill the sandbox process if it lives, and take its lock: from here on no other process touches the pod
//! 2. kill every process in the cgroups of the sandbox process, the pod and its containers, until they stay empty
//! 3. unmount the pod's mounts, and remove the files that containers mount
//! 4. remove the cgroups
//! 5. remove the record last, so that an interrupted clean-up is found again
//! ```
//!
//! The record says what has to be removed. If it is damaged or gone, clean-up searches the kernel's
//! own lists for everything that has the names of the pod and its containers ([`traces`]), and logs
//! that. So such a pod can be removed as well. A record is never trusted if it would harm another
//! pod.
//!
//! No OCI runtime is run. Its state is in the pod's directory and its cgroups are in the record, so
//! it could add nothing, and it might hang.

mod traces;

use crate::cgroup::OwnedCgroup;
use crate::config::Containerd;
use crate::error::{Code, Context, Error, Result};
use crate::ids::{ContainerId, Namespace, SandboxId};
use crate::mount;
use crate::record::{ContainerRecord, Found, PodDir, PodLock, PodRecord};
use crate::sandbox_files::SandboxFiles;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::{info, warn};

/// How long a killed sandbox process may take to end. Nothing delays it.
const KILLED: Duration = Duration::from_secs(5);
/// How long killed processes may take to leave their cgroup. If it takes longer, the kernel has a
/// problem.
const CGROUP_EMPTY: Duration = Duration::from_secs(10);
/// How often all cgroups are killed: a runtime that was killed while it made a container may have
/// moved a child meanwhile.
const SWEEPS: usize = 5;

/// The remains of a container, to be removed.
#[derive(Debug)]
struct Remains {
    cgroups: Vec<OwnedCgroup>,
    bundles: Vec<PathBuf>,
}

/// Removes all that is left of a pod. It is no error if nothing is left.
///
/// # Errors
/// What could not be removed; the record stays and the call can be repeated.
pub async fn clean_pod(dir: &PodDir) -> Result<()> {
    if !dir.exists()? {
        return Ok(());
    }
    let (namespace, sandbox) = dir.names()?;
    let _alone = take_over(dir).await?;
    let found = dir.find_pod()?;
    if let Found::Damaged(why) = &found {
        warn!(%sandbox, why, "the pod's record is damaged: removing what bears the pod's name");
    }
    let containers = dir.find_containers()?;
    let count = containers.len();
    let own = OwnedCgroup::of_sandbox(&namespace, &sandbox)?;
    let pods = pod_cgroups(&found, &sandbox)?;
    let mut remains = Vec::new();
    for (id, found) in containers {
        remains.push(remains_of(&namespace, &id, found)?);
    }
    let all: Vec<&OwnedCgroup> = [&own].into_iter().chain(&pods).chain(remains.iter().flat_map(|remains| &remains.cgroups)).collect();
    kill_all(&all).await?;
    for remains in &remains {
        remains.remove().await?;
    }
    for mount in found.record().into_iter().flat_map(|pod| &pod.mounts).filter(|mount| is_pods(mount, dir, &sandbox)) {
        mount::unmount(mount)?;
    }
    if found.record().is_none() {
        for mounted in mount::mounts_below(dir.path())? {
            mount::unmount(&mounted)?;
        }
    }
    for cgroup in [own].iter().chain(&pods) {
        cgroup.remove(CGROUP_EMPTY).await?;
    }
    for containerd in containerds(&found, &sandbox)? {
        SandboxFiles::new(&containerd, &sandbox, dir).remove()?;
    }
    info!(%sandbox, containers = count, "removed");
    dir.remove()
}

/// Removes all that is left of one container of a pod whose sandbox process is gone.
///
/// # Errors
/// Those of [`clean_pod`]; `FailedPrecondition` while the container's sandbox process lives.
pub async fn clean_container(dir: &PodDir, id: &ContainerId) -> Result<()> {
    if !dir.exists()? {
        return Ok(());
    }
    let Some(_alone) = dir.try_lock()? else {
        return Err(Error::precondition(format!("cannot clean up container {id}: its sandbox process lives")));
    };
    let (namespace, _) = dir.names()?;
    match dir.find_container(id)? {
        Found::Absent => return Ok(()),
        found @ (Found::Record(_) | Found::Damaged(_)) => remains_of(&namespace, id, found)?.remove().await?,
    }
    dir.remove_container(id)
}

/// Kills the sandbox process if there is one, and takes its lock.
async fn take_over(dir: &PodDir) -> Result<PodLock> {
    if let Some(lock) = dir.try_lock()? {
        return Ok(lock);
    }
    if let Some(holder) = dir.holder()? {
        warn!(pid = holder.pid, dir = %dir.path().display(), "killing the sandbox process");
        holder.kill();
        let pidfd = magnetar_sys::readiness::watch(holder.into_pidfd()).context(|| "cannot watch a sandbox process".into())?;
        let _bounded = tokio::time::timeout(KILLED, pidfd.readable()).await;
    }
    match dir.try_lock()? {
        Some(lock) => Ok(lock),
        None => Err(Error::new(Code::Unavailable, format!("{}: another process serves or removes this pod", dir.path().display()))),
    }
}

/// The pod's own cgroup, beside those of its containers.
fn pod_cgroups(found: &Found<PodRecord>, sandbox: &SandboxId) -> Result<Vec<OwnedCgroup>> {
    match found {
        Found::Record(pod) => match pod.cgroup.as_deref().map(|path| OwnedCgroup::recorded(path, sandbox.as_str(), false)) {
            None => Ok(Vec::new()),
            Some(Ok(cgroup)) => Ok(vec![cgroup]),
            Some(Err(error)) if is_wrong_record(&error) => {
                warn!(%sandbox, %error, "the pod's record names a cgroup that is not the pod's");
                OwnedCgroup::find(sandbox.as_str())
            }
            Some(Err(error)) => Err(error),
        },
        Found::Absent | Found::Damaged(_) => OwnedCgroup::find(sandbox.as_str()),
    }
}

/// The remains of a container, by its record. If the record cannot be trusted, everything that has
/// the container's name.
fn remains_of(namespace: &Namespace, id: &ContainerId, found: Found<ContainerRecord>) -> Result<Remains> {
    match found {
        Found::Record(ContainerRecord { bundle, cgroup, claimed, .. }) => {
            let owned = cgroup.map(|path| OwnedCgroup::recorded(&path, id.as_str(), claimed)).transpose();
            match owned {
                Ok(cgroup) => return Ok(Remains { cgroups: cgroup.into_iter().collect(), bundles: vec![bundle] }),
                Err(error) if is_wrong_record(&error) => {
                    warn!(container = %id, %error, "the container's record names a cgroup that is not its own")
                }
                Err(error) => return Err(error),
            }
        }
        Found::Absent => warn!(container = %id, "the container's record is gone: removing what bears its name"),
        Found::Damaged(why) => warn!(container = %id, why, "the container's record is damaged: removing what bears its name"),
    }
    Ok(Remains { cgroups: OwnedCgroup::find(id.as_str())?, bundles: traces::bundles(namespace, id)? })
}

/// Whether the error means that the record is wrong, as opposed to an error of the kernel.
fn is_wrong_record(error: &Error) -> bool {
    matches!(error.code(), Code::FailedPrecondition | Code::InvalidArgument)
}

/// Whether a mount in the record can only be the pod's: it is below the pod's directory, or below
/// one that has the pod's name.
fn is_pods(mount: &Path, dir: &PodDir, sandbox: &SandboxId) -> bool {
    let own = mount.starts_with(dir.path()) || mount.components().any(|part| part.as_os_str() == sandbox.as_str());
    if !own {
        warn!(%sandbox, mount = %mount.display(), "the pod's record names a mount that is not the pod's: it is left alone");
    }
    own
}

/// The containerds whose directories may have the files that the pod's containers mount.
fn containerds(found: &Found<PodRecord>, sandbox: &SandboxId) -> Result<Vec<Containerd>> {
    match found {
        Found::Record(pod) => Ok(vec![pod.config.containerd.clone()]),
        Found::Absent | Found::Damaged(_) => traces::containerds(sandbox),
    }
}

async fn kill_all(cgroups: &[&OwnedCgroup]) -> Result<()> {
    for _ in 0..SWEEPS {
        let mut killed = false;
        for cgroup in cgroups {
            if !cgroup.pids(true)?.is_empty() {
                cgroup.kill_all(CGROUP_EMPTY).await?;
                killed = true;
            }
        }
        if !killed {
            return Ok(());
        }
    }
    let places: Vec<String> = cgroups.iter().map(ToString::to_string).collect();
    Err(Error::internal(format!("processes keep appearing in {}", places.join(", "))))
}

impl Remains {
    async fn remove(&self) -> Result<()> {
        for cgroup in &self.cgroups {
            cgroup.kill_all(CGROUP_EMPTY).await?;
            cgroup.remove(CGROUP_EMPTY).await?;
        }
        for bundle in &self.bundles {
            // The root filesystem, and mounts beside it that were needed only to make it.
            for mounted in mount::mounts_below(bundle)? {
                mount::unmount(&mounted)?;
            }
            remove_bundle(bundle)?;
        }
        Ok(())
    }
}

/// Removes the bundle and the directory to which its link `work` points, if both are containerd's.
///
/// containerd forgets them when it loses the connection between Create and Start: its Delete fails
/// and is not repeated, and they stay until containerd restarts. If containerd does remove them
/// later, it does not mind that they are gone.
fn remove_bundle(bundle: &Path) -> Result<()> {
    let Some(id) = bundle.file_name().and_then(|id| id.to_str()) else { return Ok(()) };
    let work = std::fs::read_link(bundle.join("work")).ok();
    for dir in work.as_deref().into_iter().chain([bundle]).filter(|dir| traces::is_bundle(dir, None, id)) {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(|| format!("cannot remove {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
