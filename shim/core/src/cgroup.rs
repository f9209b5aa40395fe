// SPDX-License-Identifier: Apache-2.0
//! Control groups, v1 and v2, through the cgroup filesystem: where a pod or container is, and what can be done to all of it at once.
//!
//! ```text
//! hierarchy   which hierarchies are mounted; from a process or a path to directories
//! stats       Metrics as containerd wants them
//! moves       moving this process, where nobody waits for it
//! oom         kills for want of memory: a stream, and a counter
//! tree        directories of cgroups, and the processes in them
//! ```
//!
//! A *hybrid* system (v1 controllers, and a v2 hierarchy that has none) is v1 here. The whole hierarchy is never
//! killed, frozen or removed: a process that no runtime has moved into a cgroup of its own is in the root one, together with
//! the host. Deliberately absent: limits, which the runtimes set, and talking to systemd, which they do too.

mod hierarchy;
pub mod moves;
pub mod oom;
pub mod stats;
mod tree;

use crate::error::{Code, Context, Error, Result};
use hierarchy::Hierarchies;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tree::{enable_controllers, has_gone, inherit_cpuset, is_root, pids_in, subtree, write};

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
        for dir in self.paths() {
            match write(&dir.join("cgroup.procs"), &pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {
                    return Err(Error::not_found(format!("process {pid} does not exist")));
                }
                moved => moved.context(|| format!("move process {pid} to cgroup {}", dir.display()))?,
            }
        }
        Ok(())
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

    /// Kills all processes in and below it, again and again until there are none: a process may fork while it is being killed.
    /// Our own process is spared. Stopping half-way (dropping the future) leaves nothing frozen.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` for the root of a hierarchy; `DeadlineExceeded` if processes are left when the time is over.
    pub async fn kill_all(&self, within: Duration) -> Result<()> {
        let mut pause = Pause::until(within);
        while !self.kill_once()? {
            if !pause.wait().await {
                let left = self.pids(true)?;
                return Err(Error::new(Code::DeadlineExceeded, format!("cgroup {self}: processes {left:?} survive being killed")));
            }
        }
        Ok(())
    }

    /// One round of [`kill_all`](Self::kill_all), without waiting: whether there was nobody left to kill.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` for the root of a hierarchy, else what the kernel says.
    pub fn kill_once(&self) -> Result<bool> {
        let dir = self.own_process_dir()?;
        let what = || format!("kill the processes of cgroup {}", dir.display());
        let mut pids = pids_in(dir, true).context(what)?;
        let all = pids.len();
        pids.retain(|pid| *pid != std::process::id());
        if pids.is_empty() {
            return Ok(true);
        }
        if all > pids.len() {
            // We are inside: neither kill nor freeze the whole of it.
            pids.into_iter().for_each(kill);
            return Ok(false);
        }
        // One write kills all there are, forking or not, from Linux 5.14 on.
        if matches!(self, Cgroup::V2 { .. }) && write(&dir.join("cgroup.kill"), "1").is_ok() {
            return Ok(false);
        }
        // Frozen processes cannot fork away from the list. If they cannot be frozen, the next round gets the children.
        let _ = self.set_frozen(true);
        let listed = pids_in(dir, true);
        listed.iter().flatten().copied().for_each(kill);
        // Death waits for the thaw, also in what had been frozen before: a paused container, or a cgroup that it froze itself.
        let (file, thawed) = self.freezer_file(false);
        for level in self.freezer().iter().flat_map(|freezer| subtree(freezer)) {
            let _ = write(&level.join(file), thawed);
        }
        listed.context(what).map(|_| false)
    }

    /// Stops all processes in and below it, until [`thaw`](Self::thaw). Not cancel-safe: after dropping the future, thaw.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` for the root of a hierarchy and if our own process is inside; `DeadlineExceeded` after `within`, thawed
    /// again; `NotFound` if it does not exist.
    pub async fn freeze(&self, within: Duration) -> Result<()> {
        if pids_in(self.own_process_dir()?, true).is_ok_and(|pids| pids.contains(&std::process::id())) {
            return Err(Error::precondition(format!("cgroup {self}: freezing it would freeze process {} itself", std::process::id())));
        }
        let mut pause = Pause::until(within);
        loop {
            // v1 wants to be asked again for as long as processes are just being made.
            self.set_frozen(true)?;
            if self.is_frozen()? {
                return Ok(());
            }
            if !pause.wait().await {
                self.thaw()?;
                return Err(Error::new(Code::DeadlineExceeded, format!("cgroup {self}: not frozen within {within:?}")));
            }
        }
    }

    /// Lets the processes run again. Thawing what is not frozen is success.
    ///
    /// # Errors
    ///
    /// As of [`freeze`](Self::freeze), except for the time.
    pub fn thaw(&self) -> Result<()> {
        self.own_process_dir()?;
        self.set_frozen(false)
    }

    /// Removes it and all cgroups below, in which no process is left. What does not exist is success.
    ///
    /// The kernel calls a cgroup busy until the last process has quite gone, so that is tried again until the time is over.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` for the root of a hierarchy; `DeadlineExceeded` if it is still busy.
    pub async fn remove(&self, within: Duration) -> Result<()> {
        let mut pause = Pause::until(within);
        while !self.remove_once()? {
            if !pause.wait().await {
                let left = self.pids(true)?;
                return Err(Error::new(Code::DeadlineExceeded, format!("cgroup {self}: busy after {within:?}, with processes {left:?}")));
            }
        }
        Ok(())
    }

    /// One round of [`remove`](Self::remove), without waiting: whether it has gone.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` for the root of a hierarchy, else what the kernel says.
    pub fn remove_once(&self) -> Result<bool> {
        self.own_process_dir()?;
        let mut gone = true;
        for dir in self.paths().iter().filter(|dir| !is_root(dir)) {
            for level in subtree(dir).iter().rev() {
                match fs::remove_dir(level) {
                    Ok(()) => {}
                    Err(error) if has_gone(&error) => {}
                    Err(error) if error.kind() == ErrorKind::ResourceBusy => gone = false,
                    Err(error) => return Err(error).context(|| format!("remove cgroup {}", level.display())),
                }
            }
        }
        Ok(gone)
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

    /// The same, unless it is the host's.
    fn own_process_dir(&self) -> Result<&Path> {
        self.process_dir()
            .filter(|dir| !is_root(dir))
            .ok_or_else(|| Error::precondition("the root of a cgroup hierarchy holds the host's processes: it is left alone"))
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let (file, value) = self.freezer_file(frozen);
        write(&self.freezer()?.join(file), value).context(|| format!("{value} to {file} of cgroup {self}"))
    }

    /// Which file freezes or thaws, and what is written there.
    fn freezer_file(&self, frozen: bool) -> (&'static str, &'static str) {
        match (self, frozen) {
            (Cgroup::V1 { .. }, true) => ("freezer.state", "FROZEN"),
            (Cgroup::V1 { .. }, false) => ("freezer.state", "THAWED"),
            (Cgroup::V2 { .. }, true) => ("cgroup.freeze", "1"),
            (Cgroup::V2 { .. }, false) => ("cgroup.freeze", "0"),
        }
    }

    fn is_frozen(&self) -> Result<bool> {
        let (file, word) = match self {
            Cgroup::V1 { .. } => ("freezer.state", "FROZEN"),
            Cgroup::V2 { .. } => ("cgroup.events", "frozen 1"),
        };
        let state = fs::read_to_string(self.freezer()?.join(file)).context(|| format!("{file} of cgroup {self}"))?;
        Ok(state.lines().any(|line| line == word))
    }

    fn freezer(&self) -> Result<&Path> {
        let dir = self.controller_dir("freezer").filter(|dir| !is_root(dir));
        dir.ok_or_else(|| Error::unimplemented(format!("cgroup {self}: there is no freezer")))
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

/// Waits that grow, until the time is over.
struct Pause {
    deadline: Instant,
    next: Duration,
}

impl Pause {
    fn until(within: Duration) -> Pause {
        Pause { deadline: Instant::now() + within, next: Duration::from_millis(1) }
    }

    /// `false` if there is no time left to wait.
    async fn wait(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        tokio::time::sleep(self.next.min(left)).await;
        self.next = (self.next * 2).min(Duration::from_millis(50));
        !left.is_zero()
    }
}

fn kill(pid: u32) {
    // Whoever has gone meanwhile is as dead as wanted.
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests;
