// SPDX-License-Identifier: Apache-2.0
//! The Task API (`containerd.task.v3`) over ttrpc: requests are parsed here, and wire types stop here.
//!
//! Semantics are those of containerd's `api/runtime/task/v3/shim.proto` and of its own runc shim.

mod container;
mod containers;
pub mod gate;
pub mod registry;
pub mod report;
mod single;
mod spec;

pub use container::{Container, Process};
pub use containers::{Containers, CreateRequest, subject};
pub use single::{SingleTasks, Tasks};
pub use spec::read_bundle;

use crate::cgroup::stats;
use crate::error::{Code, Error, Result};
use crate::ids::{ContainerId, ExecId, SandboxId};
use crate::process::Phase;
use crate::runtime::{Checkpoint, Runtime};
use crate::stdio::{Output, StdioSpec};
use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::types::task::Status;
use std::path::Path;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug};
use ttrpc::asynchronous::TtrpcContext;

/// Serves the Task API for one pod.
#[derive(Debug)]
pub struct TaskService<R> {
    sandbox: SandboxId,
    containers: Containers<R>,
}

impl<R: Runtime> TaskService<R> {
    /// Serves the `containers` of `sandbox`.
    pub fn new(sandbox: SandboxId, containers: Containers<R>) -> Self {
        Self { sandbox, containers }
    }
}

#[async_trait]
impl<R: Runtime> Task for TaskService<R> {
    async fn create(&self, _ctx: &TtrpcContext, req: api::CreateTaskRequest) -> ttrpc::Result<api::CreateTaskResponse> {
        debug!(container = req.id, bundle = req.bundle, "Create");
        let request = CreateRequest::parse(req).map_err(not_created)?;
        let containers = self.containers.clone();
        let pid = to_its_end(self.containers.tasks(), async move { containers.create(request).await }).await.map_err(not_created)?;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _ctx: &TtrpcContext, req: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        debug!(container = req.id, exec = req.exec_id, "Start");
        let (id, exec) = names(req.id, req.exec_id)?;
        let pid = self.containers.start(&id, exec.as_ref()).await?;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn state(&self, _ctx: &TtrpcContext, req: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let (id, exec) = names(req.id, req.exec_id)?;
        let container = self.containers.get(&id)?;
        let process = container.process(exec.as_ref())?;
        let phase = process.life.phase().within(container.init.life.phase());
        Ok(state(&id, exec.as_ref(), &container.bundle, phase, &process.stdio))
    }

    async fn delete(&self, _ctx: &TtrpcContext, req: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        debug!(container = req.id, exec = req.exec_id, "Delete");
        let (id, exec) = names(req.id, req.exec_id)?;
        let containers = self.containers.clone();
        let (pid, exit) = to_its_end(self.containers.tasks(), async move { containers.delete(&id, exec.as_ref()).await }).await?;
        Ok(api::DeleteResponse { pid, exit_status: exit.code, exited_at: MessageField::some(exit.at.into()), ..Default::default() })
    }

    async fn pids(&self, _ctx: &TtrpcContext, req: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        // containerd asks about the sandbox itself too, when it starts anew, to see whether anything runs in it.
        let container = self.containers.get(&ContainerId::parse(req.id.clone())?);
        let pids = if req.id == self.sandbox.as_str() && container.is_err() {
            vec![std::process::id()]
        } else {
            // One without a pod has the name of its sandbox.
            let container = container?;
            let phase = container.init.life.phase();
            match container.cgroup()?.pids(true)? {
                // containerd, started anew, takes a task without processes for one that was never made, and removes it
                // (`core/runtime/v2/shim_load.go`): how it ended would be lost.
                pids if pids.is_empty() && phase.exit().is_some() => vec![phase.pid()],
                pids => pids,
            }
        };
        let processes = pids.into_iter().map(|pid| api::ProcessInfo { pid, ..Default::default() }).collect();
        Ok(api::PidsResponse { processes, ..Default::default() })
    }

    async fn pause(&self, _ctx: &TtrpcContext, req: api::PauseRequest) -> ttrpc::Result<api::Empty> {
        self.containers.freeze(&ContainerId::parse(req.id)?, true).await?;
        Ok(api::Empty::new())
    }

    async fn resume(&self, _ctx: &TtrpcContext, req: api::ResumeRequest) -> ttrpc::Result<api::Empty> {
        self.containers.freeze(&ContainerId::parse(req.id)?, false).await?;
        Ok(api::Empty::new())
    }

    async fn checkpoint(&self, _ctx: &TtrpcContext, req: api::CheckpointTaskRequest) -> ttrpc::Result<api::Empty> {
        let id = ContainerId::parse(req.id)?;
        let options = match req.options.as_ref() {
            Some(any) => CheckpointOptions::parse_from_bytes(&any.value)
                .map_err(|e| Error::invalid(format!("the options of the checkpoint of container {id} do not parse: {e}")))?,
            None => CheckpointOptions::new(),
        };
        let image = if options.image_path.is_empty() { req.path } else { options.image_path };
        self.containers.checkpoint(&id, Checkpoint { image: image.into(), exit: options.exit }).await?;
        Ok(api::Empty::new())
    }

    async fn kill(&self, _ctx: &TtrpcContext, req: api::KillRequest) -> ttrpc::Result<api::Empty> {
        debug!(container = req.id, exec = req.exec_id, signal = req.signal, all = req.all, "Kill");
        let (id, exec) = names(req.id, req.exec_id)?;
        self.containers.kill(&id, exec.as_ref(), req.signal, req.all)?;
        Ok(api::Empty::new())
    }

    async fn exec(&self, _ctx: &TtrpcContext, req: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        let id = ContainerId::parse(req.id)?;
        let exec = ExecId::parse(req.exec_id)?;
        let stdio = StdioSpec::parse(&req.stdin, &req.stdout, &req.stderr, req.terminal)?;
        let Some(process) = req.spec.into_option() else {
            return Err(Error::invalid(format!("exec {exec} of container {id} has no process")).into());
        };
        self.containers.exec(&id, exec, process.value, stdio)?;
        Ok(api::Empty::new())
    }

    async fn resize_pty(&self, _ctx: &TtrpcContext, req: api::ResizePtyRequest) -> ttrpc::Result<api::Empty> {
        let (id, exec) = names(req.id, req.exec_id)?;
        let cells = |n: u32| u16::try_from(n).map_err(|_| Error::invalid(format!("a terminal of {n} columns or lines is too large")));
        let (width, height) = (cells(req.width)?, cells(req.height)?);
        let process = self.containers.get(&id)?.process(exec.as_ref())?;
        match process.terminal() {
            Some(terminal) => terminal.resize(width, height)?,
            None => no_terminal(&id, exec.as_ref(), process.life.phase())?,
        }
        Ok(api::Empty::new())
    }

    async fn close_io(&self, _ctx: &TtrpcContext, req: api::CloseIORequest) -> ttrpc::Result<api::Empty> {
        let (id, exec) = names(req.id, req.exec_id)?;
        if req.stdin {
            self.containers.get(&id)?.process(exec.as_ref())?.close_stdin();
        }
        Ok(api::Empty::new())
    }

    async fn update(&self, _ctx: &TtrpcContext, req: api::UpdateTaskRequest) -> ttrpc::Result<api::Empty> {
        let id = ContainerId::parse(req.id)?;
        let Some(resources) = req.resources.into_option() else {
            return Err(Error::invalid(format!("the update of container {id} has no resources")).into());
        };
        self.containers.update(&id, &resources.value).await?;
        Ok(api::Empty::new())
    }

    async fn wait(&self, _ctx: &TtrpcContext, req: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let (id, exec) = names(req.id, req.exec_id)?;
        let process = self.containers.get(&id)?.process(exec.as_ref())?;
        let exit = process.life.exit().await;
        Ok(api::WaitResponse { exit_status: exit.code, exited_at: MessageField::some(exit.at.into()), ..Default::default() })
    }

    async fn stats(&self, _ctx: &TtrpcContext, req: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let container = self.containers.get(&ContainerId::parse(req.id)?)?;
        let metrics = stats::metrics(container.cgroup()?)?;
        Ok(api::StatsResponse { stats: MessageField::some(metrics), ..Default::default() })
    }

    async fn connect(&self, _ctx: &TtrpcContext, req: api::ConnectRequest) -> ttrpc::Result<api::ConnectResponse> {
        // containerd asks a shim for its pid with the sandbox's id too, which has no task.
        let task_pid =
            ContainerId::parse(req.id).and_then(|id| self.containers.get(&id)).map(|c| c.init.life.phase().pid()).unwrap_or_default();
        Ok(api::ConnectResponse { shim_pid: std::process::id(), task_pid, version: env!("CARGO_PKG_VERSION").into(), ..Default::default() })
    }

    /// A pod ends with its sandbox, not with a task: ShutdownSandbox ends the process.
    async fn shutdown(&self, _ctx: &TtrpcContext, _req: api::ShutdownRequest) -> ttrpc::Result<api::Empty> {
        Ok(api::Empty::new())
    }
}

impl<R: Runtime> Tasks for TaskService<R> {
    fn has_containers(&self) -> bool {
        self.containers.any()
    }

    /// Streams are the process's own: nothing is passed on.
    async fn ended(&self, container: &ContainerId) {
        if let Ok(container) = self.containers.get(container) {
            container.init.life.exit().await;
        }
    }
}

/// Does what must not end between two of its steps: ttrpc drops what serves a request when the caller's deadline has passed, and
/// containerd gives a Delete ten seconds.
///
/// # Errors
/// Those of `work`.
pub async fn to_its_end<T: Send + 'static>(tasks: &TaskTracker, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let done = tasks.spawn(work.in_current_span()).await;
    done.unwrap_or_else(|error| Err(Error::internal(format!("the request was not carried out: {error}"))))
}

/// An error as the answer to Create. containerd takes Unimplemented there for the word of an older shim, asks once more in an older
/// protocol, and tells of that failure instead of ours.
pub fn not_created(error: Error) -> Error {
    match error.code() {
        Code::Unimplemented => Error::precondition(error.to_string()),
        _ => error,
    }
}

/// The answer to State.
pub fn state(id: &ContainerId, exec: Option<&ExecId>, bundle: &Path, phase: Phase, stdio: &StdioSpec) -> api::StateResponse {
    let text = |path: Option<&Path>| path.map(|p| p.display().to_string()).unwrap_or_default();
    api::StateResponse {
        id: id.to_string(),
        bundle: bundle.display().to_string(),
        pid: phase.pid(),
        status: status(phase).into(),
        stdin: text(stdio.stdin.as_deref()),
        stdout: text(stdio.stdout.as_ref().map(Output::path)),
        stderr: text(stdio.stderr.as_ref().map(Output::path)),
        terminal: stdio.terminal,
        exit_status: phase.exit().map(|exit| exit.code).unwrap_or_default(),
        exited_at: phase.exit().map(|exit| exit.at.into()).into(),
        exec_id: exec.map(|exec| exec.to_string()).unwrap_or_default(),
        ..Default::default()
    }
}

/// The answer to ResizePty of a process that has no terminal (yet): there is nothing to resize.
///
/// # Errors
/// `FailedPrecondition` for an exec that has ended.
pub fn no_terminal(id: &ContainerId, exec: Option<&ExecId>, phase: Phase) -> Result<()> {
    match exec {
        Some(_) if phase.exit().is_some() => Err(Error::precondition(format!("cannot resize {}: it has ended", subject(id, exec)))),
        Some(_) | None => Ok(()),
    }
}

/// The names in a request; an empty one is no exec.
///
/// # Errors
/// `InvalidArgument` for what is no name.
pub fn names(id: String, exec: String) -> Result<(ContainerId, Option<ExecId>)> {
    let exec = if exec.is_empty() { None } else { Some(ExecId::parse(exec)?) };
    Ok((ContainerId::parse(id)?, exec))
}

fn status(phase: Phase) -> Status {
    match phase {
        Phase::Creating => Status::UNKNOWN,
        Phase::Created { .. } | Phase::Starting { .. } => Status::CREATED,
        Phase::Running { .. } => Status::RUNNING,
        Phase::Paused { .. } => Status::PAUSED,
        Phase::Stopped { .. } | Phase::Deleted { .. } => Status::STOPPED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_done_all_the_same() {
        let (tasks, done) = (TaskTracker::new(), Arc::new(AtomicBool::new(false)));
        let (go_on, told) = oneshot::channel::<()>();
        let work = {
            let done = done.clone();
            async move {
                let _told = told.await;
                done.store(true, Ordering::Relaxed);
                Ok(())
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(1), to_its_end(&tasks, work)).await.is_err());
        go_on.send(()).unwrap();
        tasks.close();
        tasks.wait().await;
        assert!(done.load(Ordering::Relaxed));
    }

    #[test]
    fn what_cannot_be_created_is_not_taken_for_an_older_shim() {
        let error = not_created(Error::unimplemented("no such option"));
        assert_eq!((error.code(), error.to_string().as_str()), (Code::FailedPrecondition, "no such option"));
        assert_eq!(not_created(Error::not_found("gone")).code(), Code::NotFound);
    }
}
