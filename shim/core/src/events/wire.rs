// SPDX-License-Identifier: Apache-2.0
//! Events in containerd's types: `containerd.events.Task…` in an envelope of
//! `containerd.services.events.ttrpc.v1`. Wire types stop here.

use super::Event;
use crate::ids::{ExecId, Namespace};
use crate::stdio::{Output, StdioSpec};
use containerd_shim_protos::events::task as message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField, Result};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use std::path::Path;
use std::time::SystemTime;
use tracing::warn;

pub use containerd_shim_protos::shim_async::EventsClient as Client;

/// The topic that containerd's subscribers filter by.
pub fn topic(event: &Event) -> &'static str {
    names(event).0
}

/// The request that sends an event. If the event cannot be encoded, logs that and returns `None`.
pub fn request(namespace: &Namespace, at: SystemTime, event: &Event) -> Option<ForwardRequest> {
    let (topic, type_url) = names(event);
    let value = match encode(event) {
        Ok(value) => value,
        Err(error) => {
            warn!(topic, %error, "cannot encode an event");
            return None;
        }
    };
    Some(ForwardRequest {
        envelope: MessageField::some(Envelope {
            timestamp: MessageField::some(at.into()),
            namespace: namespace.to_string(),
            topic: topic.into(),
            event: MessageField::some(Any { type_url: type_url.into(), value, ..Any::default() }),
            ..Envelope::default()
        }),
        ..ForwardRequest::default()
    })
}

/// An event's topic, and the full name of its message, which the receiver decodes it by.
fn names(event: &Event) -> (&'static str, &'static str) {
    match event {
        Event::Created { .. } => ("/tasks/create", "containerd.events.TaskCreate"),
        Event::Started { exec: None, .. } => ("/tasks/start", "containerd.events.TaskStart"),
        Event::Started { exec: Some(_), .. } => ("/tasks/exec-started", "containerd.events.TaskExecStarted"),
        Event::ExecAdded { .. } => ("/tasks/exec-added", "containerd.events.TaskExecAdded"),
        Event::Paused { .. } => ("/tasks/paused", "containerd.events.TaskPaused"),
        Event::Resumed { .. } => ("/tasks/resumed", "containerd.events.TaskResumed"),
        Event::OutOfMemory { .. } => ("/tasks/oom", "containerd.events.TaskOOM"),
        Event::Exited { .. } => ("/tasks/exit", "containerd.events.TaskExit"),
        Event::Deleted { .. } => ("/tasks/delete", "containerd.events.TaskDelete"),
    }
}

/// Encodes each message through its own type. Through `dyn`, the library would load the descriptors
/// of all files (400 KiB) to name a type in an error that cannot happen.
fn encode(event: &Event) -> Result<Vec<u8>> {
    let rest = Default::default;
    match event {
        Event::Created { container, bundle, stdio, pid, checkpoint } => {
            let (container_id, io) = (container.to_string(), MessageField::some(streams(stdio)));
            let (bundle, checkpoint) = (text(Some(bundle)), text(checkpoint.as_deref()));
            message::TaskCreate { container_id, bundle, io, checkpoint, pid: *pid, ..Default::default() }.write_to_bytes()
        }
        Event::Started { container, exec: None, pid } => {
            message::TaskStart { container_id: container.to_string(), pid: *pid, special_fields: rest() }.write_to_bytes()
        }
        Event::Started { container, exec: Some(exec), pid } => {
            let (container_id, exec_id) = (container.to_string(), exec.to_string());
            message::TaskExecStarted { container_id, exec_id, pid: *pid, special_fields: rest() }.write_to_bytes()
        }
        Event::ExecAdded { container, exec } => {
            let (container_id, exec_id) = (container.to_string(), exec.to_string());
            message::TaskExecAdded { container_id, exec_id, special_fields: rest() }.write_to_bytes()
        }
        Event::Paused { container } => message::TaskPaused { container_id: container.to_string(), special_fields: rest() }.write_to_bytes(),
        Event::Resumed { container } => {
            message::TaskResumed { container_id: container.to_string(), special_fields: rest() }.write_to_bytes()
        }
        Event::OutOfMemory { container } => {
            message::TaskOOM { container_id: container.to_string(), special_fields: rest() }.write_to_bytes()
        }
        Event::Exited { container, exec, pid, exit } => message::TaskExit {
            container_id: container.to_string(),
            // For an init, the id is the container's name.
            id: exec.as_ref().map_or(container.as_str(), ExecId::as_str).into(),
            pid: *pid,
            exit_status: exit.code,
            exited_at: MessageField::some(exit.at.into()),
            ..Default::default()
        }
        .write_to_bytes(),
        Event::Deleted { container, pid, exit } => message::TaskDelete {
            container_id: container.to_string(),
            id: container.to_string(),
            pid: *pid,
            exit_status: exit.code,
            exited_at: MessageField::some(exit.at.into()),
            ..Default::default()
        }
        .write_to_bytes(),
    }
}

fn streams(stdio: &StdioSpec) -> message::TaskIO {
    message::TaskIO {
        stdin: text(stdio.stdin.as_deref()),
        stdout: text(stdio.stdout.as_ref().map(Output::path)),
        stderr: text(stdio.stderr.as_ref().map(Output::path)),
        terminal: stdio.terminal,
        ..Default::default()
    }
}

fn text(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContainerId;
    use crate::reaper::Exit;

    #[test]
    fn exit_events_name_the_container_for_init_and_the_exec_otherwise() {
        let container = ContainerId::parse("c").unwrap();
        for (exec, id) in [(None, "c"), (Some(ExecId::parse("e").unwrap()), "e")] {
            let event = Event::Exited { container: container.clone(), exec, pid: 7, exit: Exit { code: 3, at: SystemTime::UNIX_EPOCH } };
            let namespace = Namespace::parse("k8s.io").unwrap();
            let envelope = request(&namespace, SystemTime::UNIX_EPOCH, &event).unwrap().envelope.unwrap();
            assert_eq!((envelope.topic.as_str(), envelope.namespace.as_str()), ("/tasks/exit", "k8s.io"));
            let exit = message::TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
            assert_eq!((exit.container_id.as_str(), exit.id.as_str(), exit.pid, exit.exit_status), ("c", id, 7, 3));
        }
    }
}
