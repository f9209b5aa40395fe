// SPDX-License-Identifier: Apache-2.0
//! How processes are started: a container's program, and further ones.

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

/// How long the runtime may take to notice that what it starts has ended.
const START_AFTER_END: Duration = Duration::from_secs(1);

impl<R: Runtime> Containers<R> {
    /// [`Tasks::start`](crate::task::Tasks::start).
    pub(super) async fn start_process(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<u32> {
        let container = self.get(id)?;
        let process = container.process(exec)?;
        let named = |error: Error| Error::new(error.code(), format!("cannot start {}: {error}", subject(id, exec)));
        let around = container.init.life.phase();
        if exec.is_some() && (around.living_pid().is_none() || matches!(around, Phase::Paused { .. })) {
            return Err(named(Error::precondition(format!("its container is {}", around.name()))));
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

    /// A runtime that starts a container whose init was killed meanwhile may wait for it for ever.
    async fn start_init(&self, container: &Container) -> Result<()> {
        let mut start = std::pin::pin!(self.0.runtime.start(&container.id));
        tokio::select! {
            started = &mut start => started,
            // A short program may be over before the runtime has said that it was started.
            _ = container.init.life.exit() => match tokio::time::timeout(START_AFTER_END, start).await {
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
