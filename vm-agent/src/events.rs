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
            Event::Oom(oom) => api::Event::OutOfMemory { container: oom.container_id },
            Event::Exit(exit) => {
                let exec = (exit.id != exit.container_id).then_some(exit.id);
                api::Event::Exited { container: exit.container_id, exec, code: exit.exit_status }
            }
            Event::Create(_)
            | Event::Start(_)
            | Event::Delete(_)
            | Event::ExecAdded(_)
            | Event::ExecStarted(_)
            | Event::Paused(_)
            | Event::Resumed(_) => continue,
        };
        if frame::write(&mut to, &told).await.is_err() {
            // The host has left, and it ends the guest.
            return;
        }
    }
}
