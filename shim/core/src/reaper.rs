// SPDX-License-Identifier: Apache-2.0
//! The only place that reaps.
//!
//! A sandbox process is a subreaper. Besides the OCI runtime's processes it inherits every
//! container's init, every exec and, if the pod shares the host's PID namespace, unrelated orphans.
//! One `wait` loop reaps them all. To wait for a process, register its id; an exit before the
//! registration is kept until then.

use crate::error::{Context, Result};
use magnetar_sys::signal::Watch;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::oneshot;

/// How many unclaimed exits are kept. An exec that ends before its id is read needs one. Orphans of
/// a pod in the host's PID namespace displace the oldest.
const UNCLAIMED: usize = 128;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 plus the signal that ended it.
    pub code: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

impl Exit {
    /// The exit of a process that was killed and could not be waited for.
    pub fn killed() -> Self {
        Self { code: 128 + libc::SIGKILL as u32, at: SystemTime::now() }
    }
}

/// Waits for every child of this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Reaper(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<i32, oneshot::Sender<Exit>>,
    unclaimed: VecDeque<(i32, Exit)>,
}

impl Reaper {
    /// Makes this process a subreaper and returns the reaper with the loop that drives it.
    ///
    /// # Errors
    /// When the kernel refuses the signal handler or the subreaper flag.
    pub fn start() -> Result<(Self, impl Future<Output = ()> + Send)> {
        // The kernel ignores the id: any id switches the flag on.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context(|| "cannot become a subreaper".into())?;
        let mut child_ended = Watch::new(Signal::CHILD).context(|| "cannot watch for SIGCHLD".into())?;
        let reaper = Self::default();
        let driven = reaper.clone();
        Ok((reaper, async move {
            while child_ended.arrived().await.is_ok() {
                driven.reap_all();
            }
        }))
    }

    /// Waits for the exit of `pid`, a child of this process or one that it has just inherited. The
    /// receiver fails only if `pid` never was one.
    pub fn watch(&self, pid: u32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        let pid = pid as i32;
        let mut table = self.table();
        // A kept exit may be of an earlier process with this id. It counts only if there is no such
        // child now.
        let is_child = Pid::from_raw(pid).is_some_and(|pid| {
            rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT).is_ok()
        });
        let kept = table.unclaimed.iter().rposition(|(unclaimed, _)| *unclaimed == pid).and_then(|i| table.unclaimed.remove(i));
        match (is_child, kept) {
            (true, _) => {
                table.waiting.insert(pid, sender);
            }
            (false, Some((_, exit))) => {
                let _receiver_is_ours = sender.send(exit);
            }
            (false, None) => {}
        }
        receiver
    }

    /// Sends a signal to a process that is [`watch`](Self::watch)ed and has not been reaped. Until
    /// then no other process can have its id.
    ///
    /// # Errors
    /// `ESRCH` for any other process, and for one that has ended; `EINVAL` for a number that is not
    /// a signal.
    pub fn signal(&self, pid: u32, signal: u32) -> std::io::Result<()> {
        // Nothing is reaped while the table is locked.
        let table = self.table();
        if !i32::try_from(pid).is_ok_and(|pid| table.waiting.contains_key(&pid)) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        magnetar_sys::process::signal(pid, signal)
    }

    fn reap_all(&self) {
        loop {
            let mut table = self.table();
            let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) else { return };
            let code = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code as u32,
                (None, Some(signal)) => 128 + signal as u32,
                (None, None) => continue,
            };
            table.ended(pid.as_raw_nonzero().get(), Exit { code, at: SystemTime::now() });
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn ended(&mut self, pid: i32, exit: Exit) {
        if let Some(waiter) = self.waiting.remove(&pid) {
            // The receiver may have been dropped.
            let _unheard = waiter.send(exit);
            return;
        }
        if self.unclaimed.len() == UNCLAIMED {
            self.unclaimed.pop_front();
        }
        self.unclaimed.push_back((pid, exit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_unclaimed_exits_is_bounded() {
        let mut table = Table::default();
        for pid in 0..1000 {
            table.ended(pid, Exit::killed());
        }
        assert_eq!(table.unclaimed.len(), UNCLAIMED);
        assert_eq!(table.unclaimed.back().unwrap().0, 999);
    }

    #[test]
    fn only_watched_processes_that_are_not_reaped_are_signalled() {
        let reaper = Reaper::default();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let unwatched = reaper.signal(child.id(), 9).unwrap_err();
        assert_eq!(unwatched.raw_os_error(), Some(libc::ESRCH));
        let _ended = reaper.watch(child.id());
        reaper.signal(child.id(), libc::SIGKILL as u32).unwrap();
        child.wait().unwrap();
        reaper.table().ended(child.id() as i32, Exit::killed());
        assert_eq!(reaper.signal(child.id(), 0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
