// SPDX-License-Identifier: Apache-2.0
//! Kills for want of memory: as they happen, and how many there have been.
//!
//! v2 says it by changing memory.events, which inotify sees. v1 signals an eventfd that was registered with cgroup.event_control; it
//! signals every cgroup below the one that ran out, whether anything is killed there or not. So both kinds of signal only
//! make us look at the counter, and it is the counter that decides.
//!
//! Sources: the kernel's admin-guide/cgroup-v2 ("memory.events", "\[un\]populated notification") and admin-guide/cgroup-v1/memory ("OOM Control").

use super::Cgroup;
use super::stats::pairs;
use super::tree::write;
use crate::error::{Context, Error, Result};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

/// With v1 the signal comes before the kill, and the counter after it.
const KILL_DELAY: Duration = Duration::from_millis(10);

/// How often the counter is looked at after a v1 signal before it is taken for somebody else's.
const KILL_LOOKS: u32 = 10;

/// How often an empty v2 cgroup is looked for: not every kernel tells when one is removed.
const EMPTY_LOOK: Duration = Duration::from_secs(2);

/// How many processes of the cgroup have been killed for want of memory, ever: 0 where nobody counts, and
/// after the cgroup has gone. Look before removing it.
pub fn oom_kills(cgroup: &Cgroup) -> u64 {
    read_kills(cgroup).unwrap_or(0)
}

/// Waits for processes of one cgroup to be killed for want of memory.
pub struct OomWatch {
    cgroup: Cgroup,
    signal: AsyncFd<OwnedFd>,
    /// v1 wants this one to stay open.
    _control: Option<File>,
    /// The counter as last reported.
    seen: u64,
    /// How often the counter is still to be looked at, after a v1 signal.
    looks_left: u32,
}

impl OomWatch {
    /// Watches from now on. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    ///
    /// `NotFound` if the cgroup does not exist; `Unimplemented` if there is no memory controller.
    pub fn new(cgroup: &Cgroup) -> Result<OomWatch> {
        let dir = memory_dir(cgroup)?;
        let what = || format!("watch for OOM in cgroup {}", dir.display());
        let (signal, control) = match cgroup {
            Cgroup::V1 { .. } => {
                let (signal, control) = watch_v1(dir).context(what)?;
                (signal, Some(control))
            }
            Cgroup::V2 { .. } => (watch_v2(dir).context(what)?, None),
        };
        let signal = magnetar_sys::readiness::watch(signal).context(what)?;
        Ok(OomWatch { cgroup: cgroup.clone(), signal, _control: control, seen: oom_kills(cgroup), looks_left: 0 })
    }

    /// Waits for the next kill. Answers how many there have been in all, by now, or `None` when the cgroup has gone.
    ///
    /// Cancel-safe: what a dropped call has seen, the next one reports.
    pub async fn next(&mut self) -> Option<u64> {
        loop {
            let kills = read_kills(&self.cgroup).ok()?;
            if kills > self.seen {
                (self.seen, self.looks_left) = (kills, 0);
                return Some(kills);
            }
            if self.looks_left > 0 {
                sleep(KILL_DELAY).await;
                self.looks_left -= 1;
                continue;
            }
            match &self.cgroup {
                Cgroup::V1 { .. } => {
                    self.signalled().await?;
                    self.looks_left = KILL_LOOKS;
                }
                Cgroup::V2 { dir } if is_empty(dir) => timeout(EMPTY_LOOK, self.signalled()).await.unwrap_or(Some(()))?,
                Cgroup::V2 { .. } => self.signalled().await?,
            }
        }
    }

    /// Waits until the kernel has signalled something, and takes all of its signals.
    async fn signalled(&self) -> Option<()> {
        loop {
            let mut ready = self.signal.readable().await.ok()?;
            let taken = ready.try_io(|signal| {
                let mut buffer = [0; 512];
                Ok(rustix::io::read(signal.get_ref(), &mut buffer)?)
            });
            match taken {
                Ok(Ok(_)) => return Some(()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return None,
                Err(_would_block) => {}
            }
        }
    }
}

/// The counter, and 0 if the kernel keeps none (v1 before Linux 4.19).
fn read_kills(cgroup: &Cgroup) -> Result<u64> {
    let file = match cgroup {
        Cgroup::V1 { .. } => "memory.oom_control",
        Cgroup::V2 { .. } => "memory.events",
    };
    let path = memory_dir(cgroup)?.join(file);
    let text = fs::read_to_string(&path).context(|| path.display().to_string())?;
    Ok(pairs(&text).find(|(key, _)| *key == "oom_kill").map_or(0, |(_, value)| value))
}

/// Whether no process is in or below a v2 cgroup. Nothing is killed there: all that can come is life, or the end.
fn is_empty(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.events")).is_ok_and(|events| events.lines().any(|line| line == "populated 0"))
}

fn memory_dir(cgroup: &Cgroup) -> Result<&Path> {
    cgroup.controller_dir("memory").ok_or_else(|| Error::unimplemented(format!("cgroup {cgroup}: there is no memory controller")))
}

/// The eventfd, and the file that it is about.
fn watch_v1(dir: &Path) -> io::Result<(OwnedFd, File)> {
    let control = File::open(dir.join("memory.oom_control"))?;
    let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    write(&dir.join("cgroup.event_control"), &format!("{} {}", signal.as_raw_fd(), control.as_raw_fd()))?;
    Ok((signal, control))
}

/// An inotify descriptor on the counter, and on whether there are processes.
fn watch_v2(dir: &Path) -> io::Result<OwnedFd> {
    let signal = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let watch = |file: &str| inotify::add_watch(signal.as_fd(), PathBuf::from(dir).join(file), inotify::WatchFlags::MODIFY);
    watch("memory.events")?;
    watch("cgroup.events")?;
    Ok(signal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::{Scratch, block_on};

    const SOON: Duration = Duration::from_secs(10);

    fn limit_memory(scratch: &Scratch) {
        let dir = memory_dir(&scratch.0).unwrap();
        let (limit, swap) = match *scratch.0 {
            Cgroup::V1 { .. } => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
            Cgroup::V2 { .. } => ("memory.max", "memory.swap.max"),
        };
        write(&dir.join(limit), "16777216").unwrap();
        // Not every kernel can limit swap, and not every machine has some.
        let _ = write(&dir.join(swap), if swap.contains("memsw") { "16777216" } else { "0" });
    }

    #[test]
    fn a_kill_is_seen_and_so_is_the_end() {
        let Some(scratch) = Scratch::make("oom") else { return };
        limit_memory(&scratch);
        block_on(async {
            let mut watch = OomWatch::new(&scratch.0).unwrap();
            assert!(timeout(Duration::from_millis(50), watch.next()).await.is_err());
            // tail keeps what it cannot find the end of.
            let mut child = scratch.run("tail /dev/zero");
            assert!(matches!(timeout(SOON, watch.next()).await, Ok(Some(1..))));
            assert!(oom_kills(&scratch.0) > 0);
            child.wait().unwrap();
            scratch.0.kill_all(SOON).await.unwrap();
            scratch.0.remove(SOON).await.unwrap();
            assert_eq!(timeout(SOON, watch.next()).await, Ok(None));
            assert_eq!(oom_kills(&scratch.0), 0);
        });
    }

    #[test]
    fn the_end_is_seen_while_waiting() {
        let Some(scratch) = Scratch::make("oom-end") else { return };
        block_on(async {
            let mut watch = OomWatch::new(&scratch.0).unwrap();
            let (seen, removed) = tokio::join!(timeout(SOON, watch.next()), async {
                sleep(Duration::from_millis(50)).await;
                scratch.0.remove(SOON).await
            });
            removed.unwrap();
            assert_eq!(seen, Ok(None));
        });
    }

    /// Ordinary files stand in for those of v2: inotify sees them alike.
    #[test]
    fn v2_files_are_watched() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, content: &str| fs::write(dir.path().join(file), content).unwrap();
        write("memory.events", "low 0\noom 0\noom_kill 1\n");
        write("cgroup.events", "populated 1\nfrozen 0\n");
        let cgroup = Cgroup::V2 { dir: dir.path().to_owned() };
        block_on(async {
            let mut watch = OomWatch::new(&cgroup).unwrap();
            assert_eq!(oom_kills(&cgroup), 1);
            assert!(timeout(Duration::from_millis(20), watch.next()).await.is_err());
            write("memory.events", "low 0\noom 1\noom_kill 1\n");
            assert!(timeout(Duration::from_millis(20), watch.next()).await.is_err());
            write("memory.events", "low 0\noom 1\noom_kill 3\n");
            assert_eq!(timeout(SOON, watch.next()).await, Ok(Some(3)));
            write("cgroup.events", "populated 0\nfrozen 0\n");
            assert!(timeout(Duration::from_millis(20), watch.next()).await.is_err());
            fs::remove_dir_all(dir.path()).unwrap();
            assert_eq!(timeout(SOON, watch.next()).await, Ok(None));
        });
    }

    #[test]
    fn nowhere_is_not_watched() {
        block_on(async {
            let error = OomWatch::new(&Cgroup::at("/magnetar-test-nowhere").unwrap()).err().unwrap();
            assert_eq!(error.code(), crate::error::Code::NotFound);
        });
    }
}
