// SPDX-License-Identifier: Apache-2.0
//! Cgroups that were made for one pod or container. Only these are killed, frozen, thawed and
//! removed.
//!
//! ```text
//! claim       before a container is made: its cgroup must be empty, so that all later processes in it belong to it
//! recorded    from a record: the cgroup's last name must be the name of the pod or container
//! find        without a record: every cgroup with that name, if the name is long enough to be unique
//! of_sandbox  the cgroup of a sandbox process, whose place follows from the pod's names
//! ```
//!
//! Deliberately absent: a way to own the cgroup that some process is in. A process that has ended,
//! or has not been moved yet, is in another cgroup: in containerd's, or in the root with the whole
//! host.

use super::hierarchy::Hierarchies;
use super::tree::{has_gone, is_root, pids_in, subtree, write};
use super::{Cgroup, hierarchy};
use crate::error::{Code, Context, Error, Result};
use crate::ids::{Namespace, SandboxId};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The cgroup that all sandbox processes are in, outside of those of pods and services.
pub const SANDBOXES: &str = "/magnetar-sandboxes";

/// The least length of a name for [`OwnedCgroup::find`]. Two cgroups may have the same shorter
/// name. containerd's own ids have 64 characters.
const UNIQUE_LENGTH: usize = 32;

/// A cgroup that belongs to one pod or container, with all its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedCgroup(Cgroup);

impl std::ops::Deref for OwnedCgroup {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

impl OwnedCgroup {
    /// The cgroup in which a container is about to be made, at a path as of [`Cgroup::at`].
    ///
    /// # Errors
    /// `FailedPrecondition` if a process is in it already, or if it is the root of a hierarchy;
    /// those of [`Cgroup::at`].
    pub fn claim(path: &str) -> Result<Self> {
        let owned = Self(Cgroup::at(path)?);
        let dir = owned.process_dir()?;
        let present = pids_in(dir, true).context(|| format!("cannot list the processes of cgroup {}", dir.display()))?;
        if !present.is_empty() {
            return Err(Error::precondition(format!(
                "cgroup {} already holds the processes {present:?}: a container needs one of its own",
                dir.display()
            )));
        }
        Ok(owned)
    }

    /// The cgroup of the pod or container `name`, from a record. `claimed` says that
    /// [`claim`](Self::claim) checked the cgroup before it was recorded. A cgroup that was not
    /// claimed must have the name.
    ///
    /// # Errors
    /// `FailedPrecondition` for a cgroup that may belong to another pod or container.
    pub fn recorded(path: &str, name: &str, claimed: bool) -> Result<Self> {
        let cgroup = Cgroup::at(path)?;
        let named = cgroup.paths().iter().all(|dir| is_named_for(dir, name));
        if !named && !claimed {
            return Err(Error::precondition(format!("cgroup {path} is not named for {name}, so it may be another's: it is left alone")));
        }
        let owned = Self(cgroup);
        owned.process_dir()?;
        Ok(owned)
    }

    /// Every cgroup with the name of a pod or container. None for a name that is too short to be
    /// unique.
    ///
    /// # Errors
    /// If a hierarchy cannot be read.
    pub fn find(name: &str) -> Result<Vec<Self>> {
        if name.len() < UNIQUE_LENGTH {
            return Ok(Vec::new());
        }
        let mut found: BTreeMap<PathBuf, Self> = BTreeMap::new();
        let root = Cgroup::at("/")?;
        for top in root.paths() {
            let below = subtree(&top).context(|| format!("cannot look for cgroups of {name} below {}", top.display()))?;
            for dir in below.into_iter().filter(|dir| is_named_for(dir, name)) {
                let path = dir.strip_prefix(&top).unwrap_or(&dir);
                let owned = Self(Cgroup::at(&format!("/{}", path.display()))?);
                found.entry(path.to_owned()).or_insert(owned);
            }
        }
        Ok(found.into_values().collect())
    }

    /// The cgroup of a pod's sandbox process. With v1 it has a directory of its own only in the
    /// hierarchy by which its processes are found. In the other hierarchies all sandbox processes
    /// share one, because each pod would cost ten directories.
    ///
    /// # Errors
    /// `FailedPrecondition` if no hierarchy is mounted.
    pub fn of_sandbox(namespace: &Namespace, sandbox: &SandboxId) -> Result<Self> {
        let own = Cgroup::at(&format!("{SANDBOXES}/{namespace}/{sandbox}"))?;
        Ok(Self(match own {
            Cgroup::V1 { dirs } => {
                let decisive = hierarchy::DECISIVE.iter().find(|controller| dirs.contains_key(**controller)).copied();
                let decisive = decisive.or_else(|| dirs.keys().next().map(String::as_str));
                Cgroup::V1 {
                    dirs: dirs.iter().filter(|(key, _)| Some(key.as_str()) == decisive).map(|(k, d)| (k.clone(), d.clone())).collect(),
                }
            }
            v2 @ Cgroup::V2 { .. } => v2,
        }))
    }

    /// Kills all processes in and below it, repeatedly until there are none, because a process may
    /// fork while it is being killed. Dropping the future leaves nothing frozen.
    ///
    /// # Errors
    /// `FailedPrecondition` if this process is inside; `DeadlineExceeded` if processes are left
    /// when the time is over.
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

    /// One round of [`kill_all`](Self::kill_all), without waiting. Returns whether no process was
    /// left to kill.
    ///
    /// # Errors
    /// `FailedPrecondition` if this process is inside, or the kernel's error.
    pub fn kill_once(&self) -> Result<bool> {
        let dir = self.process_dir()?;
        let what = || format!("kill the processes of cgroup {}", dir.display());
        let pids = pids_in(dir, true).context(what)?;
        if pids.is_empty() {
            return Ok(true);
        }
        if pids.contains(&std::process::id()) {
            return Err(Error::precondition(format!("cannot kill cgroup {self}: process {} itself is in it", std::process::id())));
        }
        // From Linux 5.14 on, one write kills all processes, even those that are forking.
        if matches!(self.0, Cgroup::V2 { .. }) && write(&dir.join("cgroup.kill"), "1").is_ok() {
            return Ok(false);
        }
        // Frozen processes cannot fork. If they cannot be frozen, the next round kills the new
        // children.
        let _unfrozen = self.set_frozen(true);
        let killed = signal_members(dir, libc::SIGKILL as u32);
        // Killed processes end only when they are thawed. That includes cgroups that were frozen
        // before: a paused container, or a cgroup that the container froze itself.
        let (file, thawed) = self.freezer_file(false);
        for level in self.freezer().and_then(|freezer| subtree(freezer).context(what)).into_iter().flatten() {
            let _gone = write(&level.join(file), thawed);
        }
        killed.context(what).map(|()| false)
    }

    /// Sends a signal to all processes in and below it.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that is not a signal, or the kernel's error.
    pub fn signal(&self, signal: u32) -> Result<()> {
        let dir = self.process_dir()?;
        match signal_members(dir, signal) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                Err(Error::invalid(format!("{signal} is not a signal: cannot send it to the processes of cgroup {self}")))
            }
            sent => sent.context(|| format!("send signal {signal} to the processes of cgroup {self}")),
        }
    }

    /// Stops all processes in and below it, until [`thaw`](Self::thaw). Not cancel-safe: after
    /// dropping the future, thaw.
    ///
    /// # Errors
    /// `FailedPrecondition` if this process is inside; `DeadlineExceeded` after `within`, and the
    /// cgroup is thawed again; `NotFound` if it does not exist.
    pub async fn freeze(&self, within: Duration) -> Result<()> {
        if pids_in(self.process_dir()?, true).is_ok_and(|pids| pids.contains(&std::process::id())) {
            return Err(Error::precondition(format!("cgroup {self}: freezing it would freeze process {} itself", std::process::id())));
        }
        let mut pause = Pause::until(within);
        loop {
            // With v1 the request must be repeated for as long as processes are being forked.
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

    /// Lets the processes run again. It is no error if they are not frozen.
    ///
    /// # Errors
    /// Those of [`freeze`](Self::freeze), but for `DeadlineExceeded`.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    /// Removes it and all cgroups below, which must have no processes. It is no error if they do
    /// not exist.
    ///
    /// A cgroup is busy until its last process is completely gone, so the removal is repeated until
    /// the time is over.
    ///
    /// # Errors
    /// `DeadlineExceeded` if it is still busy.
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

    /// One round of [`remove`](Self::remove), without waiting. Returns whether the cgroup is gone.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn remove_once(&self) -> Result<bool> {
        let mut gone = true;
        for dir in self.paths().iter().filter(|dir| !is_root(dir)) {
            for level in subtree(dir).context(|| format!("look below cgroup {}", dir.display()))?.iter().rev() {
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

    /// The directory whose processes count as the cgroup's. It is never the root of a hierarchy.
    fn process_dir(&self) -> Result<&Path> {
        self.0
            .process_dir()
            .filter(|dir| !is_root(dir))
            .ok_or_else(|| Error::precondition("the root of a cgroup hierarchy holds the host's processes: it is left alone"))
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let (file, value) = self.freezer_file(frozen);
        write(&self.freezer()?.join(file), value).context(|| format!("{value} to {file} of cgroup {self}"))
    }

    /// The file that freezes or thaws, and the value to write.
    fn freezer_file(&self, frozen: bool) -> (&'static str, &'static str) {
        match (&self.0, frozen) {
            (Cgroup::V1 { .. }, true) => ("freezer.state", "FROZEN"),
            (Cgroup::V1 { .. }, false) => ("freezer.state", "THAWED"),
            (Cgroup::V2 { .. }, true) => ("cgroup.freeze", "1"),
            (Cgroup::V2 { .. }, false) => ("cgroup.freeze", "0"),
        }
    }

    pub(super) fn is_frozen(&self) -> Result<bool> {
        let (file, word) = match &self.0 {
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

    /// A cgroup that a test has made.
    #[cfg(test)]
    pub(super) fn made(cgroup: Cgroup) -> Self {
        Self(cgroup)
    }
}

impl std::fmt::Display for OwnedCgroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The cgroup of all sandbox processes, in every hierarchy.
///
/// # Errors
/// `FailedPrecondition` if no hierarchy is mounted.
pub(super) fn sandboxes() -> Result<Cgroup> {
    Hierarchies::mounted()?.at(SANDBOXES)
}

/// Whether a directory is named for a pod or container, as with cgroupfs (`<id>`) or systemd
/// (`cri-containerd-<id>.scope`).
fn is_named_for(dir: &Path, name: &str) -> bool {
    let Some(own) = dir.file_name().and_then(|own| own.to_str()) else { return false };
    let unit = || own.strip_suffix(".scope")?.strip_suffix(name);
    own == name || unit().is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('-'))
}

/// Sends a signal to all processes in and below `dir`. It opens a pidfd for each process and then
/// checks once more that the process is a member. So a process that got a reused id meanwhile is
/// not signalled.
fn signal_members(dir: &Path, signal: u32) -> io::Result<()> {
    let hold = |pid: u32| Some((pid, pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty())));
    let held: Vec<(u32, Result<OwnedFd, Errno>)> = pids_in(dir, true)?.into_iter().filter_map(hold).collect();
    let members = pids_in(dir, true)?;
    for (pid, process) in held.into_iter().filter(|(pid, _)| members.contains(pid)) {
        let sent = match process {
            Ok(process) => magnetar_sys::process::signal_pidfd(&process, signal),
            Err(Errno::SRCH) => continue,
            // No descriptor is left for a pidfd: the id was a member a moment ago.
            Err(_) => magnetar_sys::process::signal(pid, signal),
        };
        match sent {
            // A process that is gone needs no signal.
            Err(error) if error.raw_os_error() != Some(Errno::SRCH.raw_os_error()) => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Growing waits, until the time is over.
struct Pause {
    deadline: Instant,
    next: Duration,
}

impl Pause {
    fn until(within: Duration) -> Pause {
        Pause { deadline: Instant::now() + within, next: Duration::from_millis(1) }
    }

    /// Waits; returns `false` if no time is left.
    async fn wait(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        tokio::time::sleep(self.next.min(left)).await;
        self.next = (self.next * 2).min(Duration::from_millis(50));
        !left.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup_with_the_container_s_name_is_owned() {
        let (name, other) = ("0".repeat(64), "1".repeat(64));
        for own in [name.clone(), format!("{name}.scope"), format!("cri-containerd-{name}.scope")] {
            assert!(is_named_for(&Path::new("/sys/fs/cgroup/kubepods").join(&own), &name), "{own}");
            assert!(!is_named_for(&Path::new("/sys/fs/cgroup/kubepods").join(&own), &other), "{own}");
        }
        for own in [format!("x{name}"), format!("cri-containerd{name}.scope"), format!("{name}.slice"), "kubepods".into()] {
            assert!(!is_named_for(&Path::new("/sys/fs/cgroup").join(&own), &name), "{own}");
        }
        assert!(OwnedCgroup::recorded(&format!("/kubepods/{name}"), &name, false).is_ok());
        for lie in ["/kubepods".to_owned(), format!("/kubepods/{other}"), format!("/{name}/other")] {
            assert_eq!(OwnedCgroup::recorded(&lie, &name, false).unwrap_err().code(), Code::FailedPrecondition, "{lie}");
        }
        for root in [OwnedCgroup::recorded("/", &name, true), OwnedCgroup::claim("/")] {
            assert_eq!(root.unwrap_err().code(), Code::FailedPrecondition);
        }
        assert!(OwnedCgroup::find("short").unwrap().is_empty());
    }
}
