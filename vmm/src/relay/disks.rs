// SPDX-License-Identifier: Apache-2.0
//! The disks of containers: attached before the guest is told of one, detached when it has let go of it.

use super::Running;
use crate::hypervisor::connection::Wanted;
use magnetar_core::error::{Error, Result};
use magnetar_core::ids::ContainerId;
use magnetar_vm_agent_api::{self as agent, Request};
use std::time::Duration;
use tracing::warn;

/// How long the guest may take to let go of a disk: it writes what it has not written yet.
const LETS_GO: Duration = Duration::from_secs(30);

impl Running {
    /// Attaches what a container wants, and says by which serial number its guest finds each.
    ///
    /// # Errors
    /// Those of [`Connection::attach`](crate::hypervisor::connection::Connection::attach). What a failed call has attached,
    /// [`detach`](Self::detach) takes away.
    pub async fn attach(&self, container: &ContainerId, wanted: Vec<Wanted>) -> Result<Vec<agent::Disk>> {
        let mut attached = Vec::new();
        for wanted in wanted {
            let named = |error: Error| Error::new(error.code(), format!("the block device {}: {error}", wanted.device));
            let serial = self.hypervisor.attach(wanted, container).await.map_err(named)?.to_string();
            attached.push(agent::Disk { serial, major: wanted.device.major, minor: wanted.device.minor });
        }
        Ok(attached)
    }

    /// Takes away the disks of a container that is gone, unless another one has them. Idempotent. What fails leaves the device
    /// open until it is tried again, when the next container goes, or the pod ends.
    pub async fn detach(&self, container: &ContainerId) {
        for disk in self.hypervisor.leave(container) {
            // On a connection of its own: it may take long, and others have something to ask, too.
            if let Err(error) = self.guest.ask_apart(&Request::Release { serial: disk.to_string() }, LETS_GO).await
                && self.death().is_none()
            {
                warn!(%container, %disk, %error, "the guest does not let go of a disk that is taken away");
            }
            if let Err(error) = self.hypervisor.detach(disk).await
                && self.death().is_none()
            {
                warn!(%container, %disk, %error, "a disk stays attached, until another container goes or the pod ends");
            }
        }
    }
}
