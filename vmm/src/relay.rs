// SPDX-License-Identifier: Apache-2.0
//! The Task API of a pod that is a virtual machine: what containerd asks is asked of the agent, whose containers they are.
//!
//! The host's part is files, streams and book-keeping. State and Wait are answered from the book; the rest ends with the
//! guest's answer or with the machine.

mod container;
mod containers;
mod disks;
mod making;
mod memory;

use crate::disks::Disks;
use crate::guest::{self, Guest, answers};
use crate::share::Share;
use async_trait::async_trait;
use container::{Container, Process};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::Task;
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::events::Events;
use magnetar_core::idle::Idle;
use magnetar_core::ids::{ContainerId, ExecId, SandboxId};
use magnetar_core::process::Phase;
use magnetar_core::reaper::Reaper;
use magnetar_core::record::PodDir;
use magnetar_core::sandbox_files::SandboxFiles;
use magnetar_core::server::Parts;
use magnetar_core::stdio::StdioSpec;
use magnetar_core::task::gate::{Gate, MADE};
use magnetar_core::task::registry::Registry;
use magnetar_core::task::{CreateRequest, Tasks, names, no_terminal, not_created, state, to_its_end};
use making::ASKED;
use memory::Volumes;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use ttrpc::asynchronous::TtrpcContext;
use ttrpc::context::Context;

/// Between the moment when a connection to the guest breaks and the one when the machine is known to have ended: a machine
/// that is switched off takes some seconds.
const ENDED: Duration = Duration::from_secs(10);

/// How long the last output of a container without a pod may take to be read, before its machine is switched off.
const OUTPUTS: Duration = Duration::from_secs(10);

/// The Task API of one pod. Cheap to clone.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

struct Shared {
    sandbox: SandboxId,
    pod: PodDir,
    reaper: Reaper,
    events: Events,
    idle: Idle,
    tasks: TaskTracker,
    /// The pod's /dev/shm, as the specifications of containers have it.
    shm: PathBuf,
    files: OnceLock<SandboxFiles>,
    running: OnceLock<Running>,
    /// Set where the one container has no pod: its machine is started with it, and not before.
    is_single: OnceLock<()>,
    memory: Volumes,
    /// What passes on outputs that the guest may still write.
    outputs: TaskTracker,
    gate: Gate,
    containers: Registry<ContainerId, Container>,
}

/// A machine that runs.
pub struct Running {
    /// Its agent.
    pub guest: Guest,
    /// What it sees of the host's files.
    pub share: Share,
    /// Its disks, if the hypervisor can attach any.
    pub disks: Option<Disks>,
    /// The process that it is on the host.
    pub pid: u32,
    /// Why it has ended, once it has.
    pub death: watch::Receiver<Option<Arc<str>>>,
    /// Ends it, for a reason.
    pub condemn: mpsc::Sender<String>,
}

impl Running {
    /// Why it has ended, once it has.
    pub fn death(&self) -> Option<Arc<str>> {
        self.death.borrow().clone()
    }

    /// Waits for the machine's end. Cancel-safe.
    async fn ended(&self) -> Error {
        let mut death = self.death.clone();
        let reason = death.wait_for(Option::is_some).await;
        let reason = reason.ok().as_deref().and_then(Option::as_deref).unwrap_or("it was stopped").to_string();
        Error::new(Code::Unavailable, format!("the pod's virtual machine has ended: {reason}"))
    }

    /// Why a connection to the guest has broken: the machine's end, which is known a moment later, or just `error`.
    async fn broken(&self, error: Error) -> Error {
        tokio::time::timeout(ENDED, self.ended()).await.unwrap_or(error)
    }

    /// What a call to the guest brings that needs no waiting there.
    async fn answered<T>(&self, call: impl Future<Output = ttrpc::Result<T>>) -> Result<T> {
        tokio::time::timeout(ASKED, self.call(call)).await.unwrap_or_else(|_| Err(guest::late(ASKED)))
    }

    /// What a call to the guest brings, or the machine's end.
    async fn call<T>(&self, call: impl Future<Output = ttrpc::Result<T>>) -> Result<T> {
        let outcome = tokio::select! {
            biased;
            outcome = call => outcome,
            ended = self.ended() => return Err(ended),
        };
        match outcome {
            Ok(value) => Ok(value),
            Err(error @ ttrpc::Error::RpcStatus(_)) => Err(answers::error(&error.into())),
            Err(error) => {
                let error = self.broken(error.into()).await;
                if self.death().is_none() {
                    // Nothing can be asked of it any more. It fails where another reason was sooner.
                    let _sooner = self.condemn.try_send(format!("the connection to the agent in the guest is broken: {error}"));
                }
                Err(error)
            }
        }
    }
}

impl Relay {
    /// The Task API of `sandbox`, whose machine does not run yet. `shm` is what its containers mount as /dev/shm.
    pub fn new(sandbox: SandboxId, pod: PodDir, shm: PathBuf, parts: &Parts) -> Self {
        let Parts { reaper, events, idle, tasks } = parts.clone();
        let (files, running, memory, containers) =
            (OnceLock::new(), OnceLock::new(), Volumes::default(), Registry::new("container", "this pod"));
        let (gate, is_single, outputs) = (Gate::new(), OnceLock::new(), TaskTracker::new());
        Self(Arc::new(Shared {
            sandbox,
            pod,
            reaper,
            events,
            idle,
            tasks,
            shm,
            files,
            running,
            is_single,
            memory,
            outputs,
            gate,
            containers,
        }))
    }

    /// Sees to it that every container finds these files.
    pub fn keep_published(&self, files: SandboxFiles) {
        let _the_first_counts = self.0.files.set(files);
    }

    /// The one container has no pod. It can be created before the machine runs, and is made when it is started.
    pub fn is_for_a_single_container(&self) {
        let _the_first_counts = self.0.is_single.set(());
    }

    fn is_single(&self) -> bool {
        self.0.is_single.get().is_some()
    }

    /// The machine runs.
    pub fn runs(&self, running: Running) {
        let _the_first_counts = self.0.running.set(running);
    }

    /// Lets no more containers be made, and waits for those that are being made.
    pub async fn close(&self) {
        if !self.0.gate.close(MADE).await {
            warn!("a container is still being made in a pod that is being stopped");
        }
    }

    fn running(&self) -> Result<&Running> {
        self.0.running.get().ok_or_else(|| Error::precondition("the sandbox has not been started"))
    }

    fn get(&self, id: &ContainerId) -> Result<Arc<Container>> {
        self.0.containers.get(id)
    }
}

impl Tasks for Relay {
    fn has_containers(&self) -> bool {
        !self.0.containers.is_empty()
    }

    async fn ended(&self, container: &ContainerId) {
        if let Ok(container) = self.get(container) {
            container.init.life.exit().await;
            self.0.outputs.close();
            // Whoever reads them may have stopped reading.
            if tokio::time::timeout(OUTPUTS, self.0.outputs.wait()).await.is_err() {
                warn!(container = %container.id, "its last output was not read within {OUTPUTS:?}, and is lost");
            }
        }
    }
}

#[async_trait]
impl Task for Relay {
    async fn create(&self, _ctx: &TtrpcContext, req: api::CreateTaskRequest) -> ttrpc::Result<api::CreateTaskResponse> {
        debug!(container = req.id, bundle = req.bundle, "Create");
        let request = CreateRequest::parse(req).map_err(not_created)?;
        let relay = self.clone();
        let pid = to_its_end(&self.0.tasks, async move { relay.create(request).await }).await.map_err(not_created)?;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _ctx: &TtrpcContext, req: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        debug!(container = req.id, exec = req.exec_id, "Start");
        let (id, exec) = names(req.id, req.exec_id)?;
        let pid = Relay::start(self, &id, exec.as_ref()).await?;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn state(&self, _ctx: &TtrpcContext, req: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let (id, exec) = names(req.id, req.exec_id)?;
        let container = self.get(&id)?;
        let process = container.process(exec.as_ref())?;
        let phase = process.life.phase().within(container.init.life.phase());
        Ok(state(&id, exec.as_ref(), &container.bundle, phase, &process.stdio))
    }

    async fn delete(&self, _ctx: &TtrpcContext, req: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        debug!(container = req.id, exec = req.exec_id, "Delete");
        let (id, exec) = names(req.id, req.exec_id)?;
        let relay = self.clone();
        let (pid, exit) = to_its_end(&self.0.tasks, async move { relay.delete(&id, exec.as_ref()).await }).await?;
        Ok(api::DeleteResponse { pid, exit_status: exit.code, exited_at: MessageField::some(exit.at.into()), ..Default::default() })
    }

    /// One process stands for all of a machine's: the host knows no others.
    async fn pids(&self, _ctx: &TtrpcContext, req: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        let pid = if req.id == self.0.sandbox.as_str() {
            std::process::id()
        } else {
            self.get(&ContainerId::parse(req.id)?)?.init.life.phase().pid()
        };
        Ok(api::PidsResponse { processes: vec![api::ProcessInfo { pid, ..Default::default() }], ..Default::default() })
    }

    async fn pause(&self, _ctx: &TtrpcContext, req: api::PauseRequest) -> ttrpc::Result<api::Empty> {
        self.freeze(&ContainerId::parse(req.id)?, true).await?;
        Ok(api::Empty::new())
    }

    async fn resume(&self, _ctx: &TtrpcContext, req: api::ResumeRequest) -> ttrpc::Result<api::Empty> {
        self.freeze(&ContainerId::parse(req.id)?, false).await?;
        Ok(api::Empty::new())
    }

    async fn checkpoint(&self, _ctx: &TtrpcContext, req: api::CheckpointTaskRequest) -> ttrpc::Result<api::Empty> {
        self.get(&ContainerId::parse(req.id)?)?;
        Err(containers::no_checkpoints().into())
    }

    async fn kill(&self, _ctx: &TtrpcContext, req: api::KillRequest) -> ttrpc::Result<api::Empty> {
        debug!(container = req.id, exec = req.exec_id, signal = req.signal, all = req.all, "Kill");
        let (id, exec) = names(req.id, req.exec_id)?;
        Relay::kill(self, &id, exec.as_ref(), req.signal, req.all).await?;
        Ok(api::Empty::new())
    }

    async fn exec(&self, _ctx: &TtrpcContext, req: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        let id = ContainerId::parse(req.id)?;
        let exec = ExecId::parse(req.exec_id)?;
        let stdio = StdioSpec::parse(&req.stdin, &req.stdout, &req.stderr, req.terminal)?;
        let Some(process) = req.spec.into_option() else {
            return Err(Error::invalid(format!("exec {exec} of container {id} has no process")).into());
        };
        Relay::exec(self, &id, exec, Process::new(stdio, process.value, Phase::Created { pid: 0 }))?;
        Ok(api::Empty::new())
    }

    async fn resize_pty(&self, _ctx: &TtrpcContext, req: api::ResizePtyRequest) -> ttrpc::Result<api::Empty> {
        let (id, exec) = names(req.id.clone(), req.exec_id.clone())?;
        let process = self.get(&id)?.process(exec.as_ref())?;
        let phase = process.life.phase();
        // The guest does not know an exec that was not started.
        if !process.stdio.terminal || phase.living_pid().is_none() {
            no_terminal(&id, exec.as_ref(), phase)?;
            return Ok(api::Empty::new());
        }
        let running = self.running()?;
        Ok(running.answered(running.guest.tasks().resize_pty(Context::default(), &req)).await?)
    }

    async fn close_io(&self, _ctx: &TtrpcContext, req: api::CloseIORequest) -> ttrpc::Result<api::Empty> {
        let (id, exec) = names(req.id.clone(), req.exec_id.clone())?;
        let process = self.get(&id)?.process(exec.as_ref())?;
        // The guest does not know an exec that was not started, and has closed the input of what has ended.
        if !req.stdin || process.life.phase().living_pid().is_none() {
            return Ok(api::Empty::new());
        }
        process.close_input();
        let running = self.running()?;
        Ok(running.answered(running.guest.tasks().close_io(Context::default(), &req)).await?)
    }

    async fn update(&self, _ctx: &TtrpcContext, req: api::UpdateTaskRequest) -> ttrpc::Result<api::Empty> {
        let id = ContainerId::parse(req.id)?;
        let Some(resources) = req.resources.into_option() else {
            return Err(Error::invalid(format!("the update of container {id} has no resources")).into());
        };
        Relay::update(self, &id, &resources.value).await?;
        Ok(api::Empty::new())
    }

    async fn wait(&self, _ctx: &TtrpcContext, req: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let (id, exec) = names(req.id, req.exec_id)?;
        let process = self.get(&id)?.process(exec.as_ref())?;
        let exit = process.life.exit().await;
        Ok(api::WaitResponse { exit_status: exit.code, exited_at: MessageField::some(exit.at.into()), ..Default::default() })
    }

    async fn stats(&self, _ctx: &TtrpcContext, req: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        self.get(&ContainerId::parse(req.id.clone())?)?;
        let running = self.running()?;
        let response = running.answered(running.guest.tasks().stats(Context::default(), &req)).await?;
        Ok(answers::statistics(&req.id, response)?)
    }

    async fn connect(&self, _ctx: &TtrpcContext, req: api::ConnectRequest) -> ttrpc::Result<api::ConnectResponse> {
        // containerd asks a shim for its pid with the sandbox's id too, which has no task.
        let task_pid = ContainerId::parse(req.id).and_then(|id| self.get(&id)).map(|c| c.init.life.phase().pid()).unwrap_or_default();
        Ok(api::ConnectResponse { shim_pid: std::process::id(), task_pid, version: env!("CARGO_PKG_VERSION").into(), ..Default::default() })
    }

    /// A pod ends with its sandbox, not with a task: ShutdownSandbox ends the process.
    async fn shutdown(&self, _ctx: &TtrpcContext, _req: api::ShutdownRequest) -> ttrpc::Result<api::Empty> {
        Ok(api::Empty::new())
    }
}
