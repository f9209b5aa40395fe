// SPDX-License-Identifier: Apache-2.0
//! The pod record: everything that is needed to find and remove a pod whose sandbox process is
//! gone.
//!
//! ```text
//! /run/magnetar/<namespace>/<sandbox id>/
//!     pod.json          who serves the pod, and what was made for it
//!     task.sock         the Task and Sandbox API
//!     containers/<id>.json
//!     runtime/          the OCI runtime's own state
//! ```
//!
//! The directory itself is locked (flock(2)) by the sandbox process for as long as it lives:
//! [`lock`].
//!
//! A record is trusted only if it is a regular file of a known version, and has the names of its
//! directory or file. Any other is [`Found::Damaged`], and clean-up does without it.
//!
//! A thing is recorded before it is made, so that a crash at any line leaves a record of it. Files
//! are replaced atomically. The lock tells whether the process lives, without the races of process
//! ids: the kernel releases it when the process ends. A process that takes the lock then may clean
//! up, and no other process may.

mod lock;
mod read;

pub use lock::{Holder, PodLock};
pub use read::Found;
use read::VERSION;

use crate::config::HandlerConfig;
use crate::error::{Code, Context, Error, Result};
use crate::ids::{ContainerId, Namespace, SandboxId};
use crate::mount;
use rustix::fs::Mode;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory of this node's records.
pub const DEFAULT_STATE_DIR: &str = "/run/magnetar";

/// A Unix socket's path must fit `sockaddr_un`, with its final zero.
const MAX_SOCKET_PATH: usize = 107;

/// A pod's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir(PathBuf);

/// The content of `pod.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodRecord {
    version: u32,
    /// The pod's containerd namespace.
    pub namespace: Namespace,
    /// The pod.
    pub sandbox: SandboxId,
    /// Its name in Kubernetes, `NAMESPACE/NAME`, if it has one.
    #[serde(default)]
    pub name: Option<String>,
    /// Its handler's options.
    pub config: HandlerConfig,
    /// The sandbox process; 0 until it has taken the lock.
    pub pid: u32,
    /// The process that holds the pod's namespaces if the sandbox process cannot (a shared PID
    /// namespace, a user namespace).
    #[serde(default)]
    pub holder: Option<u32>,
    /// Mount points that were made for the pod.
    #[serde(default)]
    pub mounts: Vec<PathBuf>,
    /// The path of the pod's own cgroup in the hierarchy, if it has one beside those of its
    /// containers.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// The cgroup that the kubelet made for all of the pod.
    #[serde(default)]
    pub parent: Option<String>,
}

/// The content of `containers/<id>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    version: u32,
    /// The container.
    pub container: ContainerId,
    /// Its bundle, as containerd gave it.
    pub bundle: PathBuf,
    /// The mount point of its root filesystem, if we mounted it.
    pub rootfs: Option<PathBuf>,
    /// `linux.cgroupsPath` of its OCI specification.
    pub cgroup: Option<String>,
    /// Whether that cgroup was checked to be empty before the container was made.
    #[serde(default)]
    pub claimed: bool,
}

impl PodDir {
    /// The directory of a pod, which need not exist yet.
    ///
    /// # Errors
    /// `InvalidArgument` if its socket's path would be longer than the kernel allows.
    pub fn new(state_dir: &Path, namespace: &Namespace, sandbox: &SandboxId) -> Result<Self> {
        let dir = Self(state_dir.join(namespace.as_str()).join(sandbox.as_str()));
        let length = dir.socket().as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(Error::invalid(format!(
                "the socket of sandbox {sandbox} would be {} ({length} bytes; the kernel takes {MAX_SOCKET_PATH}): use a shorter id or namespace",
                dir.socket().display()
            )));
        }
        Ok(dir)
    }

    /// The directory that a sandbox process was told to serve.
    pub fn existing(path: PathBuf) -> Self {
        Self(path)
    }

    /// Every pod that has a directory below `state_dir`.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn all(state_dir: &Path) -> Result<Vec<(Namespace, SandboxId, PodDir)>> {
        let mut pods = Vec::new();
        for namespace in names(state_dir)?.into_iter().filter_map(|n| Namespace::parse(n).ok()) {
            for sandbox in names(&state_dir.join(namespace.as_str()))?.into_iter().filter_map(|n| SandboxId::parse(n).ok()) {
                if let Ok(dir) = Self::new(state_dir, &namespace, &sandbox) {
                    pods.push((namespace.clone(), sandbox, dir));
                }
            }
        }
        Ok(pods)
    }

    /// The pod's names, from the directory's path.
    ///
    /// # Errors
    /// `InvalidArgument` if the directory is not a pod's.
    pub fn names(&self) -> Result<(Namespace, SandboxId)> {
        let name = |path: Option<&Path>| path.and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        Ok((Namespace::parse(name(self.0.parent()))?, SandboxId::parse(name(Some(&self.0)))?))
    }

    /// Whether the directory exists.
    ///
    /// # Errors
    /// When that cannot be determined.
    pub fn exists(&self) -> Result<bool> {
        self.0.try_exists().context(|| format!("cannot tell whether {} exists", self.0.display()))
    }

    /// Makes the directory. Exactly one caller can create a pod.
    ///
    /// # Errors
    /// `AlreadyExists` if the pod has one.
    pub fn make(&self) -> Result<()> {
        let parent = self.0.parent().unwrap_or(Path::new("/"));
        // Other users cannot list the names of pods.
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(parent).context(|| format!("cannot make {}", parent.display()))?;
        match rustix::fs::mkdir(&self.0, Mode::RWXU) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                return Err(Error::new(Code::AlreadyExists, format!("{} exists: the sandbox was created before", self.0.display())));
            }
            Err(e) => return Err(e).context(|| format!("cannot make {}", self.0.display())),
        }
        for child in [self.containers(), self.runtime_root()] {
            if let Err(error) = rustix::fs::mkdir(&child, Mode::RWXU).context(|| format!("cannot make {}", child.display())) {
                // An incomplete directory would be taken for a pod.
                self.remove()?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes the directory. It is no error if it is gone already.
    ///
    /// # Errors
    /// `FailedPrecondition` while something is mounted in it, because that would be emptied; or the
    /// kernel's error.
    pub fn remove(&self) -> Result<()> {
        if let Some(mounted) = mount::mounted_in(&self.0)? {
            return Err(Error::precondition(format!("cannot remove {}: {} is mounted", self.0.display(), mounted.display())));
        }
        match std::fs::remove_dir_all(&self.0) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).context(|| format!("cannot remove {}", self.0.display())),
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The pod's listening socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("task.sock")
    }

    /// Where the OCI runtime keeps its state.
    pub fn runtime_root(&self) -> PathBuf {
        self.0.join("runtime")
    }

    fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    /// Reads the pod's record.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Internal` for a damaged one.
    pub fn pod(&self) -> Result<PodRecord> {
        self.find_pod()?.or_error(&self.0)
    }

    /// Looks for the pod's record.
    ///
    /// # Errors
    /// Only if the directory or file cannot be read.
    pub fn find_pod(&self) -> Result<Found<PodRecord>> {
        let (namespace, sandbox) = self.names()?;
        read::record(&self.0.join("pod.json"), |record: &PodRecord| {
            read::version(record.version)?;
            let names = (&record.namespace, &record.sandbox);
            if names == (&namespace, &sandbox) {
                Ok(())
            } else {
                Err(format!("it belongs to sandbox {} in namespace {}", names.1, names.0))
            }
        })
    }

    /// Replaces the pod's record.
    pub fn write_pod(&self, record: &PodRecord) -> Result<()> {
        write(&self.0.join("pod.json"), record)
    }

    /// Reads the records of the pod's containers.
    ///
    /// # Errors
    /// When a record is damaged: it is not left out.
    pub fn container_records(&self) -> Result<Vec<ContainerRecord>> {
        let found = self.find_containers()?.into_values().filter(|found| !matches!(found, Found::Absent));
        found.map(|found| found.or_error(&self.containers())).collect()
    }

    /// Every container with a trace in the pod's directory: a record, or the state of an OCI
    /// runtime.
    ///
    /// # Errors
    /// Only if a directory or file cannot be read.
    pub fn find_containers(&self) -> Result<BTreeMap<ContainerId, Found<ContainerRecord>>> {
        let recorded = names(&self.containers())?.into_iter().filter_map(|name| name.strip_suffix(".json").map(String::from));
        let ids: BTreeSet<ContainerId> =
            recorded.chain(names(&self.runtime_root())?).filter_map(|name| ContainerId::parse(name).ok()).collect();
        ids.into_iter().map(|id| Ok((id.clone(), self.find_container(&id)?))).collect()
    }

    /// Looks for the record of a container.
    ///
    /// # Errors
    /// Only if the directory or file cannot be read.
    pub fn find_container(&self, id: &ContainerId) -> Result<Found<ContainerRecord>> {
        read::record(&self.containers().join(format!("{id}.json")), |record: &ContainerRecord| {
            read::version(record.version)?;
            if record.container == *id { Ok(()) } else { Err(format!("it belongs to container {}", record.container)) }
        })
    }

    /// Whether the pod has a container of this name.
    pub fn has_container(&self, container: &ContainerId) -> bool {
        self.containers().join(format!("{container}.json")).exists()
    }

    /// Writes a container's record.
    pub fn write_container(&self, record: &ContainerRecord) -> Result<()> {
        write(&self.containers().join(format!("{}.json", record.container)), record)
    }

    /// Removes the record of a container. Call it when nothing else is left of the container.
    pub fn remove_container(&self, container: &ContainerId) -> Result<()> {
        match std::fs::remove_file(self.containers().join(format!("{container}.json"))) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).context(|| format!("cannot remove the record of container {container}"))
            }
            _ => Ok(()),
        }
    }
}

impl PodRecord {
    /// The record of a pod whose sandbox process is about to be spawned.
    pub fn new(namespace: Namespace, sandbox: SandboxId, config: HandlerConfig) -> Self {
        let (mounts, cgroup, parent) = (Vec::new(), None, None);
        Self { version: VERSION, namespace, sandbox, name: None, config, pid: 0, holder: None, mounts, cgroup, parent }
    }
}

impl ContainerRecord {
    /// The record of a container that is about to be made. Its cgroup was claimed for it.
    pub fn new(container: ContainerId, bundle: PathBuf, rootfs: Option<PathBuf>, cgroup: Option<String>) -> Self {
        let claimed = cgroup.is_some();
        Self { version: VERSION, container, bundle, rootfs, cgroup, claimed }
    }
}

/// The names in a directory; none if it does not exist.
fn names(dir: &Path) -> Result<Vec<String>> {
    let what = || format!("cannot list {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries.context(what)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.context(what)?.file_name().into_string());
    }
    Ok(names)
}

/// Writes a new file and renames it over the old one, so that a reader sees either of them
/// complete.
fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::internal(format!("cannot encode {}: {e}", path.display())))?;
    let temporary = path.with_extension("new");
    let result = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| std::fs::rename(&temporary, path));
    result.context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests;
