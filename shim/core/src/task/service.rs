// SPDX-License-Identifier: Apache-2.0
//! The Task API (`containerd.task.v3`) over ttrpc. Requests are parsed here, and wire types stop
//! here.

use super::single::SingleSandbox;
use super::{CreateRequest, State, Tasks};
use crate::cgroup::stats::Metrics;
use crate::error::{Code, Error, Result};
use crate::ids::{ContainerId, ExecId, SandboxId};
use crate::mount::Mount;
use crate::process::Phase;
use crate::runtime::Checkpoint;
use crate::sandbox::Pod;
use crate::stdio::{Output, StdioSpec};
use crate::terminal::Size;
use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::types::task::Status;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug};
use ttrpc::asynchronous::{Server, TtrpcContext};

/// Serves the Task API of one pod.
#[derive(Debug)]
pub struct TaskService<T> {
    sandbox: SandboxId,
    tasks: T,
    /// The owner of work that continues after a request's caller has left.
    background: TaskTracker,
    single: Option<SingleSandbox>,
}

impl<T: Tasks> TaskService<T> {
    /// Serves the containers of a `sandbox` that already exists, as in a guest. `background` owns
    /// work that must not stop halfway.
    pub fn new(sandbox: SandboxId, tasks: T, background: TaskTracker) -> Self {
        Self { sandbox, tasks, background, single: None }
    }

    /// Serves the containers of `pod`. If a container comes before the pod was created, it gets the
    /// pod for itself.
    pub fn of_pod(sandbox: SandboxId, tasks: T, background: TaskTracker, pod: Pod) -> Self {
        let single = Some(SingleSandbox::new(pod, background.clone()));
        Self { sandbox, tasks, background, single }
    }

    /// Adds this service to a server.
    pub fn register(self, server: Server) -> Server {
        server.register_service(create_task(Arc::new(self)))
    }

    async fn state_of(&self, id: String, exec: String) -> Result<api::StateResponse> {
        let (id, exec) = names(id, exec)?;
        Ok(state(&id, exec.as_ref(), &self.tasks.state(&id, exec.as_ref())?))
    }
}

#[async_trait]
impl<T: Tasks> Task for TaskService<T> {
    async fn create(&self, _ctx: &TtrpcContext, req: api::CreateTaskRequest) -> ttrpc::Result<api::CreateTaskResponse> {
        debug!(container = req.id, bundle = req.bundle, "Create");
        let request = create_request(req).map_err(not_created)?;
        if let Some(single) = &self.single {
            single.before_create(&request).await.map_err(not_created)?;
        }
        let tasks = self.tasks.clone();
        let created = run_to_completion(&self.background, async move { tasks.create(request).await }).await;
        if let (Err(_), Some(single)) = (&created, &self.single) {
            single.after_failed_create(&self.tasks).await;
        }
        Ok(api::CreateTaskResponse { pid: created.map_err(not_created)?, ..Default::default() })
    }

    async fn start(&self, _ctx: &TtrpcContext, req: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        debug!(container = req.id, exec = req.exec_id, "Start");
        let (id, exec) = names(req.id, req.exec_id)?;
        if let (None, Some(single)) = (&exec, &self.single) {
            single.before_start(&self.tasks, &id).await?;
        }
        let pid = self.tasks.start(&id, exec.as_ref()).await?;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn state(&self, _ctx: &TtrpcContext, req: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        Ok(self.state_of(req.id, req.exec_id).await?)
    }

    async fn delete(&self, _ctx: &TtrpcContext, req: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        debug!(container = req.id, exec = req.exec_id, "Delete");
        let (id, exec) = names(req.id, req.exec_id)?;
        let tasks = self.tasks.clone();
        let (pid, exit) = run_to_completion(&self.background, async move { tasks.delete(&id, exec.as_ref()).await }).await?;
        Ok(api::DeleteResponse { pid, exit_status: exit.code, exited_at: MessageField::some(exit.at.into()), ..Default::default() })
    }

    async fn pids(&self, _ctx: &TtrpcContext, req: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        let id = ContainerId::parse(req.id)?;
        let pids = match self.tasks.pids(&id).await {
            // After a restart, containerd also asks for the sandbox, to see whether anything runs
            // in it. The sandbox of a container without a pod has the container's name.
            Err(error) if error.code() == Code::NotFound && id.as_str() == self.sandbox.as_str() => vec![std::process::id()],
            pids => pids?,
        };
        let processes = pids.into_iter().map(|pid| api::ProcessInfo { pid, ..Default::default() }).collect();
        Ok(api::PidsResponse { processes, ..Default::default() })
    }

    async fn pause(&self, _ctx: &TtrpcContext, req: api::PauseRequest) -> ttrpc::Result<api::Empty> {
        self.tasks.freeze(&ContainerId::parse(req.id)?, true).await?;
        Ok(api::Empty::new())
    }

    async fn resume(&self, _ctx: &TtrpcContext, req: api::ResumeRequest) -> ttrpc::Result<api::Empty> {
        self.tasks.freeze(&ContainerId::parse(req.id)?, false).await?;
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
        self.tasks.checkpoint(&id, Checkpoint { image: image.into(), exit: options.exit }).await?;
        Ok(api::Empty::new())
    }

    async fn kill(&self, _ctx: &TtrpcContext, req: api::KillRequest) -> ttrpc::Result<api::Empty> {
        debug!(container = req.id, exec = req.exec_id, signal = req.signal, all = req.all, "Kill");
        let (id, exec) = names(req.id, req.exec_id)?;
        self.tasks.kill(&id, exec.as_ref(), req.signal, req.all).await?;
        Ok(api::Empty::new())
    }

    async fn exec(&self, _ctx: &TtrpcContext, req: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        let id = ContainerId::parse(req.id)?;
        let exec = ExecId::parse(req.exec_id)?;
        let stdio = StdioSpec::parse(&req.stdin, &req.stdout, &req.stderr, req.terminal)?;
        let Some(process) = req.spec.into_option() else {
            return Err(Error::invalid(format!("exec {exec} of container {id} has no process")).into());
        };
        self.tasks.exec(&id, exec, process.value, stdio)?;
        Ok(api::Empty::new())
    }

    async fn resize_pty(&self, _ctx: &TtrpcContext, req: api::ResizePtyRequest) -> ttrpc::Result<api::Empty> {
        let (id, exec) = names(req.id, req.exec_id)?;
        let cells = |n: u32| u16::try_from(n).map_err(|_| Error::invalid(format!("a terminal of {n} columns or lines is too large")));
        let size = Size { columns: cells(req.width)?, lines: cells(req.height)? };
        self.tasks.resize(&id, exec.as_ref(), size).await?;
        Ok(api::Empty::new())
    }

    async fn close_io(&self, _ctx: &TtrpcContext, req: api::CloseIORequest) -> ttrpc::Result<api::Empty> {
        let (id, exec) = names(req.id, req.exec_id)?;
        if req.stdin {
            self.tasks.close_stdin(&id, exec.as_ref()).await?;
        }
        Ok(api::Empty::new())
    }

    async fn update(&self, _ctx: &TtrpcContext, req: api::UpdateTaskRequest) -> ttrpc::Result<api::Empty> {
        let id = ContainerId::parse(req.id)?;
        let Some(resources) = req.resources.into_option() else {
            return Err(Error::invalid(format!("the update of container {id} has no resources")).into());
        };
        self.tasks.update(&id, &resources.value).await?;
        Ok(api::Empty::new())
    }

    async fn wait(&self, _ctx: &TtrpcContext, req: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let (id, exec) = names(req.id, req.exec_id)?;
        let exit = self.tasks.wait(&id, exec.as_ref()).await?;
        Ok(api::WaitResponse { exit_status: exit.code, exited_at: MessageField::some(exit.at.into()), ..Default::default() })
    }

    async fn stats(&self, _ctx: &TtrpcContext, req: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let metrics = self.tasks.statistics(&ContainerId::parse(req.id)?).await?;
        Ok(api::StatsResponse { stats: MessageField::some(metrics_message(metrics)), ..Default::default() })
    }

    async fn connect(&self, _ctx: &TtrpcContext, req: api::ConnectRequest) -> ttrpc::Result<api::ConnectResponse> {
        // containerd also sends the sandbox's id, which has no task, to ask a shim for its pid.
        let state = ContainerId::parse(req.id).and_then(|id| self.tasks.state(&id, None));
        let task_pid = state.map(|state| state.phase.pid()).unwrap_or_default();
        Ok(api::ConnectResponse { shim_pid: std::process::id(), task_pid, version: env!("CARGO_PKG_VERSION").into(), ..Default::default() })
    }

    /// Ends a process without a pod. In a pod this does nothing, because the pod ends with its
    /// sandbox: ShutdownSandbox ends the process.
    async fn shutdown(&self, _ctx: &TtrpcContext, _req: api::ShutdownRequest) -> ttrpc::Result<api::Empty> {
        if let Some(single) = &self.single {
            single.shut_down(&self.tasks).await?;
        }
        Ok(api::Empty::new())
    }
}

/// Metrics as a message for the protocols.
pub fn metrics_message(metrics: Metrics) -> Any {
    Any { type_url: metrics.version.type_url().into(), value: metrics.encoded, ..Any::default() }
}

/// Runs work that must not stop halfway. ttrpc drops the handler of a request after the caller's
/// deadline, and containerd gives a Delete ten seconds.
async fn run_to_completion<T: Send + 'static>(tasks: &TaskTracker, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let done = tasks.spawn(work.in_current_span()).await;
    done.unwrap_or_else(|error| Err(Error::internal(format!("the request was not completed: {error}"))))
}

/// Changes an error into an answer to Create. containerd takes Unimplemented there as the answer of
/// an older shim: it repeats the request in an older protocol, and reports that failure instead of
/// ours.
fn not_created(error: Error) -> Error {
    match error.code() {
        Code::Unimplemented => Error::precondition(error.to_string()),
        _ => error,
    }
}

fn create_request(request: api::CreateTaskRequest) -> Result<CreateRequest> {
    Ok(CreateRequest {
        container: ContainerId::parse(request.id)?,
        bundle: PathBuf::from(request.bundle),
        rootfs: request.rootfs.iter().map(|m| Mount::parse(&m.type_, &m.source, &m.options)).collect::<Result<_>>()?,
        stdio: StdioSpec::parse(&request.stdin, &request.stdout, &request.stderr, request.terminal)?,
        checkpoint: (!request.checkpoint.is_empty()).then(|| PathBuf::from(request.checkpoint)),
    })
}

fn state(id: &ContainerId, exec: Option<&ExecId>, state: &State) -> api::StateResponse {
    let State { bundle, phase, stdio } = state;
    let text = |path: Option<&Path>| path.map(|p| p.display().to_string()).unwrap_or_default();
    api::StateResponse {
        id: id.to_string(),
        bundle: bundle.display().to_string(),
        pid: phase.pid(),
        status: status(*phase).into(),
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

/// Parses the names in a request. An empty exec means none.
fn names(id: String, exec: String) -> Result<(ContainerId, Option<ExecId>)> {
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
    async fn work_is_finished_after_its_caller_leaves() {
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
        assert!(tokio::time::timeout(Duration::from_millis(1), run_to_completion(&tasks, work)).await.is_err());
        go_on.send(()).unwrap();
        tasks.close();
        tasks.wait().await;
        assert!(done.load(Ordering::Relaxed));
    }

    #[test]
    fn create_never_answers_unimplemented() {
        let error = not_created(Error::unimplemented("no such option"));
        assert_eq!((error.code(), error.to_string().as_str()), (Code::FailedPrecondition, "no such option"));
        assert_eq!(not_created(Error::not_found("gone")).code(), Code::NotFound);
    }
}
