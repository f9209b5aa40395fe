// SPDX-License-Identifier: Apache-2.0
//! Signals that wake the event loop.
//!
//! tokio's own have a channel for each of Linux's 65 signals, in every event loop: 24 KiB that each
//! sandbox process would keep, for the one signal that it watches.

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Signal;
use std::io;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::io::unix::AsyncFd;

/// What the handler uses of one signal.
struct Watched {
    /// How often the signal has arrived. It wraps.
    arrived: AtomicU32,
    /// The eventfd that wakes the event loops, or -1. It stays open for as long as the process
    /// lives. Nobody reads it: the event loops watch it edge-triggered, so each write wakes them.
    wakes: AtomicI32,
}

/// The standard signals, by number.
static WATCHED: [Watched; 32] = [const { Watched { arrived: AtomicU32::new(0), wakes: AtomicI32::new(-1) } }; 32];

/// Held while a handler is installed.
static INSTALLING: Mutex<()> = Mutex::new(());

/// A signal that is watched. There may be several watchers of one signal.
#[derive(Debug)]
pub struct Watch {
    watched: &'static Watched,
    seen: u32,
    wakes: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches a signal in the current event loop, from now on. The signal loses its default
    /// action for as long as the process lives. A program that this process executes has the
    /// default action again.
    ///
    /// # Errors
    /// `EINVAL` for a real-time signal and for one that cannot be handled; when the kernel gives
    /// no eventfd.
    pub fn new(signal: Signal) -> io::Result<Self> {
        let number = signal.as_raw();
        let watched = usize::try_from(number).ok().and_then(|number| WATCHED.get(number));
        let watched = watched.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let eventfd = watched.eventfd(number)?;
        // SAFETY: this eventfd is never closed (see above).
        let wakes = unsafe { BorrowedFd::borrow_raw(eventfd) }.try_clone_to_owned()?;
        let seen = watched.arrived.load(Ordering::SeqCst);
        Ok(Self { watched, seen, wakes: crate::readiness::watch(wakes)? })
    }

    /// Waits until the signal arrives. Signals that arrive between two calls count as one.
    /// Cancel-safe.
    ///
    /// # Errors
    /// When the event loop is shutting down.
    pub async fn arrived(&mut self) -> io::Result<()> {
        loop {
            let arrived = self.watched.arrived.load(Ordering::SeqCst);
            if arrived != self.seen {
                self.seen = arrived;
                return Ok(());
            }
            self.wakes.readable().await?.clear_ready();
        }
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.arrived.fmt(f)
    }
}

impl Watched {
    /// The eventfd of the signal `number`. The first call installs the handler.
    fn eventfd(&self, number: libc::c_int) -> io::Result<RawFd> {
        let _installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        let installed = self.wakes.load(Ordering::SeqCst);
        if installed >= 0 {
            return Ok(installed);
        }
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // SAFETY: a `sigaction` of zeros is a valid one.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the structure lives through the call, and the handler does only what handlers may
        // (below).
        if unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // A signal that arrives before this is counted, and no watcher can have missed it.
        let eventfd = eventfd.into_raw_fd();
        self.wakes.store(eventfd, Ordering::SeqCst);
        Ok(eventfd)
    }
}

/// Uses atomics and write(2), as signal-safety(7) allows, and leaves `errno` as it was.
extern "C" fn handle(number: libc::c_int) {
    let Some(watched) = usize::try_from(number).ok().and_then(|number| WATCHED.get(number)) else { return };
    watched.arrived.fetch_add(1, Ordering::SeqCst);
    let one = 1_u64.to_ne_bytes();
    // SAFETY: `errno` belongs to this thread. The bytes live through the call. The descriptor is
    // the eventfd, which stays open, or -1, which the kernel refuses.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(watched.wakes.load(Ordering::SeqCst), one.as_ptr().cast(), one.len());
        *errno = before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Whether the signal has arrived without waiting for it.
    async fn has_arrived(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::ZERO, watch.arrived()).await.is_ok()
    }

    fn raise(signal: Signal) {
        rustix::process::kill_process(rustix::process::getpid(), signal).unwrap();
    }

    #[tokio::test]
    async fn each_signal_wakes_every_watcher() {
        let (mut one, mut other) = (Watch::new(Signal::USR1).unwrap(), Watch::new(Signal::USR1).unwrap());
        assert!(!has_arrived(&mut one).await);
        for _ in 0..3 {
            raise(Signal::USR1);
            tokio::time::timeout(Duration::from_secs(60), one.arrived()).await.unwrap().unwrap();
            tokio::time::timeout(Duration::from_secs(60), other.arrived()).await.unwrap().unwrap();
        }
        assert!(!has_arrived(&mut one).await && !has_arrived(&mut other).await);
    }

    #[tokio::test]
    async fn a_watcher_misses_none_between_two_calls_and_sees_none_before_it_began() {
        let mut first = Watch::new(Signal::USR2).unwrap();
        raise(Signal::USR2);
        first.arrived().await.unwrap();
        let mut second = Watch::new(Signal::USR2).unwrap();
        assert!(!has_arrived(&mut second).await);
        raise(Signal::USR2);
        assert!(has_arrived(&mut second).await);
    }

    #[tokio::test]
    async fn a_signal_that_cannot_be_handled_is_refused() {
        assert_eq!(Watch::new(Signal::KILL).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
