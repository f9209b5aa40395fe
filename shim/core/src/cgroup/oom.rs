// SPDX-License-Identifier: Apache-2.0
//! OOM kills in a cgroup: reports them as they happen, and counts them.
//!
//! v2 changes memory.events, which inotify reports. v1 signals an eventfd that was registered with
//! cgroup.event_control; it signals every cgroup below the one that ran out of memory, even if
//! nothing is killed there. So both kinds of signal only trigger a look at the counter, and the
//! counter decides.
//!
//! Sources: the kernel's admin-guide/cgroup-v2 ("memory.events", "\[un\]populated notification")
//! and admin-guide/cgroup-v1/memory ("OOM Control").

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
use tokio_stream::Stream;

/// With v1 the signal comes before the kill, and the counter after it.
const KILL_DELAY: Duration = Duration::from_millis(10);

/// How often the counter is read after a v1 signal until the signal is taken for one of another
/// cgroup.
const KILL_LOOKS: u32 = 10;

/// The time between checks whether an empty v2 cgroup still exists: not every kernel reports its
/// removal.
const EMPTY_LOOK: Duration = Duration::from_secs(2);

/// How many processes of the cgroup the OOM killer has killed in all. It is 0 if the kernel does
/// not count, and after the cgroup is gone: call it before removing the cgroup.
pub fn oom_kills(cgroup: &Cgroup) -> u64 {
    read_kills(cgroup).unwrap_or(0)
}

/// Waits for OOM kills in one cgroup.
pub struct OomWatch {
    cgroup: Cgroup,
    signal: AsyncFd<OwnedFd>,
    /// v1 requires this file to stay open.
    _control: Option<File>,
    /// The counter as last reported.
    seen: u64,
    /// How often the counter will still be read after a v1 signal.
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

    /// The counts, each when it has grown, until the cgroup has gone.
    pub fn stream(self) -> impl Stream<Item = u64> + Send {
        futures_util::stream::unfold(self, |mut watch| async move { watch.next().await.map(|kills| (kills, watch)) })
    }

    /// Waits for the next kill. Returns the number of kills so far, or `None` when the cgroup is
    /// gone.
    ///
    /// Cancel-safe: the next call reports kills that a dropped call has seen.
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

    /// Waits for a signal of the kernel, and consumes all pending ones.
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

/// The counter, or 0 if the kernel keeps none (v1 before Linux 4.19).
fn read_kills(cgroup: &Cgroup) -> Result<u64> {
    let file = match cgroup {
        Cgroup::V1 { .. } => "memory.oom_control",
        Cgroup::V2 { .. } => "memory.events",
    };
    let path = memory_dir(cgroup)?.join(file);
    let text = fs::read_to_string(&path).context(|| path.display().to_string())?;
    Ok(pairs(&text).find(|(key, _)| *key == "oom_kill").map_or(0, |(_, value)| value))
}

/// Whether a v2 cgroup and those below it have no processes. Then no kill can happen: only a
/// process can be added, or the cgroup be removed.
fn is_empty(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.events")).is_ok_and(|events| events.lines().any(|line| line == "populated 0"))
}

fn memory_dir(cgroup: &Cgroup) -> Result<&Path> {
    cgroup.controller_dir("memory").ok_or_else(|| Error::unimplemented(format!("cgroup {cgroup}: there is no memory controller")))
}

/// The eventfd, and the file to which it is registered.
fn watch_v1(dir: &Path) -> io::Result<(OwnedFd, File)> {
    let control = File::open(dir.join("memory.oom_control"))?;
    let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    write(&dir.join("cgroup.event_control"), &format!("{} {}", signal.as_raw_fd(), control.as_raw_fd()))?;
    Ok((signal, control))
}

/// An inotify descriptor for the counter, and for the file that says whether there are processes.
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
    fn a_kill_and_the_removal_of_the_cgroup_are_reported() {
        let Some(scratch) = Scratch::make("oom") else { return };
        limit_memory(&scratch);
        block_on(async {
            let mut watch = OomWatch::new(&scratch.0).unwrap();
            assert!(timeout(Duration::from_millis(50), watch.next()).await.is_err());
            // tail keeps all input until it finds the end of a line.
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
    fn the_removal_of_the_cgroup_ends_a_wait() {
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

    /// Uses ordinary files in place of v2's, because inotify reports both alike.
    #[test]
    fn changes_of_v2_files_are_reported() {
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
    fn a_cgroup_that_does_not_exist_cannot_be_watched() {
        block_on(async {
            let error = OomWatch::new(&Cgroup::at("/magnetar-test-nowhere").unwrap()).err().unwrap();
            assert_eq!(error.code(), crate::error::Code::NotFound);
        });
    }
}
