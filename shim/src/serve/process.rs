// SPDX-License-Identifier: Apache-2.0
//! A sandbox process as seen from outside: its end, by pidfd.
//!
//! One mechanism for the processes that this `serve` has started and for those that an earlier one
//! has: no signal handler, no polling, and no process id that could mean another process by now.

use magnetar_core::error::{Context, Result};
use magnetar_core::record::Holder;
use magnetar_sys::readiness;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// A process to be waited for.
#[derive(Debug)]
pub struct Process {
    handle: Handle,
    /// Set where it is our child, which has to be reaped.
    child: Option<Child>,
}

/// Kills the process; says nothing about when it has ended. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(Arc<AsyncFd<OwnedFd>>);

impl Process {
    /// A process that was just spawned; where it cannot be watched, it is killed.
    ///
    /// # Errors
    /// Where descriptors have run out.
    pub fn spawned(mut child: Child) -> Result<Self> {
        match Handle::open(child.id()) {
            Ok(handle) => Ok(Self { handle, child: Some(child) }),
            Err(error) => {
                // It is our child and not reaped, so its id is still its own; a killed child ends at once.
                let _killed = child.kill();
                let _reaped = child.wait();
                Err(error)
            }
        }
    }

    /// A process that an earlier `serve` has started, and that has its pod's lock.
    ///
    /// # Errors
    /// Where it cannot be watched.
    pub fn adopted(holder: Holder) -> Result<Self> {
        let what = format!("cannot watch process {}", holder.pid);
        let watched = readiness::watch(holder.into_pidfd()).context(|| what)?;
        Ok(Self { handle: Handle(Arc::new(watched)), child: None })
    }

    /// A way to kill it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for its end, reaps it if it is ours, and says how it ended. Cancel-safe.
    pub async fn ended(&mut self) -> String {
        // A pidfd is readable once the process has ended, and then for ever.
        if let Err(error) = self.handle.0.readable().await {
            return format!("it cannot be watched: {error}");
        }
        match self.child.as_mut().map(Child::wait) {
            Some(Ok(status)) => status.to_string(),
            Some(Err(error)) => format!("nobody knows how: {error}"),
            None => "nobody knows how: it was started by an earlier serve".into(),
        }
    }
}

impl Handle {
    fn open(pid: u32) -> Result<Self> {
        let what = || format!("cannot watch process {pid}");
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH).context(what)?;
        let pidfd = rustix::process::pidfd_open(id, PidfdFlags::NONBLOCK).context(what)?;
        Ok(Self(Arc::new(readiness::watch(pidfd).context(what)?)))
    }

    /// Kills the process. One that has ended is fine.
    pub fn kill(&self) {
        let _ended_already = rustix::process::pidfd_send_signal(self.0.get_ref(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test(flavor = "current_thread")]
    async fn an_end_is_noticed_and_told() {
        let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        assert_eq!(Process::spawned(child).unwrap().ended().await, "exit status: 3");
        let mut process = Process::spawned(Command::new("sleep").arg("60").spawn().unwrap()).unwrap();
        process.handle().kill();
        assert!(process.ended().await.contains("signal: 9"));
        process.handle().kill();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_process_of_somebody_else_can_be_watched() {
        let state = tempfile::tempdir().unwrap();
        let dir = magnetar_core::record::PodDir::existing(state.path().to_owned());
        assert!(dir.holder().unwrap().is_none());
        // It has the lock, and the pod's directory in its command line, as a sandbox process has.
        let mut child = Command::new("flock").arg(state.path()).args(["sleep", "60"]).spawn().unwrap();
        let holder = loop {
            if let Some(holder) = dir.holder().unwrap() {
                break holder;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        };
        assert_eq!(holder.pid, child.id());
        let mut adopted = Process::adopted(holder).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(adopted.ended().await.contains("earlier"));
    }
}
