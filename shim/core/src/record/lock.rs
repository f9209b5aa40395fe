// SPDX-License-Identifier: Apache-2.0
//! The lock on a pod's directory. Only the process that has it may serve the pod, or clean it up.
//!
//! It tells whether the sandbox process lives, without the races of process ids: the kernel
//! releases it when the process ends. The kernel also says which process has it (/proc/locks,
//! proc_locks(5)), so the id in the record need not be trusted.

use super::PodDir;
use crate::error::{Context, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

/// Holds a pod's lock: only this process may serve the pod, or clean it up.
#[derive(Debug)]
pub struct PodLock {
    _file: OwnedFd,
}

/// The sandbox process that has a pod's lock.
#[derive(Debug)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    process: OwnedFd,
}

impl Holder {
    /// Kills it. It is no error if it has ended meanwhile.
    pub fn kill(&self) {
        let _ended_meanwhile = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// A pidfd, which becomes readable when the process has ended.
    pub fn into_pidfd(self) -> OwnedFd {
        self.process
    }
}

impl PodDir {
    /// Takes the pod's lock, or returns `None` while a living process has it.
    ///
    /// # Errors
    /// `NotFound` if there is no such directory, or the kernel's error.
    pub fn try_lock(&self) -> Result<Option<PodLock>> {
        let file = self.open()?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(PodLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e).context(|| format!("cannot lock {}", self.path().display())),
        }
    }

    /// The sandbox process that has the lock. `None` if no process has it, or if a process has it
    /// that cleans up.
    ///
    /// # Errors
    /// Only if the kernel's data cannot be read.
    pub fn holder(&self) -> Result<Option<Holder>> {
        let stat = rustix::fs::fstat(self.open()?).context(|| format!("cannot look at {}", self.path().display()))?;
        let locks = std::fs::read_to_string("/proc/locks").context(|| "cannot read /proc/locks".into())?;
        for pid in locks.lines().filter_map(|line| flock_of(line, stat.st_ino)) {
            let process = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
                Ok(process) => process,
                Err(rustix::io::Errno::SRCH) => continue,
                Err(error) => return Err(error).context(|| format!("cannot open a pidfd of process {}", pid.as_raw_nonzero())),
            };
            // Checked after the pidfd was opened, so the answer is about that process, or about
            // another one that serves this pod.
            if self.serves(pid)? {
                return Ok(Some(Holder { pid: pid.as_raw_nonzero().get() as u32, process }));
            }
        }
        Ok(None)
    }

    /// Whether a process was started to serve this pod.
    fn serves(&self, pid: Pid) -> Result<bool> {
        let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
        let line = match std::fs::read(&path) {
            Ok(line) => line,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
            Err(error) => return Err(error).context(|| format!("cannot read {path}")),
        };
        // `--pod-dir DIR`, whatever the program.
        Ok(line.split(|byte| *byte == 0).any(|word| word == self.path().as_os_str().as_bytes()))
    }

    /// Opens the directory itself, which is locked: a separate file could not be made on a full
    /// disk, where clean-up is needed most.
    fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::open(self.path(), flags, Mode::empty()).context(|| format!("cannot open {}", self.path().display()))
    }
}

/// The process in a line of /proc/locks, if the line is about an flock on this inode. The device is
/// not compared, because stat(2) returns another one for some filesystems. The process's command
/// line is checked as well.
fn flock_of(line: &str, inode: u64) -> Option<Pid> {
    // 1: FLOCK  ADVISORY  WRITE 708 00:1a:1234 0 EOF
    let mut words = line.split_whitespace();
    let (_number, kind) = (words.next()?, words.next()?);
    let (pid, place) = (words.nth(2)?, words.next()?);
    let of_this = kind == "FLOCK" && place.rsplit(':').next()?.parse() == Ok(inode);
    // The id is not positive for a process that is not visible in our PID namespace.
    Pid::from_raw(pid.parse().ok().filter(|pid| of_this && *pid > 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_locks_are_parsed() {
        let line = "1: FLOCK  ADVISORY  WRITE 708 00:1a:1234 0 EOF";
        assert_eq!(flock_of(line, 1234), Pid::from_raw(708));
        // A line with an arrow is of a process that waits for the lock.
        for other in ["1: -> FLOCK  ADVISORY  WRITE 708 00:1a:1234 0 EOF", "2: POSIX  ADVISORY  WRITE 708 00:1a:1234 0 EOF", "", "x"] {
            assert_eq!(flock_of(other, 1234), None, "{other}");
        }
        assert_eq!(flock_of(line, 4), None);
        assert_eq!(
            flock_of("1: FLOCK  ADVISORY  WRITE -1 00:1a:1234 0 EOF", 1234),
            None,
            "of a process that is not visible in our PID namespace"
        );
    }

    #[test]
    fn a_process_that_only_has_the_lock_is_not_the_holder() {
        let state = tempfile::tempdir().unwrap();
        let dir = PodDir::existing(state.path().to_owned());
        let _lock = dir.try_lock().unwrap().unwrap();
        assert!(dir.holder().unwrap().is_none(), "this test is not a sandbox process");
    }
}
