// SPDX-License-Identifier: Apache-2.0
//! The calls of the Task API, each with the arguments that it has in this test, and its answer as a
//! word.

use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, DeleteRequest, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest,
        ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StateRequest, StatsRequest, UpdateTaskRequest, WaitRequest,
    },
    protobuf::{MessageField, well_known_types::any::Any},
};
use magnetar_e2e::Case;

use super::subjects::{Column, Streams, Subject, process};
use crate::bench::{Bench, patience};

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    State,
    Connect,
    Pids,
    Stats,
    Wait,
    Update,
    ResizePty,
    CloseIo,
    Checkpoint,
    /// Whether the process is there.
    Kill0,
    /// No such signal.
    Kill999,
    /// A new exec in a container, and the same exec once more in the table of execs.
    Exec,
    Shutdown,
    /// The same id once more.
    Create,
    Pause,
    Resume,
    Start,
    Delete,
    KillAll,
    Kill9,
    /// As above, of a process with a terminal.
    ResizeTerminal,
    CloseTerminal,
}

impl Call {
    /// Those that are asked of a container. What may change its state comes last.
    pub const OF_CONTAINERS: &[Self] = &[
        Self::State,
        Self::Connect,
        Self::Pids,
        Self::Stats,
        Self::Wait,
        Self::Update,
        Self::ResizePty,
        Self::CloseIo,
        Self::Checkpoint,
        Self::Kill0,
        Self::Kill999,
        Self::Exec,
        Self::Shutdown,
        Self::Create,
        Self::Pause,
        Self::Resume,
        Self::Start,
        Self::Delete,
        Self::KillAll,
        Self::Kill9,
        Self::ResizeTerminal,
        Self::CloseTerminal,
    ];

    /// Those that name an exec.
    pub const OF_EXECS: &[Self] = &[
        Self::State,
        Self::Wait,
        Self::ResizePty,
        Self::CloseIo,
        Self::Kill0,
        Self::Kill999,
        Self::Exec,
        Self::Start,
        Self::Delete,
        Self::KillAll,
        Self::Kill9,
        Self::ResizeTerminal,
        Self::CloseTerminal,
    ];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "State",
            Self::Connect => "Connect",
            Self::Pids => "Pids",
            Self::Stats => "Stats",
            Self::Wait => "Wait",
            Self::Update => "Update",
            Self::ResizePty => "ResizePty",
            Self::CloseIo => "CloseIO",
            Self::Checkpoint => "Checkpoint",
            Self::Kill0 => "Kill, signal 0",
            Self::Kill999 => "Kill, signal 999",
            Self::Exec => "Exec",
            Self::Shutdown => "Shutdown",
            Self::Create => "Create",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Start => "Start",
            Self::Delete => "Delete",
            Self::KillAll => "Kill, signal 9, all",
            Self::Kill9 => "Kill, signal 9",
            Self::ResizeTerminal => "ResizePty, terminal",
            Self::CloseTerminal => "CloseIO, terminal",
        }
    }

    /// The streams of the process that it is asked of.
    pub fn streams(self, column: Column) -> Streams {
        match self {
            Self::ResizeTerminal | Self::CloseTerminal => Streams::Terminal,
            // The stock shim waits ten seconds for the end of the output of what was made and never
            // started.
            Self::Delete if column.is_created_container() => Streams::None,
            _ => Streams::Pipes,
        }
    }

    /// What was asked ends the process a little later, whatever State says now.
    pub fn kills(self) -> bool {
        matches!(self, Self::KillAll | Self::Kill9)
    }

    /// Asks for it. The answer is «OK», with what State and Wait say of the process, or the name of
    /// a code.
    pub async fn ask(self, case: &Case, bench: &Bench, of: &Subject) -> String {
        let (task, with) = (&bench.task, patience());
        let (id, exec_id) = (of.id.clone(), of.exec.clone().unwrap_or_default());
        match self {
            Self::State => match task.state(with, &StateRequest { id, exec_id, ..Default::default() }).await {
                Ok(state) => format!("OK {:?}", state.status.enum_value_or_default()),
                Err(error) => code(&error),
            },
            Self::Wait => {
                let asked = WaitRequest { id, exec_id, ..Default::default() };
                // Who waits for what does not end has no answer, however long; one more second
                // tells a busy node from that.
                match tokio::time::timeout(case.within(1), task.wait(with, &asked)).await {
                    Ok(Ok(ended)) => format!("OK {}", ended.exit_status),
                    Ok(Err(error)) => code(&error),
                    Err(_) => "waits".to_owned(),
                }
            }
            Self::Connect => word(task.connect(with, &ConnectRequest { id, ..Default::default() }).await),
            Self::Pids => word(task.pids(with, &PidsRequest { id, ..Default::default() }).await),
            Self::Stats => word(task.stats(with, &StatsRequest { id, ..Default::default() }).await),
            Self::Update => {
                let limits = Any { value: br#"{"pids":{"limit":100}}"#.to_vec(), ..Default::default() };
                word(task.update(with, &UpdateTaskRequest { id, resources: MessageField::some(limits), ..Default::default() }).await)
            }
            Self::ResizePty | Self::ResizeTerminal => {
                word(task.resize_pty(with, &ResizePtyRequest { id, exec_id, width: 80, height: 24, ..Default::default() }).await)
            }
            Self::CloseIo | Self::CloseTerminal => {
                word(task.close_io(with, &CloseIORequest { id, exec_id, stdin: true, ..Default::default() }).await)
            }
            Self::Checkpoint => {
                word(task.checkpoint(with, &CheckpointTaskRequest { id, path: bench.scratch.join("image"), ..Default::default() }).await)
            }
            Self::Kill0 | Self::Kill999 | Self::KillAll | Self::Kill9 => {
                let signal = match self {
                    Self::Kill0 => 0,
                    Self::Kill999 => 999,
                    _ => 9,
                };
                word(task.kill(with, &KillRequest { id, exec_id, signal, all: self == Self::KillAll, ..Default::default() }).await)
            }
            Self::Exec => {
                let exec_id = of.exec.clone().unwrap_or_else(|| "one-more".to_owned());
                let spec = MessageField::some(process(Streams::None));
                word(task.exec(with, &ExecProcessRequest { id, exec_id, spec, ..Default::default() }).await)
            }
            Self::Shutdown => word(task.shutdown(with, &ShutdownRequest { id, ..Default::default() }).await),
            Self::Create => word(task.create(with, &bench.request(&of.id, &of.id)).await),
            Self::Pause => word(task.pause(with, &PauseRequest { id, ..Default::default() }).await),
            Self::Resume => word(task.resume(with, &ResumeRequest { id, ..Default::default() }).await),
            Self::Start => word(task.start(with, &StartRequest { id, exec_id, ..Default::default() }).await),
            Self::Delete => word(task.delete(with, &DeleteRequest { id, exec_id, ..Default::default() }).await),
        }
    }
}

fn word<T>(answer: ttrpc::Result<T>) -> String {
    match answer {
        Ok(_) => "OK".to_owned(),
        Err(error) => code(&error),
    }
}

/// The name of an error's code. What is no answer is in the table with its whole text.
fn code(error: &ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => match status.code.enum_value() {
            Ok(code) => format!("{code:?}"),
            Err(number) => format!("code {number}"),
        },
        error => format!("no answer: {error}"),
    }
}
