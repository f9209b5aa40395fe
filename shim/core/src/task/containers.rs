// SPDX-License-Identifier: Apache-2.0
//! The containers of a pod, and the operations on them.
//!
//! A runc pod on the host and the agent in a guest share this code. Every container is recorded
//! before anything is made for it.

mod ends;
mod removal;
mod starts;

use super::container::{Container, Process};
use super::gate::{CREATE_TIMEOUT, Gate};
use super::registry::Registry;
use super::spec::{self, Spec};
use super::{CreateRequest, Tasks, View, add_exec, no_terminal, subject};
use crate::cgroup::stats::Metrics;
use crate::cgroup::{OwnedCgroup, moves};
use crate::error::{Code, Error, Result};
use crate::events::{Event, Events};
use crate::idle::Idle;
use crate::ids::{ContainerId, ExecId};
use crate::logger::{LogPipes, Logged};
use crate::mount::Mount;
use crate::process::{Change, Phase};
use crate::reaper::{Exit, Reaper};
use crate::record::{ContainerRecord, PodDir};
use crate::runtime::{self, Checkpoint, Creation, Made, Runtime, Streams};
use crate::sandbox::Death;
use crate::sandbox_files::SandboxFiles;
use crate::server::Parts;
use crate::stdio::StdioSpec;
use crate::terminal::{Size, Terminal};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// How long killed processes may take to leave their cgroup. If they take longer, the kernel has a
/// problem.
const CGROUP_EMPTY: Duration = Duration::from_secs(10);

/// The containers of one pod. Cheap to clone.
#[derive(Debug)]
pub struct Containers<R>(Arc<Shared<R>>);

impl<R> Clone for Containers<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Shared<R> {
    runtime: R,
    pod: PodDir,
    reaper: Reaper,
    events: Events,
    idle: Idle,
    tasks: TaskTracker,
    /// Whether this process has moved to its cgroup, so that it may make processes.
    settled: watch::Sender<bool>,
    gate: Gate,
    files: OnceLock<SandboxFiles>,
    containers: Registry<ContainerId, Container>,
}

impl<R: Runtime> Containers<R> {
    /// No containers yet.
    pub fn new(runtime: R, pod: PodDir, parts: &Parts) -> Self {
        let Parts { reaper, events, idle, tasks } = parts.clone();
        let (settled, gate) = (watch::Sender::new(true), Gate::new());
        let (files, containers) = (OnceLock::new(), Registry::new("container", "this pod"));
        Self(Arc::new(Shared { runtime, pod, reaper, events, idle, tasks, settled, gate, files, containers }))
    }

    /// Publishes these files again before each container is made.
    pub fn keep_published(&self, files: SandboxFiles) {
        let _the_first_counts = self.0.files.set(files);
    }

    /// Makes no process until this process has moved to its cgroup, because clean-up looks for
    /// processes there.
    pub fn hold_until(&self, moved: oneshot::Receiver<Result<()>>) {
        self.0.settled.send_replace(false);
        let shared = self.0.clone();
        self.0.tasks.spawn(async move {
            match moved.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn!(%error, "cannot move the sandbox process to its own cgroup; it stays in the cgroup where it was started")
                }
                Err(_) => warn!("the move of the sandbox process to its own cgroup was dropped"),
            }
            shared.settled.send_replace(true);
        });
    }

    /// Waits until this process has moved. With `warm`, first lets the kernel prepare for the
    /// runtime's own moves.
    async fn ready_to_make(&self, warm: bool) {
        if warm && *self.0.settled.borrow() {
            moves::warm_up();
        }
        self.settled().await;
    }

    async fn settled(&self) {
        let mut settled = self.0.settled.subscribe();
        // It cannot fail: the sender lives in self.
        let _settled = settled.wait_for(|settled| *settled).await;
    }

    fn get(&self, id: &ContainerId) -> Result<Arc<Container>> {
        self.0.containers.get(id)
    }

    async fn make(&self, container: &Arc<Container>, mounts: &[Mount], checkpoint: Option<&Path>) -> Result<u32> {
        let path = container.spec.cgroups_path();
        match path.map(OwnedCgroup::claim).transpose()? {
            Some(cgroup) => container.set_cgroup(cgroup),
            None => {
                warn!(container = %container.id, "the container's specification names no cgroup: there are no statistics and no OOM reports")
            }
        }
        let record = ContainerRecord::new(container.id.clone(), container.bundle.clone(), container.rootfs.clone(), path.map(String::from));
        self.0.pod.write_container(&record)?;
        self.0.files.get().map_or(Ok(()), SandboxFiles::publish)?;
        self.ready_to_make(true).await;
        if let Some(rootfs) = &container.rootfs {
            for mount in mounts {
                mount.mount_at(rootfs)?;
            }
        }
        let (streams, logs) = self.streams(container, None, &container.init).await?;
        let (id, cgroup) = (&container.id, container.cgroup());
        let creation = Creation { container: id, bundle: &container.bundle, streams, checkpoint, cgroup };
        let made = match self.0.runtime.create(creation).await {
            Ok(made) => made,
            Err(error) => {
                self.undo_hooks(container).await;
                return Err(error);
            }
        };
        let pid = made.pid;
        let ended = self.0.runtime.ended(container.init_subject(pid), &self.0.reaper);
        self.watch_memory(container);
        self.attach(&container.init, made, logs).await?;
        container.init.life.change(Change::Made { pid })?;
        if checkpoint.is_some() {
            container.init.life.change(Change::Start)?;
            container.init.life.change(Change::Started { pid })?;
        }
        self.0.tasks.spawn(self.clone().init_ended(container.clone(), ended));
        Ok(pid)
    }

    /// Starts the process that the containers will live in, if their runtime has one.
    ///
    /// # Errors
    /// Errors of the runtime.
    pub async fn start_sandbox(&self) -> Result<()> {
        self.0.runtime.start_sandbox().await
    }

    /// Ends that process. Idempotent.
    ///
    /// # Errors
    /// Errors of the runtime.
    pub async fn stop_sandbox(&self) -> Result<()> {
        self.0.runtime.stop_sandbox().await
    }

    /// Waits until that process has ended by itself. Cancel-safe.
    pub async fn sandbox_died(&self) -> Death {
        self.0.runtime.sandbox_died().await
    }

    /// Kills every container, and waits for their ends. Refuses to make more.
    pub async fn kill_all(&self) -> Result<()> {
        self.settled().await;
        if !self.0.gate.close(CREATE_TIMEOUT).await {
            warn!("a container is still being made in a pod that is being stopped");
        }
        for (_, container) in self.0.containers.all() {
            if let Some(pid) = container.init.life.phase().living_pid() {
                self.kill_init(&container, pid).await;
                if let Some(cgroup) = container.cgroup() {
                    cgroup.kill_all(CGROUP_EMPTY).await?;
                }
                container.init.life.exit().await;
            }
        }
        Ok(())
    }

    /// Kills a container's first process. It is no error if that has ended meanwhile.
    async fn kill_init(&self, container: &Container, pid: u32) {
        let killed = self.0.runtime.signal(container.init_subject(pid), &self.0.reaper, libc::SIGKILL as u32).await;
        if let Err(error) = killed
            && error.code() != Code::NotFound
        {
            warn!(container = %container.id, %error, "cannot kill a container's first process");
        }
    }

    /// The streams for a process. For a terminal also the pipes of its logging program.
    async fn streams(&self, container: &Container, exec: Option<&ExecId>, process: &Process) -> Result<(Streams, Option<LogPipes>)> {
        let (namespace, _) = self.0.pod.names()?;
        let id = exec.map_or(container.id.as_str(), ExecId::as_str);
        let logs = process.logging.run(&process.stdio, Logged { id, namespace: namespace.as_str(), reaper: &self.0.reaper }).await?;
        if process.stdio.terminal {
            return Ok((Streams::Terminal, logs));
        }
        Ok((Streams::Pipes(process.open_pipes(container.spec.mapped_owner(), logs, exec.is_some()).await?), None))
    }

    async fn attach(&self, process: &Process, made: Made, logs: Option<LogPipes>) -> Result<()> {
        if let Some(master) = made.terminal {
            process.set_terminal(Terminal::attach(master, &process.stdio, logs.map(|logs| logs.stdout), &self.0.tasks).await?);
        }
        Ok(())
    }
}

impl<R: Runtime> Tasks for Containers<R> {
    async fn create(&self, request: CreateRequest) -> Result<u32> {
        let CreateRequest { container: id, bundle, rootfs: mounts, stdio, checkpoint } = request;
        let _being_made = self.0.gate.enter()?;
        let spec = Spec::read(&bundle)?;
        let rootfs = if mounts.is_empty() { None } else { Some(spec::rootfs_dir(&bundle)?) };
        let container = Arc::new(Container::new(id.clone(), bundle.clone(), rootfs, spec, stdio.clone()));
        self.0.containers.add(id.clone(), container.clone())?;
        let made = self.make(&container, &mounts, checkpoint.as_deref()).await;
        match made {
            Ok(pid) => {
                info!(container = %id, pid, "created");
                self.0.events.publish(Event::Created { container: id, bundle, stdio, pid, checkpoint });
                Ok(pid)
            }
            Err(error) => {
                if let Err(left) = self.unmake(&container).await {
                    warn!(container = %id, error = %left, "cannot remove all of a container that could not be made");
                }
                Err(Error::new(error.code(), format!("cannot create container {id}: {error}")))
            }
        }
    }

    async fn start(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<u32> {
        self.start_process(id, exec).await
    }

    async fn delete(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<(u32, Exit)> {
        self.delete_process(id, exec).await
    }

    fn exec(&self, id: &ContainerId, exec: ExecId, process: Vec<u8>, stdio: StdioSpec) -> Result<()> {
        let container = self.get(id)?;
        let process = Process::new(stdio, process, Phase::Created { pid: 0 });
        add_exec(id, &container.init.life, &container.execs, &exec, process)?;
        self.0.events.publish(Event::ExecAdded { container: id.clone(), exec });
        Ok(())
    }

    async fn kill(&self, id: &ContainerId, exec: Option<&ExecId>, signal: u32, all: bool) -> Result<()> {
        let container = self.get(id)?;
        let process = container.process(exec)?;
        if all && exec.is_none() {
            return self.0.runtime.signal_all(id, container.cgroup(), signal).await;
        }
        match process.life.phase().living_pid() {
            Some(pid) => {
                let subject = runtime::Subject { container: id, exec, pid };
                self.0.runtime.signal(subject, &self.0.reaper, signal).await?;
                // With cgroup v1 a frozen process does not die.
                if signal == libc::SIGKILL as u32 && matches!(container.init.life.phase(), Phase::Paused { .. }) {
                    container.cgroup().map_or(Ok(()), OwnedCgroup::thaw)?;
                }
                Ok(())
            }
            None if process.life.phase().exit().is_some() => Err(Error::not_found(format!("{} has ended", subject(id, exec)))),
            None => Err(Error::precondition(format!("{} has not been started", subject(id, exec)))),
        }
    }

    async fn freeze(&self, id: &ContainerId, frozen: bool) -> Result<()> {
        let container = self.get(id)?;
        let change = if frozen { Change::Pause } else { Change::Resume };
        container.init.life.phase().after(change).map_err(|e| Error::new(e.code(), format!("container {id}: {e}")))?;
        self.0.runtime.freeze(id, frozen).await?;
        container.init.life.change(change)?;
        self.0.events.publish(Event::frozen(id, frozen));
        Ok(())
    }

    async fn checkpoint(&self, id: &ContainerId, checkpoint: Checkpoint) -> Result<()> {
        let phase = self.get(id)?.init.life.phase();
        if !matches!(phase, Phase::Running { .. } | Phase::Paused { .. }) {
            return Err(Error::precondition(format!("cannot checkpoint container {id}: it is {}", phase.name())));
        }
        self.0.runtime.checkpoint(id, checkpoint).await
    }

    async fn update(&self, id: &ContainerId, resources: &[u8]) -> Result<()> {
        let phase = self.get(id)?.init.life.phase();
        if phase.exit().is_some() {
            return Err(Error::not_found(format!("cannot update container {id}: it has ended")));
        }
        if phase.living_pid().is_none() {
            return Err(Error::precondition(format!("cannot update container {id}: it is {}", phase.name())));
        }
        self.0.runtime.update(id, resources).await
    }

    async fn resize(&self, id: &ContainerId, exec: Option<&ExecId>, size: Size) -> Result<()> {
        let process = self.get(id)?.process(exec)?;
        match process.terminal() {
            Some(terminal) => terminal.resize(size),
            None => no_terminal(id, exec, process.life.phase()),
        }
    }

    async fn close_stdin(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<()> {
        self.get(id)?.process(exec)?.close_stdin();
        Ok(())
    }

    fn view(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<View> {
        let container = self.get(id)?;
        let process = container.process(exec)?;
        let (life, init) = (process.life.clone(), container.init.life.clone());
        Ok(View { bundle: container.bundle.clone(), stdio: process.stdio.clone(), life, init })
    }

    async fn pids(&self, id: &ContainerId) -> Result<Vec<u32>> {
        let container = self.get(id)?;
        let phase = container.init.life.phase();
        match self.0.runtime.pids(id, container.cgroup()).await? {
            pids if pids.is_empty() && phase.exit().is_some() => Ok(vec![phase.pid()]),
            pids => Ok(pids),
        }
    }

    async fn statistics(&self, id: &ContainerId) -> Result<Metrics> {
        let container = self.get(id)?;
        self.0.runtime.statistics(id, container.cgroup()).await
    }

    fn has_containers(&self) -> bool {
        !self.0.containers.is_empty()
    }

    /// The process writes to the streams itself, so no output has to be passed on.
    async fn ended(&self, id: &ContainerId) {
        if let Ok(container) = self.get(id) {
            container.init.life.exit().await;
        }
    }
}

#[cfg(test)]
mod tests;
