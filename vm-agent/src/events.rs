// SPDX-License-Identifier: Apache-2.0
//! Reports events to the host, in the order in which they happened. The core publishes more events;
//! the host knows the others itself.

use magnetar_core::events::Event;
use magnetar_vm_agent_api::{self as api, frame};
use std::time::SystemTime;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

/// Sends events until the connection fails.
pub async fn send(mut to: impl AsyncWrite + Unpin, mut events: mpsc::UnboundedReceiver<(SystemTime, Event)>) {
    while let Some((_, event)) = events.recv().await {
        let told = match event {
            Event::OutOfMemory { container } => api::Event::OutOfMemory { container: container.to_string() },
            Event::Exited { container, exec, pid: _, exit } => {
                api::Event::Exited { container: container.to_string(), exec: exec.map(|exec| exec.to_string()), code: exit.code }
            }
            Event::Created { .. }
            | Event::Started { .. }
            | Event::Deleted { .. }
            | Event::ExecAdded { .. }
            | Event::Paused { .. }
            | Event::Resumed { .. } => continue,
        };
        if frame::write(&mut to, &told).await.is_err() {
            // The host has left, and it ends the guest.
            return;
        }
    }
}
