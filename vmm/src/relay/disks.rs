// SPDX-License-Identifier: Apache-2.0
//! The disks of containers. A disk is attached before the guest learns of it, and detached after
//! the guest stopped using it.

use super::Running;
use crate::hypervisor::connection::WantedDisk;
use magnetar_core::error::{Error, Result};
use magnetar_core::ids::ContainerId;
use magnetar_vm_agent_api::{self as agent, Request};
use std::time::Duration;
use tracing::warn;

/// How long the guest may take to release a disk: it first writes back pending data.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

impl Running {
    /// Attaches a container's disks. Returns their serial numbers, by which the guest finds them.
    ///
    /// # Errors
    /// Those of [`Connection::attach`](crate::hypervisor::connection::Connection::attach).
    /// [`detach`](Self::detach) removes what a failed call has attached.
    pub async fn attach(&self, container: &ContainerId, wanted: Vec<WantedDisk>) -> Result<Vec<agent::Disk>> {
        let mut attached = Vec::new();
        for wanted in wanted {
            let named = |error: Error| Error::new(error.code(), format!("the block device {}: {error}", wanted.device));
            let serial = self.hypervisor.attach(wanted, container).await.map_err(named)?.to_string();
            attached.push(agent::Disk { serial, major: wanted.device.major, minor: wanted.device.minor });
        }
        Ok(attached)
    }

    /// Detaches the disks of a removed container, unless another container has them. Idempotent. If
    /// it fails, the device stays open until the next container is removed, which retries, or the
    /// pod ends.
    pub async fn detach(&self, container: &ContainerId) {
        for disk in self.hypervisor.release(container) {
            // On a separate connection, because it may take long and would delay other requests.
            if let Err(error) = self.guest.ask_on_new_connection(&Request::Release { serial: disk.to_string() }, RELEASE_TIMEOUT).await
                && self.death().is_none()
            {
                warn!(%container, %disk, %error, "the guest did not release a disk that is being detached");
            }
            if let Err(error) = self.hypervisor.detach(disk).await
                && self.death().is_none()
            {
                warn!(%container, %disk, %error, "cannot detach a disk; it stays attached until another container is removed or the pod ends");
            }
        }
    }
}
