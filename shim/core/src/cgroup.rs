// SPDX-License-Identifier: Apache-2.0
//! Control groups, v1 and v2, through the cgroup filesystem: where a pod or container is, and what can be done to all of it at once.
//!
//! A [`Cgroup`] is a place: it can be looked at, made and joined. What may be killed, frozen and removed is an [`OwnedCgroup`].
//!
//! ```text
//! hierarchy   which hierarchies are mounted; from a process or a path to directories
//! owned       the right to kill, freeze and remove
//! stats       Metrics as containerd wants them
//! moves       moving this process, where nobody waits for it
//! oom         kills for want of memory: a stream, and a counter
//! tree        directories of cgroups, and the processes in them
//! ```
//!
//! A *hybrid* system (v1 controllers, and a v2 hierarchy that has none) is v1 here. The whole hierarchy is never
//! killed, frozen or removed: a process that no runtime has moved into a cgroup of its own is in the root one, together with
//! the host. Deliberately absent: limits, which the runtimes set, and talking to systemd, which they do too.

pub mod devices;
mod hierarchy;
pub mod moves;
pub mod oom;
mod owned;
pub mod stats;
mod tree;

pub use owned::{OwnedCgroup, SANDBOXES};

use crate::error::{Context, Error, Result};
use hierarchy::Hierarchies;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tree::{enable_controllers, inherit_cpuset, is_root, pids_in, write};

/// The key under which the v2 hierarchy of a hybrid system stands among the v1 ones.
pub const UNIFIED: &str = "unified";

/// Limits of v1 from here on are none: it has `PAGE_COUNTER_MAX`, the largest one of whole pages, of whatever size these are.
const NO_LIMIT_V1: u64 = i64::MAX as u64 & !0xffff;

/// A cgroup: one directory, or with v1 one per hierarchy. It need not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cgroup {
    /// The cgroup's place in each hierarchy.
    V1 {
        /// By controller (`memory`), name (`name=systemd`) or [`UNIFIED`]. Controllers that are mounted together share a directory.
        dirs: BTreeMap<String, PathBuf>,
    },
    /// The cgroup's place in the one hierarchy.
    V2 {
        /// The directory.
        dir: PathBuf,
    },
}

impl Cgroup {
    /// The cgroup that the process is in.
    ///
    /// With v1 a process can be in different places of different hierarchies. Those where it is at the same place as in the
    /// first of freezer, memory, pids and others that is not at the root are its own; the rest it shares with
    /// others, and they are left out.
    ///
    /// # Errors
    ///
    /// `NotFound` if the process has gone, or its cgroup is outside what is mounted here.
    pub fn of_process(pid: u32) -> Result<Cgroup> {
        let path = format!("/proc/{pid}/cgroup");
        let membership = fs::read_to_string(&path).context(|| path)?;
        Hierarchies::mounted()?.of_process(&membership)
    }

    /// The cgroup with this path: absolute, as the cgroup filesystem has it (`/k8s.io/<id>`), or systemd's
    /// `slice:prefix:name`, or just a slice (`kubepods-pod1.slice`).
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for any other path and for one with `..`; `FailedPrecondition` if no hierarchy is mounted.
    pub fn at(path: &str) -> Result<Cgroup> {
        Hierarchies::mounted()?.at(path)
    }

    /// The directories, each once: for a record of what there is to remove.
    pub fn paths(&self) -> Vec<PathBuf> {
        match self {
            Cgroup::V1 { dirs } => dirs.values().collect::<BTreeSet<_>>().into_iter().cloned().collect(),
            Cgroup::V2 { dir } => vec![dir.clone()],
        }
    }

    /// Where the files of a controller are, whether they exist or not; `None` if that v1 controller is not mounted.
    pub fn controller_dir(&self, controller: &str) -> Option<&Path> {
        match self {
            Cgroup::V1 { dirs } => dirs.get(controller).map(PathBuf::as_path),
            Cgroup::V2 { dir } => Some(dir),
        }
    }

    /// The most memory that it may have, in bytes; `None` where it may have all, or has no memory controller.
    pub fn memory_limit(&self) -> Option<u64> {
        self.limit("memory", "memory")
    }

    /// How many bytes of huge pages it is limited to, by the size of one as the controller spells it: `2MB`. None where it is not,
    /// or where that cannot be read.
    pub fn huge_page_limit(&self, size: &str) -> Option<u64> {
        self.limit("hugetlb", &format!("hugetlb.{size}"))
    }

    fn limit(&self, controller: &str, of: &str) -> Option<u64> {
        let file = match self {
            Cgroup::V1 { .. } => format!("{of}.limit_in_bytes"),
            Cgroup::V2 { .. } => format!("{of}.max"),
        };
        let limit = fs::read_to_string(self.controller_dir(controller)?.join(file)).ok()?;
        limit.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT_V1)
    }

    /// Whether it exists, with v1 in any hierarchy.
    pub fn exists(&self) -> bool {
        self.paths().iter().any(|dir| dir.is_dir())
    }

    /// Makes the directories with all that is above them, unless they exist. With v2, whatever controllers the levels above
    /// have are enabled on the way down, as far as the kernel lets us.
    ///
    /// # Errors
    ///
    /// If a directory cannot be made.
    pub fn create(&self) -> Result<()> {
        for dir in self.paths() {
            fs::create_dir_all(&dir).context(|| format!("make cgroup {}", dir.display()))?;
        }
        match self {
            Cgroup::V1 { dirs } => dirs.get("cpuset").map_or(Ok(()), |dir| inherit_cpuset(dir)),
            Cgroup::V2 { dir } => {
                enable_controllers(dir);
                Ok(())
            }
        }
    }

    /// Moves a process into it, with v1 in all hierarchies.
    ///
    /// # Errors
    ///
    /// `NotFound` if the cgroup or the process does not exist, else what the kernel says.
    pub fn join(&self, pid: u32) -> Result<()> {
        join_all(&self.paths(), pid)
    }

    /// [`join`](Self::join), but for the hierarchies that `other` has a place in.
    fn join_but(&self, other: &Cgroup, pid: u32) -> Result<()> {
        let beside: Vec<_> = self.paths().into_iter().filter(|dir| !other.paths().iter().any(|place| place.starts_with(dir))).collect();
        join_all(&beside, pid)
    }

    /// The cgroup in the v1 hierarchies of none of these controllers.
    pub fn without(self, controllers: &[&str]) -> Cgroup {
        match self {
            Cgroup::V1 { dirs } => {
                Cgroup::V1 { dirs: dirs.into_iter().filter(|(controller, _)| !controllers.contains(&controller.as_str())).collect() }
            }
            v2 @ Cgroup::V2 { .. } => v2,
        }
    }

    /// The files through which a process that has just been forked enters it, with v1 in all hierarchies, by writing `0` to each.
    ///
    /// # Errors
    /// `NotFound` if the cgroup does not exist, else what the kernel says.
    pub fn entrance(&self) -> Result<Vec<OwnedFd>> {
        let open = |dir: &PathBuf| {
            let file = fs::OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
            file.map(OwnedFd::from).context(|| format!("cannot open cgroup {}", dir.display()))
        };
        self.paths().iter().map(open).collect()
    }

    /// The processes in it, and with `recursive` in the cgroups below. A cgroup that does not exist has none.
    ///
    /// # Errors
    ///
    /// If the lists cannot be read.
    pub fn pids(&self, recursive: bool) -> Result<Vec<u32>> {
        let Some(dir) = self.process_dir() else { return Ok(Vec::new()) };
        pids_in(dir, recursive).context(|| format!("processes of cgroup {}", dir.display()))
    }

    /// The one directory whose processes count as those of the cgroup. With v1 all runtimes join the freezer.
    fn process_dir(&self) -> Option<&Path> {
        match self {
            Cgroup::V1 { dirs } => {
                let preferred = || hierarchy::DECISIVE.iter().filter_map(|controller| dirs.get(*controller)).chain(dirs.values());
                preferred().find(|dir| !is_root(dir)).or_else(|| preferred().next()).map(PathBuf::as_path)
            }
            Cgroup::V2 { dir } => Some(dir),
        }
    }
}

impl std::fmt::Display for Cgroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.process_dir() {
            Some(dir) => write!(f, "{}", dir.display()),
            None => f.write_str("/"),
        }
    }
}

fn join_all(dirs: &[PathBuf], pid: u32) -> Result<()> {
    for dir in dirs {
        match write(&dir.join("cgroup.procs"), &pid.to_string()) {
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {
                return Err(Error::not_found(format!("process {pid} does not exist")));
            }
            moved => moved.context(|| format!("move process {pid} to cgroup {}", dir.display()))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
