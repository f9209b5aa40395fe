// SPDX-License-Identifier: Apache-2.0
//! What containerd is told of a task, in its event types.

use crate::events::{Event, Events};
use crate::ids::{ContainerId, ExecId};
use crate::reaper::Exit;
use crate::stdio::{Output, StdioSpec};
use containerd_shim_protos::events::task as message;
use containerd_shim_protos::protobuf::MessageField;
use std::path::Path;

/// A container was made.
pub fn created(events: &Events, container: &ContainerId, bundle: &Path, stdio: &StdioSpec, pid: u32, checkpoint: Option<&Path>) {
    let text = |path: Option<&Path>| path.map(|p| p.display().to_string()).unwrap_or_default();
    events.publish(Event::Create(message::TaskCreate {
        container_id: container.to_string(),
        bundle: bundle.display().to_string(),
        io: MessageField::some(message::TaskIO {
            stdin: text(stdio.stdin.as_deref()),
            stdout: text(stdio.stdout.as_ref().map(Output::path)),
            stderr: text(stdio.stderr.as_ref().map(Output::path)),
            terminal: stdio.terminal,
            ..Default::default()
        }),
        checkpoint: text(checkpoint),
        pid,
        ..Default::default()
    }));
}

/// A container's program, or an exec, was started.
pub fn started(events: &Events, container: &ContainerId, exec: Option<&ExecId>, pid: u32) {
    let container_id = container.to_string();
    events.publish(match exec {
        None => Event::Start(message::TaskStart { container_id, pid, ..Default::default() }),
        Some(exec) => Event::ExecStarted(message::TaskExecStarted { container_id, exec_id: exec.to_string(), pid, ..Default::default() }),
    });
}

/// An exec was announced.
pub fn exec_added(events: &Events, container: &ContainerId, exec: &ExecId) {
    let (container_id, exec_id) = (container.to_string(), exec.to_string());
    events.publish(Event::ExecAdded(message::TaskExecAdded { container_id, exec_id, ..Default::default() }));
}

/// A container was frozen or thawed.
pub fn frozen(events: &Events, container: &ContainerId, frozen: bool) {
    let container_id = container.to_string();
    events.publish(match frozen {
        true => Event::Paused(message::TaskPaused { container_id, ..Default::default() }),
        false => Event::Resumed(message::TaskResumed { container_id, ..Default::default() }),
    });
}

/// The kernel has killed a process of a container for memory.
pub fn out_of_memory(events: &Events, container: &ContainerId) {
    events.publish(Event::Oom(message::TaskOOM { container_id: container.to_string(), ..Default::default() }));
}

/// A process has ended: a container's init, whose name is the container's, or an exec.
pub fn exited(events: &Events, container: &ContainerId, process: &str, pid: u32, exit: Exit) {
    events.publish(Event::Exit(message::TaskExit {
        container_id: container.to_string(),
        id: process.into(),
        pid,
        exit_status: exit.code,
        exited_at: MessageField::some(exit.at.into()),
        ..Default::default()
    }));
}

/// A container was removed.
pub fn deleted(events: &Events, container: &ContainerId, pid: u32, exit: Exit) {
    events.publish(Event::Delete(message::TaskDelete {
        container_id: container.to_string(),
        id: container.to_string(),
        pid,
        exit_status: exit.code,
        exited_at: MessageField::some(exit.at.into()),
        ..Default::default()
    }));
}
