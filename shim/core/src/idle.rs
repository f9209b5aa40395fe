// SPDX-License-Identifier: Apache-2.0
//! Returns freed memory to the kernel when a sandbox process is idle.
//!
//! Making a container takes some hundred KiB for a moment. The allocator would keep them for the
//! next one, which may come in a week.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

/// How long the process must be idle. Returning memory costs some 100 µs, so it is not done between
/// the calls of one burst.
const QUIET: Duration = Duration::from_millis(300);

/// Whether memory is returned before the event loop waits again.
static DUE: AtomicBool = AtomicBool::new(false);

/// An event loop on this thread alone, which returns memory when that is due.
///
/// It does so right before it waits for events. No task runs then, so the stack is short, and all
/// of it below can be returned.
///
/// # Errors
/// When the kernel has no more descriptors for it.
pub fn event_loop() -> io::Result<Runtime> {
    let trim = || {
        if DUE.swap(false, Ordering::Relaxed) {
            magnetar_sys::memory::trim();
        }
    };
    Builder::new_current_thread().enable_all().on_thread_park(trim).build()
}

/// Requests that memory is returned soon. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Idle(Arc<Notify>);

impl Idle {
    /// The handle, and the task that lets the [`event_loop`] return memory.
    pub fn new() -> (Self, impl Future<Output = ()> + Send) {
        let idle = Self::default();
        let asked = idle.0.clone();
        (idle, async move {
            loop {
                asked.notified().await;
                tokio::time::sleep(QUIET).await;
                DUE.store(true, Ordering::Relaxed);
            }
        })
    }

    /// Memory was freed: returns it soon.
    pub fn soon(&self) {
        self.0.notify_one();
    }
}
