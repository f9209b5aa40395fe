// SPDX-License-Identifier: Apache-2.0
//! What a sandbox process does when it has nothing to do: it gives back the memory that it freed.
//!
//! Making a container takes some hundred KiB for a moment. The allocator would keep them for the
//! next one, which may come in a week.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Giving back costs some 100 µs: not between the calls of one burst.
const QUIET: Duration = Duration::from_millis(300);

/// Asks for memory to be given back soon. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Idle(Arc<Notify>);

impl Idle {
    /// The handle, and the loop that does it.
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

    /// Something was done that has freed memory.
    pub fn soon(&self) {
        self.0.notify_one();
    }
}
