// SPDX-License-Identifier: Apache-2.0
//! Watches a sandbox process for its end, by pidfd.
//!
//! This works alike for the processes that this `serve` started and for those of an earlier one. It
//! needs no signal handler and no polling, and a pidfd never refers to another process, as a reused
//! process id may.

use magnetar_core::error::{Context, Result};
use magnetar_core::record::Holder;
use magnetar_sys::readiness;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// A process whose end can be awaited.
#[derive(Debug)]
pub struct Process {
    handle: Handle,
    /// Set if it is our child, which has to be reaped.
    child: Option<Child>,
}

/// Can kill the process, but not wait for its end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(Arc<AsyncFd<OwnedFd>>);

impl Process {
    /// A process that was just spawned. If it cannot be watched, it is killed.
    ///
    /// # Errors
    /// When no descriptors are left.
    pub fn spawned(mut child: Child) -> Result<Self> {
        match Handle::open(child.id()) {
            Ok(handle) => Ok(Self { handle, child: Some(child) }),
            Err(error) => {
                // It is our child and not reaped, so no other process can have its id. A killed
                // child ends at once.
                let _killed = child.kill();
                let _reaped = child.wait();
                Err(error)
            }
        }
    }

    /// A process that an earlier `serve` started, found by its pod's lock.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn adopted(holder: Holder) -> Result<Self> {
        let what = format!("cannot watch process {}", holder.pid);
        let watched = readiness::watch(holder.into_pidfd()).context(|| what)?;
        Ok(Self { handle: Handle(Arc::new(watched)), child: None })
    }

    /// A way to kill it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for the end of the process, reaps it if it is our child, and returns how it ended.
    /// Cancel-safe.
    pub async fn ended(&mut self) -> String {
        // A pidfd is readable once the process has ended, and then for ever.
        if let Err(error) = self.handle.0.readable().await {
            return format!("it cannot be watched: {error}");
        }
        match self.child.as_mut().map(Child::wait) {
            Some(Ok(status)) => status.to_string(),
            Some(Err(error)) => format!("exit status unknown: {error}"),
            None => "exit status unknown: an earlier serve started it".into(),
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

    /// Kills the process. Does nothing if it has ended.
    pub fn kill(&self) {
        let _ended_already = rustix::process::pidfd_send_signal(self.0.get_ref(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test(flavor = "current_thread")]
    async fn ended_returns_how_the_process_ended() {
        let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        assert_eq!(Process::spawned(child).unwrap().ended().await, "exit status: 3");
        let mut process = Process::spawned(Command::new("sleep").arg("60").spawn().unwrap()).unwrap();
        process.handle().kill();
        assert!(process.ended().await.contains("signal: 9"));
        process.handle().kill();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_end_of_an_adopted_process_is_noticed() {
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
