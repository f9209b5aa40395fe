// SPDX-License-Identifier: Apache-2.0
//! Attaches disks to a running machine, and detaches them.
//!
//! ```text
//! attach   vm.add-disk: it opens the node that it has been given in its own /dev, and plugs a PCI card
//! detach   vm.remove-device ─> the guest lets go of the card (ACPI) ─> it closes the node
//! ```
//!
//! Its API takes the path of a disk, and no open descriptor. It locks what it opens, exclusively
//! unless the disk is read-only. The lock is on the node, and each disk has its own
//! (`own_devices`).
//!
//! It recognises the formats of disk images by itself. A device that holds such an image is
//! refused, because the guest would choose the format that the host reads.

use super::api::Api;
use crate::hypervisor::disk_nodes::disk_path;
use crate::hypervisor::{Disk, DiskId};
use magnetar_core::error::{Code, Error, Result};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The oldest version that can be told that a disk is no image (`image_type`).
pub const LEAST_CLOUD_HYPERVISOR: u32 = 51;

/// How long the guest may take to let go of a disk, in software emulation on a busy host.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(15);

/// The interval between questions whether it has.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// The disks that the guest was asked to let go of.
#[derive(Debug, Default)]
pub struct Disks {
    leaving: BTreeSet<DiskId>,
}

/// Attaches `disk`, which has a node in Cloud Hypervisor's own /dev.
///
/// # Errors
/// Errors of Cloud Hypervisor. Nothing of the disk is left then.
pub async fn attach(api: &Api, disk: &Disk) -> Result<()> {
    let name = disk.id.to_string();
    let order = json!({
        "path": disk_path(disk.id),
        "id": name,
        "serial": name,
        "readonly": disk.read_only,
        // Past the host's page cache, which would count as the pod's memory and duplicate the
        // guest's cache.
        "direct": true,
        "image_type": "Raw",
    });
    api.order("vm.add-disk", &order).await
}

impl Disks {
    /// Detaches a disk.
    ///
    /// # Errors
    /// Errors of Cloud Hypervisor, and `DeadlineExceeded` if the guest does not let go of it. The
    /// call can be repeated.
    pub async fn detach(&mut self, api: &Api, disk: DiskId) -> Result<()> {
        let name = disk.to_string();
        // A second order would be refused. The guest may take its time.
        if !self.leaving.contains(&disk) {
            api.order("vm.remove-device", &json!({ "id": name })).await?;
            self.leaving.insert(disk);
        }
        let end = Instant::now() + LET_GO_TIMEOUT;
        while api.has_device(&name).await? {
            if Instant::now() >= end {
                let what = format!("the guest has not let go of {name} within {LET_GO_TIMEOUT:?}");
                return Err(Error::new(Code::DeadlineExceeded, what));
            }
            sleep(ASK_AGAIN).await;
        }
        api.settle().await?;
        self.leaving.remove(&disk);
        Ok(())
    }
}
