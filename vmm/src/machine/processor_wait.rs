// SPDX-License-Identifier: Apache-2.0
//! How long a process waited for a processor of the host.
//!
//! The kernel counts this itself (`schedstat`) only where it was built to. What every kernel shows
//! is whether a thread is ready to run, and the processor time that it had (proc_pid_stat(5)). A
//! thread that is ready at both ends of an interval, and had less than the interval, waited for the
//! rest.

use procfs::process::{Process, Stat};
use procfs::{ProcResult, ticks_per_second};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Watches the threads of one process.
#[derive(Debug)]
pub struct ProcessorWait {
    pid: u32,
    seen: BTreeMap<i32, Thread>,
    at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Thread {
    is_ready: bool,
    had: Duration,
}

impl From<&Stat> for Thread {
    fn from(stat: &Stat) -> Self {
        // The kernel counts in hundredths of a second, so this is coarse.
        let milliseconds = (stat.utime + stat.stime).saturating_mul(1000) / ticks_per_second().max(1);
        Self { is_ready: stat.state == 'R', had: Duration::from_millis(milliseconds) }
    }
}

impl ProcessorWait {
    /// Begins to watch.
    pub fn of(pid: u32) -> Self {
        Self { pid, seen: threads(pid), at: Instant::now() }
    }

    /// How long one of its threads has waited since the last call: that which waited longest. Zero
    /// if this cannot be seen.
    pub fn since_last(&mut self) -> Duration {
        let (now, at) = (threads(self.pid), Instant::now());
        let (before, interval) = (std::mem::replace(&mut self.seen, now), at - self.at);
        self.at = at;
        let waits = self.seen.iter().filter_map(|(id, now)| waited(*before.get(id)?, *now, interval));
        waits.max().unwrap_or_default()
    }
}

fn waited(before: Thread, now: Thread, interval: Duration) -> Option<Duration> {
    (before.is_ready && now.is_ready).then(|| interval.saturating_sub(now.had.saturating_sub(before.had)))
}

/// The threads that can be seen. One that ends meanwhile is left out.
fn threads(pid: u32) -> BTreeMap<i32, Thread> {
    let read = || -> ProcResult<BTreeMap<i32, Thread>> {
        let tasks = Process::new(pid.cast_signed())?.tasks()?;
        Ok(tasks.filter_map(|task| Some((task.as_ref().ok()?.tid, Thread::from(&task.ok()?.stat().ok()?)))).collect())
    };
    // Nobody is told to wait longer for a process that cannot be seen.
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(is_ready: bool, had: u64) -> Thread {
        Thread { is_ready, had: Duration::from_millis(had) }
    }

    #[test]
    fn a_thread_that_was_ready_and_had_less_than_the_interval_has_waited_for_the_rest() {
        let interval = Duration::from_millis(200);
        let waits = |before, now| waited(before, now, interval).map(|wait| wait.as_millis());
        assert_eq!(waits(thread(true, 500), thread(true, 550)), Some(150));
        assert_eq!(waits(thread(true, 500), thread(true, 500)), Some(200));
        assert_eq!(waits(thread(true, 500), thread(true, 710)), Some(0));
        // It slept, at least for a moment.
        assert_eq!(waits(thread(false, 500), thread(true, 500)), None);
        assert_eq!(waits(thread(true, 500), thread(false, 500)), None);
    }

    #[test]
    fn a_process_that_sleeps_or_is_gone_waits_for_no_processor() {
        let mut sleeper = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let mut wait = ProcessorWait::of(sleeper.id());
        // It has begun to sleep once it is seen so.
        while wait.seen.values().any(|thread| thread.is_ready) {
            wait.since_last();
        }
        assert!(!wait.seen.is_empty());
        assert_eq!(wait.since_last(), Duration::ZERO);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(wait.since_last(), Duration::ZERO);
        assert!(wait.seen.is_empty());
    }
}
