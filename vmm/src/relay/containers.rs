// SPDX-License-Identifier: Apache-2.0
//! The containers of a pod: what the host does for each, and what the guest does.
//!
//! ```text
//! Create   record ─> mount files into the share ─> attach disks ─> bundle, streams ─> Create in the guest
//! Delete   Delete in the guest ─> streams, bundle ─> detach disks ─> unmount files ─> remove the record
//! ```

use super::container::{Container, Process};
use super::create::{REQUEST_TIMEOUT, cannot_create};
use super::{END_TIMEOUT, OUTPUT_TIMEOUT, Relay, Running};
use crate::relay::translate;
use magnetar_core::cgroup::stats::Metrics;
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::events::Event;
use magnetar_core::ids::{ContainerId, ExecId};
use magnetar_core::process::{Change, Phase};
use magnetar_core::reaper::Exit;
use magnetar_core::runtime::Checkpoint;
use magnetar_core::stdio::StdioSpec;
use magnetar_core::task::{CreateRequest, Tasks, View, add_exec, mark_deleted, no_terminal, subject};
use magnetar_core::terminal::Size;
use magnetar_vm_agent_api::{self as agent, Request};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tracing::{Instrument, info, warn};

/// How long a killed container may take to end, in emulation on a busy host with a slow disk.
const KILL_TIMEOUT: Duration = Duration::from_secs(60);

impl Relay {
    /// The process id for all containers' processes. Without a pod it is this process: the client
    /// looks for its network namespace before there is a machine.
    fn pid(&self) -> u32 {
        match self.0.running.get() {
            Some(running) if !self.is_single() => running.pid,
            Some(_) | None => std::process::id(),
        }
    }

    /// Runs a container's program. Makes the container first if that was deferred.
    async fn run_init(&self, running: &Running, container: &Container, deferred: Option<&CreateRequest>) -> Result<()> {
        let id = &container.id;
        if let Some(request) = deferred {
            let _being_made = self.0.gate.enter()?;
            self.make(running, container, request).await.map_err(|error| cannot_create(id, error))?;
        }
        running.call(running.guest.tasks().start(id, None)).await
    }

    async fn run_exec(&self, running: &Running, id: &ContainerId, exec: &ExecId, process: &Process) -> Result<()> {
        let outcome = async {
            let paths = self.open_streams(running, id, Some(exec), process).await?;
            let (json, terminal) = (process.process.clone(), process.stdio.terminal);
            running.call(running.guest.tasks().exec(id, exec, json, terminal, paths)).await?;
            running.call(running.guest.tasks().start(id, Some(exec))).await
        };
        let outcome: Result<()> = outcome.await;
        if outcome.is_err() {
            self.forget(running, id, Some(exec)).await;
        }
        outcome
    }

    /// Ends a machine whose guest does not end a killed container. containerd stops containers
    /// before their pod, so otherwise the pod could never be stopped.
    async fn condemn_unless_killed(self, id: ContainerId, process: Arc<Process>) {
        if tokio::time::timeout(KILL_TIMEOUT, process.life.exit()).await.is_err()
            && let Ok(running) = self.running()
        {
            let reason = format!("container {id} has not ended within {KILL_TIMEOUT:?} of being killed");
            // This fails if another reason came first, or the machine has ended.
            let _sooner = running.condemn.try_send(reason);
        }
    }

    /// Removes a process in the guest. A failure is only logged: what is left ends with the
    /// machine.
    async fn forget(&self, running: &Running, id: &ContainerId, exec: Option<&ExecId>) {
        if let Err(error) = self.try_forget(running, id, exec).await {
            warn!(%error, "the guest has not removed {}", subject(id, exec));
        }
    }

    /// An unknown process or a dead guest is no error. If Delete fails, Forget is still sent.
    async fn try_forget(&self, running: &Running, id: &ContainerId, exec: Option<&ExecId>) -> Result<()> {
        if running.death().is_some() {
            return Ok(());
        }
        let deleted = running.answered(running.guest.tasks().delete(id, exec)).await;
        let deleted = deleted.or_else(|error| if error.code() == Code::NotFound { Ok(()) } else { Err(error) });
        let forgotten =
            running.guest.ask(Request::Forget { container: id.to_string(), exec: exec.map(ExecId::to_string) }, REQUEST_TIMEOUT).await;
        let forgotten = match forgotten {
            Err(error) if error.code() == Code::Unavailable => Err(running.explain_broken(error).await),
            outcome => outcome.map(drop),
        };
        if running.death().is_some() { Ok(()) } else { deleted.and(forgotten) }
    }

    /// Removes everything that was made for a container, in reverse order. Idempotent.
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
        self.give_back();
        self.0.idle.soon();
        Ok(())
    }

    /// Handles an event of the guest.
    pub fn handle_event(&self, event: agent::Event) {
        match event {
            agent::Event::OutOfMemory { container } => {
                if let Ok(container) = ContainerId::parse(container).and_then(|id| self.get(&id))
                    && container.should_report_oom()
                {
                    self.0.events.publish(Event::OutOfMemory { container: container.id.clone() });
                }
            }
            agent::Event::Exited { container, exec, code } => {
                let ended = ContainerId::parse(container).and_then(|id| {
                    let exec = exec.map(ExecId::parse).transpose()?;
                    let container = self.get(&id)?;
                    container.process(exec.as_ref()).map(|process| (id, exec, process))
                });
                // Ignore processes that containerd has deleted, and repeated exits: a process ends
                // once.
                if let Ok((id, exec, process)) = ended
                    && process.life.phase().exit().is_none()
                {
                    self.record_exit(&id, exec.as_ref(), &process, Exit { code: code.min(u32::from(u8::MAX)), at: SystemTime::now() });
                }
            }
        }
    }

    /// Notes that all processes have ended with the machine.
    pub fn end_all(&self) {
        for (_, container) in self.0.containers.all() {
            for (exec, process) in container.execs.all() {
                if process.life.phase().living_pid().is_some() {
                    self.record_exit(&container.id, Some(&exec), &process, Exit::killed());
                }
            }
            if container.init.life.phase().exit().is_none() {
                self.record_exit(&container.id, None, &container.init, Exit::killed());
            }
        }
    }

    fn record_exit(&self, id: &ContainerId, exec: Option<&ExecId>, process: &Process, exit: Exit) {
        let pid = process.life.phase().pid();
        // Every phase accepts an exit.
        let _accepted = process.life.change(Change::Exit(exit));
        process.detach();
        self.0.events.publish(Event::Exited { container: id.clone(), exec: exec.cloned(), pid, exit });
    }
}

impl Tasks for Relay {
    async fn create(&self, request: CreateRequest) -> Result<u32> {
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
                let (bundle, stdio) = (container.bundle.clone(), container.init.stdio.clone());
                self.0.events.publish(Event::Created { container: id, bundle, stdio, pid: self.pid(), checkpoint: None });
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

    async fn start(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<u32> {
        let running = self.running()?;
        let container = self.get(id)?;
        let process = container.process(exec)?;
        process.life.change(Change::Start).map_err(|e| Error::new(e.code(), format!("cannot start {}: {e}", subject(id, exec))))?;
        // An exec must not take the container's deferred request.
        let deferred = if exec.is_none() { container.take_deferred_create() } else { None };
        let started = match exec {
            None => self.run_init(running, &container, deferred.as_ref()).await,
            Some(exec) => self.run_exec(running, id, exec, &process).await,
        };
        match started {
            Ok(()) => {
                let pid = self.pid();
                process.life.change(Change::Started { pid })?;
                self.0.idle.soon();
                self.0.events.publish(Event::Started { container: id.clone(), exec: exec.cloned(), pid });
                Ok(pid)
            }
            Err(error) => {
                process.life.change(Change::StartFailed)?;
                process.detach();
                if deferred.is_some() {
                    // For containerd it was created, and no process exists whose end would be
                    // reported.
                    self.record_exit(id, None, &process, Exit::killed());
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<(u32, Exit)> {
        let container = self.get(id)?;
        let process = container.process(exec)?;
        let pid = process.life.phase().pid();
        if exec.is_none() && matches!(process.life.phase(), Phase::Created { .. }) {
            match self.kill(id, None, libc::SIGKILL as u32, false).await {
                // The guest may not report the exit; then the deletion goes on without it.
                Ok(()) => drop(tokio::time::timeout(END_TIMEOUT, process.life.exit()).await),
                // The container or the machine has ended meanwhile.
                Err(error) => info!(container = %id, %error, "cannot kill a container that is being deleted"),
            }
        }
        let exit = mark_deleted(id, exec, &process.life)?;
        if let Some(exec) = exec {
            if let Some(running) = self.0.running.get() {
                self.forget(running, id, Some(exec)).await;
            }
            process.logging.finish().await;
            container.execs.remove(exec);
            return Ok((pid, exit));
        }
        self.unmake(&container).await?;
        self.0.events.publish(Event::Deleted { container: id.clone(), pid, exit });
        Ok((pid, exit))
    }

    fn exec(&self, id: &ContainerId, exec: ExecId, process: Vec<u8>, stdio: StdioSpec) -> Result<()> {
        let container = self.get(id)?;
        let process = Process::new(stdio, process, Phase::Created { pid: 0 });
        add_exec(id, &container.init.life, &container.execs, &exec, process)?;
        self.0.events.publish(Event::ExecAdded { container: id.clone(), exec });
        Ok(())
    }

    async fn kill(&self, id: &ContainerId, exec: Option<&ExecId>, signal: u32, all: bool) -> Result<()> {
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
            // Nothing runs yet. Signal 0 only tests whether the process exists.
            if signal != 0 {
                self.record_exit(id, exec, &process, Exit { code: signal.saturating_add(128), at: SystemTime::now() });
            }
            return Ok(());
        };
        if exec.is_none() && signal == libc::SIGKILL as u32 {
            self.0.tasks.spawn(self.clone().condemn_unless_killed(id.clone(), process.clone()).in_current_span());
        }
        match running.answered(running.guest.tasks().kill(id, exec, signal, all)).await {
            // It has ended meanwhile, perhaps with the machine.
            Err(_) if process.life.phase().exit().is_some() => Err(ended()),
            outcome => outcome,
        }
    }

    async fn freeze(&self, id: &ContainerId, frozen: bool) -> Result<()> {
        let (running, container) = (self.running()?, self.get(id)?);
        let change = if frozen { Change::Pause } else { Change::Resume };
        container.init.life.phase().after(change).map_err(|e| Error::new(e.code(), format!("container {id}: {e}")))?;
        running.answered(running.guest.tasks().freeze(id, frozen)).await?;
        container.init.life.change(change)?;
        self.0.events.publish(Event::frozen(id, frozen));
        Ok(())
    }

    async fn checkpoint(&self, id: &ContainerId, _checkpoint: Checkpoint) -> Result<()> {
        self.get(id)?;
        Err(no_checkpoints())
    }

    async fn update(&self, id: &ContainerId, resources: &[u8]) -> Result<()> {
        let container = self.get(id)?;
        if container.init.life.phase().living_pid().is_none() {
            let message = format!("cannot update container {id}: it is {}", container.init.life.phase().name());
            // containerd takes only NotFound for an end that it has not heard of yet.
            let ended = container.init.life.phase().exit().is_some();
            return Err(if ended { Error::not_found(message) } else { Error::precondition(message) });
        }
        let mut limits: Value =
            serde_json::from_slice(resources).map_err(|e| Error::invalid(format!("the new limits of container {id} do not parse: {e}")))?;
        translate::resources(&mut limits);
        if let Some(limits) = limits.as_object_mut() {
            // containerd sends all resources again. The allowed devices do not change.
            limits.remove("devices");
        }
        self.update_limits(container, limits).await
    }

    async fn resize(&self, id: &ContainerId, exec: Option<&ExecId>, size: Size) -> Result<()> {
        let process = self.get(id)?.process(exec)?;
        let phase = process.life.phase();
        // The guest does not know an exec that was not started.
        if !process.stdio.terminal || phase.living_pid().is_none() {
            return no_terminal(id, exec, phase);
        }
        let running = self.running()?;
        running.answered(running.guest.tasks().resize(id, exec, size)).await
    }

    async fn close_stdin(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<()> {
        let process = self.get(id)?.process(exec)?;
        // The guest does not know an exec before its start, and has closed an ended process's
        // input.
        if process.life.phase().living_pid().is_none() {
            return Ok(());
        }
        process.close_input();
        let running = self.running()?;
        running.answered(running.guest.tasks().close_stdin(id, exec)).await
    }

    fn view(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<View> {
        let container = self.get(id)?;
        let process = container.process(exec)?;
        let (life, init) = (process.life.clone(), container.init.life.clone());
        Ok(View { bundle: container.bundle.clone(), stdio: process.stdio.clone(), life, init })
    }

    /// The hypervisor's process stands for all processes of the guest.
    async fn pids(&self, id: &ContainerId) -> Result<Vec<u32>> {
        Ok(vec![self.get(id)?.init.life.phase().pid()])
    }

    async fn statistics(&self, id: &ContainerId) -> Result<Metrics> {
        self.get(id)?;
        let running = self.running()?;
        running.answered(running.guest.tasks().statistics(id)).await
    }

    fn has_containers(&self) -> bool {
        !self.0.containers.is_empty()
    }

    async fn ended(&self, id: &ContainerId) {
        let Ok(container) = self.get(id) else { return };
        container.init.life.exit().await;
        self.0.outputs.close();
        // Their reader may have stopped reading.
        if tokio::time::timeout(OUTPUT_TIMEOUT, self.0.outputs.wait()).await.is_err() {
            warn!(container = %id, "its last output was not read within {OUTPUT_TIMEOUT:?}, and is lost");
        }
    }
}

/// The error of a request for a checkpoint.
pub fn no_checkpoints() -> Error {
    Error::unimplemented("containers in a virtual machine have no checkpoints")
}
