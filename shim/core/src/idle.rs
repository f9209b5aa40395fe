// SPDX-License-Identifier: Apache-2.0
//! Returns freed memory to the kernel when a sandbox process is idle.
//!
//! Making a container takes some hundred KiB for a moment. The allocator would keep them for the
//! next one, which may come in a week.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long the process must be idle. Returning memory costs some 100 µs, so it is not done between
/// the calls of one burst.
const QUIET: Duration = Duration::from_millis(300);

/// Requests that memory is returned soon. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Idle(Arc<Notify>);

impl Idle {
    /// The handle, and the loop that returns the memory.
    pub fn new() -> (Self, impl Future<Output = ()> + Send) {
        let idle = Self::default();
        let asked = idle.0.clone();
        (idle, async move {
            loop {
                asked.notified().await;
                tokio::time::sleep(QUIET).await;
                magnetar_sys::memory::trim();
            }
        })
    }

    /// Memory was freed: returns it soon.
    pub fn soon(&self) {
        self.0.notify_one();
    }
}
