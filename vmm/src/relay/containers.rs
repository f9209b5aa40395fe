// SPDX-License-Identifier: Apache-2.0
//! The containers of a pod: what the host does for each, and what it has the guest do.
//!
//! ```text
//! Create   record ─> share shows its files ─> disks attached ─> bundle and streams in the guest ─> Create there
//! Delete   Delete there ─> streams and bundle forgotten ─> disks detached ─> share hides its files ─> record
//! ```

use super::container::{Container, Process};
use super::memory::Volumes;
use super::{ENDED, Relay, Running};
use crate::guest;
use crate::streams::Streams;
use crate::translate::{self, Translated};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::ids::{ContainerId, ExecId};
use magnetar_core::process::{Change, Phase};
use magnetar_core::reaper::Exit;
use magnetar_core::record::ContainerRecord;
use magnetar_core::sandbox_files::SandboxFiles;
use magnetar_core::task::{CreateRequest, read_bundle, report, subject};
use magnetar_vm_agent_api::{self as agent, Bundle, Request};
use serde_json::Value;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tracing::{Instrument, info, warn};
use ttrpc::context::Context;

/// How long the agent may take for what needs no waiting.
const ASKED: Duration = Duration::from_secs(30);

/// How long a killed container may take to end, in software emulation on a busy host: its kernel may have to write to a slow disk.
const KILLED: Duration = Duration::from_secs(60);

/// What makes and removes containers of virtual machines, for their records: no program does.
const PROGRAM: &str = "vm-agent";

impl Relay {
    /// Makes a container, which then waits for its start. Returns the process id that stands for it.
    ///
    /// # Errors
    /// `AlreadyExists` for a name in use, `Unimplemented` for what a virtual machine cannot do, and what the guest says; then
    /// nothing of it is left.
    pub async fn create(&self, request: CreateRequest) -> Result<u32> {
        let running = self.running()?;
        let _being_made = self.0.gate.enter()?;
        let id = request.container.clone();
        // The guest's own errors say so already.
        let subject = format!("cannot create container {id}: ");
        let named = |error: Error| match error.to_string() {
            said if said.starts_with(&subject) => Error::new(error.code(), said),
            said => Error::new(error.code(), subject.clone() + &said),
        };
        if request.checkpoint.is_some() {
            return Err(named(no_checkpoints()));
        }
        let container = Arc::new(Container::new(id.clone(), request.bundle.clone(), request.stdio.clone()));
        self.0.containers.add(container.id.clone(), container.clone())?;
        match self.make(running, &container, &request).await {
            Ok(pid) => {
                info!(container = %id, "created");
                report::created(&self.0.events, &id, &container.bundle, &container.init.stdio, pid, None);
                Ok(pid)
            }
            Err(error) => {
                if let Err(left) = self.unmake(running, &container).await {
                    warn!(container = %id, error = %left, "cannot remove all of a container that could not be made");
                }
                Err(named(error))
            }
        }
    }

    async fn make(&self, running: &Running, container: &Container, request: &CreateRequest) -> Result<u32> {
        let id = &container.id;
        let (bundle, none) = (container.bundle.clone(), None);
        self.0.pod.write_container(&ContainerRecord::new(id.clone(), bundle, none, None, PathBuf::from(PROGRAM)))?;
        self.0.files.get().map_or(Ok(()), SandboxFiles::publish)?;
        let no_spec = |e: &dyn Display| Error::invalid(format!("{}/config.json is no OCI specification: {e}", container.bundle.display()));
        let spec: Value = serde_json::from_slice(&read_bundle(&container.bundle)?).map_err(|e| no_spec(&e))?;
        let memory = self.0.memory.used_by(&spec);
        let context =
            translate::Context { sandbox_pid: std::process::id(), shm: &self.0.shm, memory: &|source| Volumes::number(&memory, source) };
        let Translated { spec, volumes, disks, huge_pages, shared_pid } = translate::translate(spec, id, &context)
            .map_err(|error| if error.code() == Code::InvalidArgument { no_spec(&error) } else { error })?;
        running.share.show(id, &container.bundle.join("rootfs"), &request.rootfs, &volumes)?;
        let memory = memory.into_iter().map(|(_, memory)| memory).collect();
        let _the_first_counts = container.huge_pages.set(huge_pages);
        let all = self.0.containers.all();
        let huge_pages = all.iter().filter_map(|(_, other)| other.huge_pages.get()).fold(0, |sum: u32, pages| sum.saturating_add(*pages));
        let disks = running.attach(id, disks).await?;
        let submounts = running.share.submounts(id)?;
        let bundle = Bundle { container: id.to_string(), spec: spec.to_string(), memory, huge_pages, disks, submounts, shared_pid };
        let patience = ASKED + agent::DISK_FOUND * u32::try_from(bundle.disks.len()).unwrap_or(u32::MAX);
        running.guest.ask(Request::Bundle(bundle), patience).await?;
        let (streams, paths) = Streams::open(&running.guest, id, None, &request.stdio, &self.0.tasks).await?;
        container.init.attach(streams);
        let asked = api::CreateTaskRequest {
            id: id.to_string(),
            bundle: format!("{}/{id}", agent::BUNDLES),
            terminal: request.stdio.terminal,
            stdin: paths.stdin,
            stdout: paths.stdout,
            stderr: paths.stderr,
            ..Default::default()
        };
        running.call(running.guest.tasks().create(Context::default(), &asked)).await?;
        container.init.life.change(Change::Made { pid: running.pid })?;
        Ok(running.pid)
    }

    /// Lets a container's program run, or runs an exec.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` in the wrong phase, or what the guest says.
    pub async fn start(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<u32> {
        let running = self.running()?;
        let container = self.get(id)?;
        let process = container.process(exec)?;
        process.life.change(Change::Start).map_err(|e| Error::new(e.code(), format!("cannot start {}: {e}", subject(id, exec))))?;
        let started = match exec {
            None => {
                let asked = api::StartRequest { id: id.to_string(), ..Default::default() };
                running.call(running.guest.tasks().start(Context::default(), &asked)).await.map(drop)
            }
            Some(exec) => self.run_exec(running, id, exec, &process).await,
        };
        match started {
            Ok(()) => {
                let pid = running.pid;
                process.life.change(Change::Started { pid })?;
                self.0.idle.soon();
                report::started(&self.0.events, id, exec, pid);
                Ok(pid)
            }
            Err(error) => {
                process.life.change(Change::StartFailed)?;
                process.detach();
                Err(error)
            }
        }
    }

    async fn run_exec(&self, running: &Running, id: &ContainerId, exec: &ExecId, process: &Process) -> Result<()> {
        let outcome = async {
            let (streams, paths) = Streams::open(&running.guest, id, Some(exec), &process.stdio, &self.0.tasks).await?;
            process.attach(streams);
            let asked = api::ExecProcessRequest {
                id: id.to_string(),
                exec_id: exec.to_string(),
                terminal: process.stdio.terminal,
                stdin: paths.stdin,
                stdout: paths.stdout,
                stderr: paths.stderr,
                // The agent reads the value only.
                spec: MessageField::some(Any { value: process.process.clone(), ..Default::default() }),
                ..Default::default()
            };
            running.call(running.guest.tasks().exec(Context::default(), &asked)).await?;
            let asked = api::StartRequest { id: id.to_string(), exec_id: exec.to_string(), ..Default::default() };
            running.call(running.guest.tasks().start(Context::default(), &asked)).await.map(drop)
        };
        let outcome: Result<()> = outcome.await;
        if outcome.is_err() {
            self.forget(running, id, Some(exec)).await;
        }
        outcome
    }

    /// Announces an exec.
    ///
    /// # Errors
    /// `FailedPrecondition` where the container does not run, `AlreadyExists`, `NotFound`.
    pub fn exec(&self, id: &ContainerId, exec: ExecId, process: Process) -> Result<()> {
        let container = self.get(id)?;
        container.execs.add(exec.clone(), Arc::new(process))?;
        match container.init.life.phase() {
            Phase::Created { .. } | Phase::Starting { .. } | Phase::Running { .. } => {}
            phase @ (Phase::Creating | Phase::Paused { .. } | Phase::Stopped { .. } | Phase::Deleted { .. }) => {
                container.execs.remove(&exec);
                return Err(Error::precondition(format!("cannot exec in container {id}: it is {}", phase.name())));
            }
        }
        report::exec_added(&self.0.events, id, &exec);
        Ok(())
    }

    /// Sends a signal to one process, or to all of the container's, be they none.
    ///
    /// # Errors
    /// `NotFound` where the process has ended, which callers take for success; `FailedPrecondition` before an exec's start.
    pub async fn kill(&self, id: &ContainerId, exec: Option<&ExecId>, signal: u32, all: bool) -> Result<()> {
        let process = self.get(id)?.process(exec)?;
        let phase = process.life.phase();
        let ended = || Error::not_found(format!("{} has ended", subject(id, exec)));
        if phase.exit().is_some() {
            return if all && exec.is_none() { Ok(()) } else { Err(ended()) };
        }
        if phase.living_pid().is_none() {
            return Err(Error::precondition(format!("{} has not been started", subject(id, exec))));
        }
        let running = self.running()?;
        if exec.is_none() && signal == libc::SIGKILL as u32 {
            self.0.tasks.spawn(self.clone().see_killed(id.clone(), process.clone()).in_current_span());
        }
        let exec_id = exec.map(ExecId::to_string).unwrap_or_default();
        let asked = api::KillRequest { id: id.to_string(), exec_id, signal, all, ..Default::default() };
        match running.call(running.guest.tasks().kill(Context::default(), &asked)).await {
            // Meanwhile, and be it with the machine.
            Err(_) if process.life.phase().exit().is_some() => Err(ended()),
            outcome => outcome.map(drop),
        }
    }

    /// A machine that does not end what it was told to kill, as one whose guest is somebody else's by now, would keep its pod from
    /// ever being stopped: containerd stops containers first.
    async fn see_killed(self, id: ContainerId, process: Arc<Process>) {
        if tokio::time::timeout(KILLED, process.life.exit()).await.is_err()
            && let Ok(running) = self.running()
        {
            let reason = format!("container {id} has not ended within {KILLED:?} of being killed");
            // It fails where another one was sooner, or the machine has ended.
            let _sooner = running.condemn.try_send(reason);
        }
    }

    /// Freezes or thaws a container.
    ///
    /// # Errors
    /// `FailedPrecondition` in the wrong phase, or what the guest says.
    pub async fn freeze(&self, id: &ContainerId, frozen: bool) -> Result<()> {
        let (running, container) = (self.running()?, self.get(id)?);
        let change = if frozen { Change::Pause } else { Change::Resume };
        container.init.life.phase().after(change).map_err(|e| Error::new(e.code(), format!("container {id}: {e}")))?;
        let (context, tasks, id) = (Context::default(), running.guest.tasks(), id.to_string());
        if frozen {
            let asked = api::PauseRequest { id, ..Default::default() };
            running.call(tasks.pause(context, &asked)).await?;
        } else {
            let asked = api::ResumeRequest { id, ..Default::default() };
            running.call(tasks.resume(context, &asked)).await?;
        }
        container.init.life.change(change)?;
        report::frozen(&self.0.events, &container.id, frozen);
        Ok(())
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// `FailedPrecondition` where it does not run, `InvalidArgument` for what are no limits, or what the guest says.
    pub async fn update(&self, id: &ContainerId, resources: &[u8]) -> Result<()> {
        let (running, container) = (self.running()?, self.get(id)?);
        if container.init.life.phase().living_pid().is_none() {
            let message = format!("cannot update container {id}: it is {}", container.init.life.phase().name());
            // containerd takes «not found», and nothing else, for an end that it has not heard of yet.
            let ended = container.init.life.phase().exit().is_some();
            return Err(if ended { Error::not_found(message) } else { Error::precondition(message) });
        }
        let mut limits: Value =
            serde_json::from_slice(resources).map_err(|e| Error::invalid(format!("the new limits of container {id} do not parse: {e}")))?;
        translate::resources(&mut limits);
        if let Some(limits) = limits.as_object_mut() {
            // containerd repeats all that the container was made with. Which devices it may use does not change.
            limits.remove("devices");
        }
        let resources = MessageField::some(Any { value: limits.to_string().into_bytes(), ..Default::default() });
        let asked = api::UpdateTaskRequest { id: id.to_string(), resources, ..Default::default() };
        running.call(running.guest.tasks().update(Context::default(), &asked)).await.map(drop)
    }

    /// Removes an exec, or a container that has ended (or never ran). Returns the process id that stood for it and how it
    /// ended.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    pub async fn delete(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<(u32, Exit)> {
        let running = self.running()?;
        let container = self.get(id)?;
        let process = container.process(exec)?;
        let pid = process.life.phase().pid();
        if exec.is_none() && matches!(process.life.phase(), Phase::Created { .. }) {
            match self.kill(id, None, libc::SIGKILL as u32, false).await {
                // The guest's word for it may not come; whoever stops the pod does without.
                Ok(()) => drop(tokio::time::timeout(ENDED, process.life.exit()).await),
                // It has ended meanwhile, or the machine has.
                Err(error) => info!(container = %id, %error, "cannot kill what is to be deleted"),
            }
        }
        let deleted = process.life.change(Change::Delete);
        let exit = deleted
            .map_err(|e| Error::new(e.code(), format!("cannot delete {}: {e}", subject(id, exec))))?
            .exit()
            .unwrap_or_else(Exit::killed);
        if let Some(exec) = exec {
            self.forget(running, id, Some(exec)).await;
            container.execs.remove(exec);
            return Ok((pid, exit));
        }
        self.unmake(running, &container).await?;
        report::deleted(&self.0.events, id, pid, exit);
        Ok((pid, exit))
    }

    /// Has the guest remove what it has of a process. A guest that does not is no reason to keep what the host has of it: what is
    /// left in there goes with the machine.
    async fn forget(&self, running: &Running, id: &ContainerId, exec: Option<&ExecId>) {
        if let Err(error) = self.forgotten(running, id, exec).await {
            warn!(%error, "the guest has not removed {}", subject(id, exec));
        }
    }

    /// What it does not know, or a guest that is gone, is fine. Where it cannot delete the process, it still forgets its names.
    async fn forgotten(&self, running: &Running, id: &ContainerId, exec: Option<&ExecId>) -> Result<()> {
        if running.death().is_some() {
            return Ok(());
        }
        let exec_id = exec.map(ExecId::to_string);
        let asked = api::DeleteRequest { id: id.to_string(), exec_id: exec_id.clone().unwrap_or_default(), ..Default::default() };
        let deleted = tokio::time::timeout(ASKED, running.call(running.guest.tasks().delete(Context::default(), &asked))).await;
        let deleted = deleted.unwrap_or_else(|_| Err(guest::late(ASKED))).map(drop);
        let deleted = deleted.or_else(|error| if error.code() == Code::NotFound { Ok(()) } else { Err(error) });
        let forgotten = running.guest.ask(Request::Forget { container: id.to_string(), exec: exec_id }, ASKED).await;
        let forgotten = match forgotten {
            Err(error) if error.code() == Code::Unavailable => Err(running.broken(error).await),
            outcome => outcome.map(drop),
        };
        if running.death().is_some() { Ok(()) } else { deleted.and(forgotten) }
    }

    /// Removes what was made of a container, in the reverse order. Idempotent.
    async fn unmake(&self, running: &Running, container: &Container) -> Result<()> {
        self.forget(running, &container.id, None).await;
        running.detach(&container.id).await;
        running.share.hide(&container.id)?;
        self.0.pod.remove_container(&container.id)?;
        container.init.detach();
        self.0.containers.remove(&container.id);
        self.0.idle.soon();
        Ok(())
    }

    /// What the guest has told.
    pub fn told(&self, event: agent::Event) {
        match event {
            agent::Event::OutOfMemory { container } => {
                if let Ok(container) = ContainerId::parse(container).and_then(|id| self.get(&id))
                    && container.oom_is_news()
                {
                    report::out_of_memory(&self.0.events, &container.id);
                }
            }
            agent::Event::Exited { container, exec, code } => {
                let ended = ContainerId::parse(container).and_then(|id| {
                    let exec = exec.map(ExecId::parse).transpose()?;
                    let container = self.get(&id)?;
                    container.process(exec.as_ref()).map(|process| (id, exec, process))
                });
                // Of what containerd has deleted meanwhile nobody wants to know; and a process ends once, whatever a guest says.
                if let Ok((id, exec, process)) = ended
                    && process.life.phase().exit().is_none()
                {
                    self.ended(&id, exec.as_ref(), &process, Exit { code: code.min(u32::from(u8::MAX)), at: SystemTime::now() });
                }
            }
        }
    }

    /// All that ran has ended with the machine.
    pub fn all_ended(&self) {
        for (_, container) in self.0.containers.all() {
            for (exec, process) in container.execs.all() {
                if process.life.phase().living_pid().is_some() {
                    self.ended(&container.id, Some(&exec), &process, Exit::killed());
                }
            }
            if container.init.life.phase().exit().is_none() {
                self.ended(&container.id, None, &container.init, Exit::killed());
            }
        }
    }

    fn ended(&self, id: &ContainerId, exec: Option<&ExecId>, process: &Process, exit: Exit) {
        let pid = process.life.phase().pid();
        // Whatever the phase, an exit is accepted.
        let _accepted = process.life.change(Change::Exit(exit));
        process.detach();
        report::exited(&self.0.events, id, exec.map_or(id.as_str(), ExecId::as_str), pid, exit);
    }
}

/// What containers in virtual machines have none of.
pub fn no_checkpoints() -> Error {
    Error::unimplemented("containers in a virtual machine have no checkpoints")
}
