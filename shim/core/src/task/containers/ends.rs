// SPDX-License-Identifier: Apache-2.0
//! How processes end, and what has to happen then.

use super::{CGROUP_EMPTY, Containers};
use crate::cgroup::{Cgroup, oom};
use crate::ids::ExecId;
use crate::process::Change;
use crate::reaper::Exit;
use crate::runtime::Runtime;
use crate::task::container::{Container, Process};
use crate::task::report;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::{info, warn};

/// How long the report of an init's end waits for the ends of its execs, which the kernel has
/// killed with it.
const EXECS_END: Duration = Duration::from_secs(2);

impl<R: Runtime> Containers<R> {
    /// Follows a container's first process to its end.
    pub(super) async fn init_ended(self, container: Arc<Container>, ended: oneshot::Receiver<Exit>) {
        let exit = ended.await.unwrap_or_else(|_| Exit::killed());
        if let Ok(cgroup) = container.cgroup() {
            self.tell_oom(&container, oom::oom_kills(cgroup));
            if !container.spec.ends_with_init()
                && let Err(error) = cgroup.kill_all(CGROUP_EMPTY).await
            {
                warn!(container = %container.id, %error, "cannot kill what init left behind");
            }
        }
        let pid = container.init.life.phase().pid();
        // Whatever the phase, an exit is accepted.
        let _accepted = container.init.life.change(Change::Exit(exit));
        container.init.detach();
        info!(container = %container.id, code = exit.code, "exited");
        // Subscribers take the init's exit for the last word about a container.
        for (_, exec) in container.execs.all() {
            if exec.life.phase().living_pid().is_some() {
                let _bounded = tokio::time::timeout(EXECS_END, exec.life.exit()).await;
            }
        }
        report::exited(&self.0.events, &container.id, container.id.as_str(), pid, exit);
    }

    /// Follows an exec to its end.
    pub(super) async fn exec_ended(
        self,
        container: Arc<Container>,
        exec: ExecId,
        process: Arc<Process>,
        pid: u32,
        ended: oneshot::Receiver<Exit>,
    ) {
        let exit = ended.await.unwrap_or_else(|_| Exit::killed());
        let _accepted = process.life.change(Change::Exit(exit));
        process.detach();
        report::exited(&self.0.events, &container.id, exec.as_str(), pid, exit);
    }

    /// Reports OOM kills of processes other than init while the container runs.
    pub(super) fn watch_memory(&self, container: &Arc<Container>, cgroup: &Cgroup) {
        let mut watch = match oom::OomWatch::new(cgroup) {
            Ok(watch) => watch,
            Err(error) => {
                warn!(container = %container.id, %error, "no OOM reports while this container runs");
                return;
            }
        };
        let (containers, container) = (self.clone(), container.clone());
        self.0.tasks.spawn(async move {
            loop {
                tokio::select! {
                    kill = watch.next() => match kill {
                        Some(kills) => containers.tell_oom(&container, kills),
                        None => return,
                    },
                    _ = container.init.life.exit() => return,
                }
            }
        });
    }

    fn tell_oom(&self, container: &Container, kills: u64) {
        if container.is_new_oom(kills) {
            info!(container = %container.id, kills, "out of memory");
            report::out_of_memory(&self.0.events, &container.id);
        }
    }
}
