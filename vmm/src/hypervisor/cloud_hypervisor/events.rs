// SPDX-License-Identifier: Apache-2.0
//! Cloud Hypervisor's events (its crate event_monitor): JSON objects, with an empty line after
//! each.
//!
//! ```text
//! {"timestamp": …, "source": "vm", "event": "rebooting", "properties": null}
//! ```
//!
//! Only the restart of the guest matters here. Any other end of a guest ends the process.

use crate::hypervisor::{EventWatch, MachineEvent};
use magnetar_core::error::{Context, Result};
use serde::Deserialize;
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 4 << 10;

/// The longest event, in bytes.
const MAX_EVENT: usize = 64 << 10;

/// An event's known fields.
#[derive(Debug, Deserialize)]
struct Event {
    source: String,
    event: String,
}

/// Begins to read the events at `fifo`, whose writer is Cloud Hypervisor.
///
/// # Errors
/// Errors of the kernel.
pub fn watch(fifo: &Path) -> Result<EventWatch> {
    let what = || format!("cannot open Cloud Hypervisor's events at {}", fifo.display());
    let events = pipe::OpenOptions::new().open_receiver(fifo).context(what)?;
    Ok(Box::pin(restarted(events)))
}

/// Waits until the guest restarts. Waits forever after the last event, or if what comes is no
/// event: the end of the process is noticed elsewhere.
async fn restarted(events: impl AsyncRead + Send + Unpin) -> MachineEvent {
    let mut events = BufReader::new(events);
    let mut event = Vec::new();
    loop {
        let begin = event.len();
        match (&mut events).take(MAX_LINE).read_until(b'\n', &mut event).await {
            Ok(0) | Err(_) => return std::future::pending().await,
            // An empty line.
            Ok(1) if event[begin] == b'\n' => {
                if is_restart(&event) {
                    return MachineEvent::Restarted;
                }
                event.clear();
            }
            Ok(_) if event.len() > MAX_EVENT => return std::future::pending().await,
            Ok(_) => {}
        }
    }
}

fn is_restart(event: &[u8]) -> bool {
    serde_json::from_slice::<Event>(event).is_ok_and(|Event { source, event }| source == "vm" && event == "rebooting")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context as TaskContext, Poll, Waker};

    /// The event in this text, all of which is there at once.
    fn outcome(text: &str) -> Option<MachineEvent> {
        match pin!(restarted(text.as_bytes())).poll(&mut TaskContext::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_restart_is_found_among_other_events() {
        let started = "{\n  \"timestamp\": {\"secs\": 0, \"nanos\": 1},\n  \"source\": \"vm\",\n  \"event\": \"booted\",\n  \"properties\": null\n}\n\n";
        let restart = started.replace("booted", "rebooting");
        assert_eq!(outcome(&format!("{started}{restart}")), Some(MachineEvent::Restarted));
        assert_eq!(outcome(started), None);
        assert_eq!(outcome(&restart.replace("\"vm\"", "\"virtio-device\"")), None);
    }

    #[test]
    fn what_is_no_event_ends_nothing() {
        assert_eq!(outcome("rubbish\n\n{\"source\": \"vm\"}\n\n"), None);
        assert_eq!(outcome(&"x".repeat(1 << 20)), None);
        assert_eq!(outcome(""), None);
    }
}
