// SPDX-License-Identifier: Apache-2.0
//! What happens when a process ends.

use super::{CGROUP_EMPTY, Containers};
use crate::events::Event;
use crate::ids::ExecId;
use crate::process::Change;
use crate::reaper::Exit;
use crate::runtime::Runtime;
use crate::task::container::{Container, Process};
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::StreamExt;
use tracing::{info, warn};

/// How long the report of an init's end waits for the ends of its execs, which the kernel has
/// killed with it.
const EXECS_TIMEOUT: Duration = Duration::from_secs(2);

impl<R: Runtime> Containers<R> {
    /// Follows a container's first process to its end.
    pub(super) async fn init_ended(self, container: Arc<Container>, ended: impl Future<Output = Exit>) {
        let exit = ended.await;
        self.report_oom(&container, self.0.runtime.kills(&container.id, container.cgroup()));
        if let Some(cgroup) = container.cgroup()
            && !container.spec.ends_with_init()
            && let Err(error) = cgroup.kill_all(CGROUP_EMPTY).await
        {
            warn!(container = %container.id, %error, "cannot kill the processes that init left behind");
        }
        let pid = container.init.life.phase().pid();
        // Every phase accepts an exit.
        let _accepted = container.init.life.change(Change::Exit(exit));
        container.init.detach();
        info!(container = %container.id, code = exit.code, "exited");
        // Subscribers expect no event of a container after its init's exit.
        for (_, exec) in container.execs.all() {
            if exec.life.phase().living_pid().is_some() {
                let _bounded = tokio::time::timeout(EXECS_TIMEOUT, exec.life.exit()).await;
            }
        }
        self.0.events.publish(Event::Exited { container: container.id.clone(), exec: None, pid, exit });
    }

    /// Follows an exec to its end.
    pub(super) async fn exec_ended(
        self,
        container: Arc<Container>,
        exec: ExecId,
        process: Arc<Process>,
        pid: u32,
        ended: impl Future<Output = Exit>,
    ) {
        let exit = ended.await;
        let _accepted = process.life.change(Change::Exit(exit));
        process.detach();
        self.0.events.publish(Event::Exited { container: container.id.clone(), exec: Some(exec), pid, exit });
    }

    /// Reports OOM kills of processes other than init while the container runs.
    pub(super) fn watch_memory(&self, container: &Arc<Container>) {
        let mut kills = match self.0.runtime.watch_kills(&container.id, container.cgroup()) {
            Ok(kills) => kills,
            Err(error) => {
                warn!(container = %container.id, %error, "no OOM reports while this container runs");
                return;
            }
        };
        let (containers, container) = (self.clone(), container.clone());
        self.0.tasks.spawn(async move {
            loop {
                tokio::select! {
                    kills = kills.next() => match kills {
                        Some(kills) => containers.report_oom(&container, kills),
                        None => return,
                    },
                    _ = container.init.life.exit() => return,
                }
            }
        });
    }

    fn report_oom(&self, container: &Container, kills: u64) {
        if container.is_new_oom(kills) {
            info!(container = %container.id, kills, "out of memory");
            self.0.events.publish(Event::OutOfMemory { container: container.id.clone() });
        }
    }
}
