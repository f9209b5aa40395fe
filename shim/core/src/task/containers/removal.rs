// SPDX-License-Identifier: Apache-2.0
//! How containers and execs are removed.

use super::{CGROUP_EMPTY, Containers};
use crate::error::Result;
use crate::events::Event;
use crate::ids::{ContainerId, ExecId};
use crate::mount;
use crate::process::Phase;
use crate::reaper::Exit;
use crate::runtime::Runtime;
use crate::sandbox::run_last_hooks;
use crate::task::container::Container;
use crate::task::mark_deleted;
use tracing::warn;

impl<R: Runtime> Containers<R> {
    /// [`Tasks::delete`](crate::task::Tasks::delete).
    pub(super) async fn delete_process(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<(u32, Exit)> {
        let container = self.get(id)?;
        let process = container.process(exec)?;
        let pid = process.life.phase().pid();
        if exec.is_none() && matches!(process.life.phase(), Phase::Created { .. }) {
            self.kill_init(&container, pid).await;
            process.life.exit().await;
        }
        let exit = mark_deleted(id, exec, &process.life)?;
        if let Some(exec) = exec {
            process.end_outputs().await;
            process.logging.finish().await;
            container.execs.remove(exec);
            return Ok((pid, exit));
        }
        self.unmake(&container).await?;
        self.0.events.publish(Event::Deleted { container: id.clone(), pid, exit });
        Ok((pid, exit))
    }

    /// Removes everything that was made for a container, in reverse order. Idempotent.
    pub(super) async fn unmake(&self, container: &Container) -> Result<()> {
        self.0.runtime.delete(&container.id).await?;
        if let Some(rootfs) = &container.rootfs {
            mount::unmount(rootfs)?;
        }
        if let Some(cgroup) = container.cgroup() {
            // Processes that survived a failed start are of no use.
            cgroup.kill_all(CGROUP_EMPTY).await?;
            cgroup.remove(CGROUP_EMPTY).await?;
        }
        self.0.pod.remove_container(&container.id)?;
        container.init.detach();
        container.init.logging.finish().await;
        self.0.containers.remove(&container.id);
        self.0.idle.soon();
        Ok(())
    }

    /// Runs the last hooks of a container that could not be made, unless its runtime does.
    /// Otherwise things that earlier hooks made, such as a network, would stay forever.
    pub(super) async fn undo_hooks(&self, container: &Container) {
        if self.0.runtime.undoes_hooks() {
            return;
        }
        if let Err(error) = run_last_hooks(&container.id, &container.bundle, &self.0.reaper).await {
            warn!(container = %container.id, %error, "a poststop hook of a container that could not be made failed; something may be left");
        }
    }
}
