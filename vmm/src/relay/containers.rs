// SPDX-License-Identifier: Apache-2.0
//! The containers of a pod: what the host does for each, and what it has the guest do.
//!
//! ```text
//! Create   record ─> share shows its files ─> disks attached ─> bundle and streams in the guest ─> Create there
//! Delete   Delete there ─> streams and bundle forgotten ─> disks detached ─> share hides its files ─> record
//! ```

use super::container::{Container, Process};
use super::making::{ASKED, cannot_create};
use super::{ENDED, Relay, Running};
use crate::translate;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::ids::{ContainerId, ExecId};
use magnetar_core::process::{Change, Phase};
use magnetar_core::reaper::Exit;
use magnetar_core::task::{CreateRequest, report, subject};
use magnetar_vm_agent_api::{self as agent, Request};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tracing::{Instrument, info, warn};
use ttrpc::context::Context;

/// How long a killed container may take to end, in software emulation on a busy host: its kernel may have to write to a slow disk.
const KILLED: Duration = Duration::from_secs(60);

impl Relay {
    /// Makes a container, which then waits for its start. Returns the process id that stands for it.
    ///
    /// # Errors
    /// `AlreadyExists` for a name in use, `Unimplemented` for what a virtual machine cannot do, and what the guest says; then
    /// nothing of it is left.
    pub async fn create(&self, request: CreateRequest) -> Result<u32> {
        let running = if self.is_single() { None } else { Some(self.running()?) };
        let _being_made = self.0.gate.enter()?;
        let id = request.container.clone();
        if request.checkpoint.is_some() {
            return Err(cannot_create(&id, no_checkpoints()));
        }
        let container = Arc::new(Container::new(id.clone(), request.bundle.clone(), request.stdio.clone()));
        self.0.containers.add(container.id.clone(), container.clone())?;
        let made = match running {
            Some(running) => self.make(running, &container, &request).await,
            None => self.announce(&container, request),
        };
        match made.and_then(|()| container.init.life.change(Change::Made { pid: self.pid() })) {
            Ok(_) => {
                info!(container = %id, "created");
                report::created(&self.0.events, &id, &container.bundle, &container.init.stdio, self.pid(), None);
                Ok(self.pid())
            }
            Err(error) => {
                if let Err(left) = self.unmake(&container).await {
                    warn!(container = %id, error = %left, "cannot remove all of a container that could not be made");
                }
                Err(cannot_create(&id, error))
            }
        }
    }

    /// The process that stands for those of containers. Where a container has no pod that is this one, because its client looks
    /// for the network namespace of that process before there is a machine.
    fn pid(&self) -> u32 {
        match self.0.running.get() {
            Some(running) if !self.is_single() => running.pid,
            Some(_) | None => std::process::id(),
        }
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
        // An exec must not take away what the container is made from.
        let later = if exec.is_none() { container.is_to_be_made() } else { None };
        let started = match exec {
            None => self.run_init(running, &container, later.as_ref()).await,
            Some(exec) => self.run_exec(running, id, exec, &process).await,
        };
        match started {
            Ok(()) => {
                let pid = self.pid();
                process.life.change(Change::Started { pid })?;
                self.0.idle.soon();
                report::started(&self.0.events, id, exec, pid);
                Ok(pid)
            }
            Err(error) => {
                process.life.change(Change::StartFailed)?;
                process.detach();
                if later.is_some() {
                    // It was created for containerd, and there is nothing that could end.
                    self.ended(id, None, &process, Exit::killed());
                }
                Err(error)
            }
        }
    }

    /// Runs the program of a container, which is made before if that was put off.
    async fn run_init(&self, running: &Running, container: &Container, later: Option<&CreateRequest>) -> Result<()> {
        let id = &container.id;
        if let Some(request) = later {
            let _being_made = self.0.gate.enter()?;
            self.make(running, container, request).await.map_err(|error| cannot_create(id, error))?;
        }
        let asked = api::StartRequest { id: id.to_string(), ..Default::default() };
        running.call(running.guest.tasks().start(Context::default(), &asked)).await.map(drop)
    }

    async fn run_exec(&self, running: &Running, id: &ContainerId, exec: &ExecId, process: &Process) -> Result<()> {
        let outcome = async {
            let paths = self.open_streams(running, id, Some(exec), process).await?;
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
        let Some(running) = self.0.running.get() else {
            // Nothing runs yet. Signal 0 only asks whether there is a process.
            if signal != 0 {
                self.ended(id, exec, &process, Exit { code: signal.saturating_add(128), at: SystemTime::now() });
            }
            return Ok(());
        };
        if exec.is_none() && signal == libc::SIGKILL as u32 {
            self.0.tasks.spawn(self.clone().see_killed(id.clone(), process.clone()).in_current_span());
        }
        let exec_id = exec.map(ExecId::to_string).unwrap_or_default();
        let asked = api::KillRequest { id: id.to_string(), exec_id, signal, all, ..Default::default() };
        match running.answered(running.guest.tasks().kill(Context::default(), &asked)).await {
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
            running.answered(tasks.pause(context, &asked)).await?;
        } else {
            let asked = api::ResumeRequest { id, ..Default::default() };
            running.answered(tasks.resume(context, &asked)).await?;
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
        running.answered(running.guest.tasks().update(Context::default(), &asked)).await.map(drop)
    }

    /// Removes an exec, or a container that has ended (or never ran). Returns the process id that stood for it and how it
    /// ended.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    pub async fn delete(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<(u32, Exit)> {
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
            if let Some(running) = self.0.running.get() {
                self.forget(running, id, Some(exec)).await;
            }
            process.logging.finish().await;
            container.execs.remove(exec);
            return Ok((pid, exit));
        }
        self.unmake(&container).await?;
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
        let deleted = running.answered(running.guest.tasks().delete(Context::default(), &asked)).await.map(drop);
        let deleted = deleted.or_else(|error| if error.code() == Code::NotFound { Ok(()) } else { Err(error) });
        let forgotten = running.guest.ask(Request::Forget { container: id.to_string(), exec: exec_id }, ASKED).await;
        let forgotten = match forgotten {
            Err(error) if error.code() == Code::Unavailable => Err(running.broken(error).await),
            outcome => outcome.map(drop),
        };
        if running.death().is_some() { Ok(()) } else { deleted.and(forgotten) }
    }

    /// Removes what was made of a container, in the reverse order. Idempotent.
    async fn unmake(&self, container: &Container) -> Result<()> {
        if let Some(running) = self.0.running.get() {
            self.forget(running, &container.id, None).await;
            running.detach(&container.id).await;
            running.share.hide(&container.id)?;
        }
        self.0.pod.remove_container(&container.id)?;
        container.init.detach();
        container.init.logging.finish().await;
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
