// SPDX-License-Identifier: Apache-2.0
//! How a container's program and execs are started.

use super::{Containers, subject};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::ids::{ContainerId, ExecId};
use crate::process::{Change, Phase};
use crate::runtime::{Execution, Runtime, Subject};
use crate::task::container::{Container, Process};
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;

/// How long the runtime may take to notice that the process it starts has ended.
const START_REPORT_TIMEOUT: Duration = Duration::from_secs(1);

impl<R: Runtime> Containers<R> {
    /// [`Tasks::start`](crate::task::Tasks::start).
    pub(super) async fn start_process(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<u32> {
        let container = self.get(id)?;
        let process = container.process(exec)?;
        let named = |error: Error| Error::new(error.code(), format!("cannot start {}: {error}", subject(id, exec)));
        let container_phase = container.init.life.phase();
        if exec.is_some() && (container_phase.living_pid().is_none() || matches!(container_phase, Phase::Paused { .. })) {
            return Err(named(Error::precondition(format!("its container is {}", container_phase.name()))));
        }
        process.life.change(Change::Start).map_err(named)?;
        let started = match exec {
            None => self.start_init(&container).await.map(|()| process.life.phase().pid()),
            Some(exec) => self.run_exec(&container, exec, &process).await,
        };
        match started {
            Ok(pid) => {
                process.life.change(Change::Started { pid })?;
                self.0.idle.soon();
                debug!(container = %id, exec = exec.map(ExecId::as_str), pid, "started");
                self.0.events.publish(Event::Started { container: id.clone(), exec: exec.cloned(), pid });
                Ok(pid)
            }
            Err(error) => {
                process.life.change(Change::StartFailed)?;
                process.detach();
                Err(named(error))
            }
        }
    }

    /// Starts a container's program. A runtime may wait forever for an init that was killed
    /// meanwhile.
    async fn start_init(&self, container: &Container) -> Result<()> {
        let mut start = std::pin::pin!(self.0.runtime.start(&container.id));
        tokio::select! {
            started = &mut start => started,
            // A short program may have ended before the runtime reports its start.
            _ = container.init.life.exit() => match tokio::time::timeout(START_REPORT_TIMEOUT, start).await {
                Ok(started) => started,
                Err(_) => Err(Error::precondition("it was killed before its program was started")),
            },
        }
    }

    async fn run_exec(&self, container: &Arc<Container>, exec: &ExecId, process: &Arc<Process>) -> Result<u32> {
        self.ready_to_make(self.0.runtime.execs_into_warm_cgroups()).await;
        let (streams, logs) = self.streams(container, Some(exec), process).await?;
        let made = self.0.runtime.exec(Execution { container: &container.id, exec, process: &process.process, streams }).await?;
        let pid = made.pid;
        let ended = self.0.runtime.ended(Subject { container: &container.id, exec: Some(exec), pid }, &self.0.reaper);
        self.attach(process, made, logs).await?;
        self.0.tasks.spawn(self.clone().exec_ended(container.clone(), exec.clone(), process.clone(), pid, ended));
        Ok(pid)
    }
}
