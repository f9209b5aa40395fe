// SPDX-License-Identifier: Apache-2.0
//! The pod record: all that is needed to find and remove a pod whose sandbox process is gone.
//!
//! ```text
//! /run/magnetar/<namespace>/<sandbox id>/
//!     pod.json          who serves the pod, and what was made for it
//!     task.sock         the Task and Sandbox API
//!     containers/<id>.json
//!     runtime/          the OCI runtime's own state
//! ```
//!
//! The directory itself is locked (flock(2)) by the sandbox process for as long as it lives.
//!
//! A thing is written here before it is made, so that a crash at any line leaves a record of it.
//! Files are replaced atomically. The lock answers «is it alive?» without the races of pids: the
//! kernel lets go of it when the process ends, and whoever takes it then may clean up, alone.

use crate::config::HandlerConfig;
use crate::error::{Code, Context, Error, Result};
use crate::ids::{ContainerId, Namespace, SandboxId};
use crate::mount;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The layout of the files; a record of a later one is left alone.
const VERSION: u32 = 1;

/// Where the records of this node live.
pub const DEFAULT_STATE_DIR: &str = "/run/magnetar";

/// A Unix socket's path must fit `sockaddr_un`, with its final zero.
const MAX_SOCKET_PATH: usize = 107;

/// A pod's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir(PathBuf);

/// What `pod.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodRecord {
    version: u32,
    /// The pod's containerd namespace.
    pub namespace: Namespace,
    /// The pod.
    pub sandbox: SandboxId,
    /// Its handler's options.
    pub config: HandlerConfig,
    /// The sandbox process; 0 until it has taken the lock.
    pub pid: u32,
    /// The process that holds the pod's namespaces where the sandbox process cannot (a shared PID
    /// namespace, a user namespace).
    #[serde(default)]
    pub holder: Option<u32>,
    /// Mount points that were made for the pod.
    #[serde(default)]
    pub mounts: Vec<PathBuf>,
    /// The pod's own cgroup, as the path in the hierarchy.
    #[serde(default)]
    pub cgroup: Option<String>,
}

/// What `containers/<id>.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    version: u32,
    /// The container.
    pub container: ContainerId,
    /// Its bundle, as containerd gave it.
    pub bundle: PathBuf,
    /// Where its root filesystem is mounted, where that was for us to do.
    pub rootfs: Option<PathBuf>,
    /// `linux.cgroupsPath` of its OCI specification.
    pub cgroup: Option<String>,
    /// The OCI runtime that knows it.
    pub runtime: PathBuf,
}

/// Proof that this process is the one that serves, or cleans up, a pod.
#[derive(Debug)]
pub struct PodLock {
    _file: OwnedFd,
}

impl PodDir {
    /// The directory of a pod, which need not exist yet.
    ///
    /// # Errors
    /// `InvalidArgument` where its socket's path would be longer than the kernel allows.
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
    pub fn all(state_dir: &Path) -> Vec<(Namespace, SandboxId, PodDir)> {
        let names = |dir: &Path| -> Vec<String> {
            std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
        };
        let mut pods = Vec::new();
        for namespace in names(state_dir).into_iter().filter_map(|n| Namespace::parse(n).ok()) {
            for sandbox in names(&state_dir.join(namespace.as_str())).into_iter().filter_map(|n| SandboxId::parse(n).ok()) {
                if let Ok(dir) = Self::new(state_dir, &namespace, &sandbox) {
                    pods.push((namespace.clone(), sandbox, dir));
                }
            }
        }
        pods
    }

    /// Makes the directory; a pod is created by exactly one caller.
    ///
    /// # Errors
    /// `AlreadyExists` where the pod has one.
    pub fn make(&self) -> Result<()> {
        let parent = self.0.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent).context(|| format!("cannot make {}", parent.display()))?;
        match rustix::fs::mkdir(&self.0, Mode::RWXU) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                return Err(Error::new(Code::AlreadyExists, format!("{} exists: the sandbox was created before", self.0.display())));
            }
            Err(e) => return Err(e).context(|| format!("cannot make {}", self.0.display())),
        }
        for child in [self.containers(), self.runtime_root()] {
            if let Err(error) = rustix::fs::mkdir(&child, Mode::RWXU).context(|| format!("cannot make {}", child.display())) {
                // Half a directory would be taken for a pod.
                self.remove()?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes the directory; gone already is fine.
    ///
    /// # Errors
    /// `FailedPrecondition` while something is mounted in it, which would be emptied; and what the kernel says.
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
    pub fn pod(&self) -> Result<PodRecord> {
        let record: PodRecord = read(&self.0.join("pod.json"))?;
        check_version(record.version, &self.0)?;
        Ok(record)
    }

    /// Replaces the pod's record.
    pub fn write_pod(&self, record: &PodRecord) -> Result<()> {
        write(&self.0.join("pod.json"), record)
    }

    /// Reads the records of the pod's containers; one that cannot be read is an error, not a gap.
    pub fn container_records(&self) -> Result<Vec<ContainerRecord>> {
        let dir = self.containers();
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).context(|| format!("cannot list {}", dir.display())),
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.context(|| format!("cannot list {}", dir.display()))?.path();
            if path.extension().is_some_and(|e| e == "json") {
                let record: ContainerRecord = read(&path)?;
                check_version(record.version, &path)?;
                records.push(record);
            }
        }
        Ok(records)
    }

    /// Whether the pod has a container of this name.
    pub fn has_container(&self, container: &ContainerId) -> bool {
        self.containers().join(format!("{container}.json")).exists()
    }

    /// Writes a container's record.
    pub fn write_container(&self, record: &ContainerRecord) -> Result<()> {
        write(&self.containers().join(format!("{}.json", record.container)), record)
    }

    /// Forgets a container of which nothing is left.
    pub fn remove_container(&self, container: &ContainerId) -> Result<()> {
        match std::fs::remove_file(self.containers().join(format!("{container}.json"))) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).context(|| format!("cannot remove the record of container {container}"))
            }
            _ => Ok(()),
        }
    }

    /// Takes the pod's lock, or answers `None` while a living process has it.
    pub fn try_lock(&self) -> Result<Option<PodLock>> {
        // The directory itself: a file for it could not be made on a full disk, where clean-up is needed most.
        let path = &self.0;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path, flags, Mode::empty()).context(|| format!("cannot open {}", path.display()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(PodLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e).context(|| format!("cannot lock {}", path.display())),
        }
    }
}

impl PodRecord {
    /// The record of a pod whose sandbox process is about to be spawned.
    pub fn new(namespace: Namespace, sandbox: SandboxId, config: HandlerConfig) -> Self {
        Self { version: VERSION, namespace, sandbox, config, pid: 0, holder: None, mounts: Vec::new(), cgroup: None }
    }
}

impl ContainerRecord {
    /// The record of a container that is about to be made.
    pub fn new(container: ContainerId, bundle: PathBuf, rootfs: Option<PathBuf>, cgroup: Option<String>, runtime: PathBuf) -> Self {
        Self { version: VERSION, container, bundle, rootfs, cgroup, runtime }
    }
}

fn check_version(version: u32, path: &Path) -> Result<()> {
    if version == VERSION {
        return Ok(());
    }
    Err(Error::precondition(format!("{} has version {version}, this program reads {VERSION}", path.display())))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::internal(format!("{} is damaged: {e}", path.display())))
}

/// Writes beside the file and renames over it, so that a reader sees the old or the new, whole.
fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::internal(format!("cannot encode {}: {e}", path.display())))?;
    let temporary = path.with_extension("new");
    let result =
        std::fs::File::create(&temporary).and_then(|mut file| file.write_all(&bytes)).and_then(|()| std::fs::rename(&temporary, path));
    result.context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests;
