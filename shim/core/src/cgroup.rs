// SPDX-License-Identifier: Apache-2.0
//! Control groups, v1 and v2, through the cgroup filesystem: finds the cgroup of a pod or
//! container, and acts on all its processes at once.
//!
//! A [`Cgroup`] is a place: it can be read, made and joined. Only an [`OwnedCgroup`] can be killed,
//! frozen and removed.
//!
//! ```text
//! hierarchy   which hierarchies are mounted; from a process or a path to directories
//! owned       the right to kill, freeze and remove
//! stats       Metrics in containerd's form
//! moves       moves this process while no request waits for it
//! oom         OOM kills: a stream, and a counter
//! tree        directories of cgroups, and the processes in them
//! ```
//!
//! A *hybrid* system (v1 controllers, and a v2 hierarchy without any) counts as v1. The root of a
//! hierarchy is never killed, frozen or removed: processes that no runtime has moved into a cgroup
//! of their own are in it, together with the host's. Deliberately absent: setting limits and
//! talking to systemd, both of which the runtimes do.

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

/// The key of a hybrid system's v2 hierarchy among the v1 ones.
pub const UNIFIED: &str = "unified";

/// v1 limits from here on mean "no limit". The kernel then shows `PAGE_COUNTER_MAX`, the largest
/// number of whole pages, which depends on the page size.
const NO_LIMIT_V1: u64 = i64::MAX as u64 & !0xffff;

/// A cgroup: one directory, or with v1 one per hierarchy. It need not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cgroup {
    /// The cgroup's place in each hierarchy.
    V1 {
        /// By controller (`memory`), name (`name=systemd`) or [`UNIFIED`]. Controllers that are
        /// mounted together share a directory.
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
    /// With v1 a process can be at different places in different hierarchies. Its own place is the
    /// first one that is not the root, in the order freezer, memory, pids, and others. Hierarchies
    /// in which it is elsewhere are left out, because it shares those cgroups with other processes.
    ///
    /// # Errors
    ///
    /// `NotFound` if the process is gone, or if its cgroup is outside of the mounted hierarchies.
    pub fn of_process(pid: u32) -> Result<Cgroup> {
        let path = format!("/proc/{pid}/cgroup");
        let membership = fs::read_to_string(&path).context(|| path)?;
        Hierarchies::mounted()?.of_process(&membership)
    }

    /// The cgroup with this path: absolute, as the cgroup filesystem has it (`/k8s.io/<id>`), or
    /// systemd's `slice:prefix:name`, or just a slice (`kubepods-pod1.slice`).
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for any other path and for one with `..`; `FailedPrecondition` if no
    /// hierarchy is mounted.
    pub fn at(path: &str) -> Result<Cgroup> {
        Hierarchies::mounted()?.at(path)
    }

    /// The directories, each once, for a record of what has to be removed.
    pub fn paths(&self) -> Vec<PathBuf> {
        match self {
            Cgroup::V1 { dirs } => dirs.values().collect::<BTreeSet<_>>().into_iter().cloned().collect(),
            Cgroup::V2 { dir } => vec![dir.clone()],
        }
    }

    /// The directory with the files of a controller, which need not exist; `None` if that v1
    /// controller is not mounted.
    pub fn controller_dir(&self, controller: &str) -> Option<&Path> {
        match self {
            Cgroup::V1 { dirs } => dirs.get(controller).map(PathBuf::as_path),
            Cgroup::V2 { dir } => Some(dir),
        }
    }

    /// The memory limit in bytes; `None` if there is no limit or no memory controller.
    pub fn memory_limit(&self) -> Option<u64> {
        self.limit("memory", "memory")
    }

    /// How many microseconds of processor time it may use in each period, and the period in
    /// microseconds; `None` if there is no limit, or no cpu controller.
    pub fn cpu_limit(&self) -> Option<(u64, u64)> {
        let dir = self.controller_dir("cpu")?;
        let read = |file| fs::read_to_string(dir.join(file)).ok();
        let text = match self {
            Cgroup::V1 { .. } => format!("{} {}", read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?),
            Cgroup::V2 { .. } => read("cpu.max")?,
        };
        // Without a limit the first is "max", or -1.
        let (quota, period) = text.trim().split_once(' ')?;
        Some((quota.parse().ok()?, period.parse().ok()?))
    }

    /// The limit of huge pages in bytes, for a page size as the controller spells it: `2MB`. `None`
    /// if there is no limit, or if it cannot be read.
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

    /// The memory in use that the kernel cannot give up at once, in bytes: what the kubelet calls
    /// the working set. `None` if it cannot be read.
    pub fn working_set(&self) -> Option<u64> {
        let dir = self.controller_dir("memory")?;
        let (usage, inactive) = match self {
            Cgroup::V1 { .. } => ("memory.usage_in_bytes", "total_inactive_file "),
            Cgroup::V2 { .. } => ("memory.current", "inactive_file "),
        };
        let read = |file| fs::read_to_string(dir.join(file)).ok();
        let (usage, stat) = (read(usage)?.trim().parse::<u64>().ok()?, read("memory.stat")?);
        let inactive = stat.lines().find_map(|line| line.strip_prefix(inactive)?.parse::<u64>().ok());
        Some(usage.saturating_sub(inactive.unwrap_or(0)))
    }

    /// Whether it exists, with v1 in any hierarchy.
    pub fn exists(&self) -> bool {
        self.paths().iter().any(|dir| dir.is_dir())
    }

    /// Makes the directories and their parents, unless they exist. With v2 it also enables the
    /// parents' controllers on the way down, as far as the kernel allows.
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
    /// `NotFound` if the cgroup or the process does not exist, or the kernel's error.
    pub fn join(&self, pid: u32) -> Result<()> {
        join_all(&self.paths(), pid)
    }

    /// [`join`](Self::join) without the hierarchies in which `other` has a directory.
    fn join_but(&self, other: &Cgroup, pid: u32) -> Result<()> {
        let beside: Vec<_> = self.paths().into_iter().filter(|dir| !other.paths().iter().any(|place| place.starts_with(dir))).collect();
        join_all(&beside, pid)
    }

    /// The cgroup without the v1 hierarchies of these controllers.
    pub fn without(self, controllers: &[&str]) -> Cgroup {
        match self {
            Cgroup::V1 { dirs } => {
                Cgroup::V1 { dirs: dirs.into_iter().filter(|(controller, _)| !controllers.contains(&controller.as_str())).collect() }
            }
            v2 @ Cgroup::V2 { .. } => v2,
        }
    }

    /// Opens the files through which a newly forked process joins the cgroup, by writing `0` to
    /// each. With v1 there is one for each hierarchy.
    ///
    /// # Errors
    /// `NotFound` if the cgroup does not exist, or the kernel's error.
    pub fn entrance(&self) -> Result<Vec<OwnedFd>> {
        let open = |dir: &PathBuf| {
            let file = fs::OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
            file.map(OwnedFd::from).context(|| format!("cannot open cgroup {}", dir.display()))
        };
        self.paths().iter().map(open).collect()
    }

    /// The processes in it, with `recursive` also those in the cgroups below. A cgroup that does
    /// not exist has none.
    ///
    /// # Errors
    ///
    /// If the lists cannot be read.
    pub fn pids(&self, recursive: bool) -> Result<Vec<u32>> {
        let Some(dir) = self.process_dir() else { return Ok(Vec::new()) };
        pids_in(dir, recursive).context(|| format!("processes of cgroup {}", dir.display()))
    }

    /// The directory whose processes count as the cgroup's. With v1 it is the freezer's, which all
    /// runtimes join.
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
