// SPDX-License-Identifier: Apache-2.0
//! The block devices that a hypervisor may open, for one that takes a disk's path and no open
//! descriptor.
//!
//! ```text
//! give       the pod's cgroup may use the device ─> a node of it in the hypervisor's own /dev
//! take back  no node any more ─> the cgroup may use the device only as far as other disks need it
//! ```
//!
//! Both are needed to open a device: so a hypervisor that its guest has taken over reaches its
//! pod's disks, and no other device of the host.

use super::DiskId;
use super::connection::WantedDisk;
use crate::host::block::DeviceNumbers;
use crate::machine::own_devices::OwnDevices;
use magnetar_core::cgroup::devices::{Exceptions, READ, WRITE};
use magnetar_core::error::Result;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one hypervisor was given.
#[derive(Debug)]
pub struct DiskNodes {
    devices: Arc<OwnDevices>,
    exceptions: Arc<Exceptions>,
    given: BTreeMap<DiskId, WantedDisk>,
}

impl DiskNodes {
    /// Nothing yet. `devices` is the hypervisor's /dev, and `exceptions` those of its cgroup.
    pub fn new(devices: Arc<OwnDevices>, exceptions: Arc<Exceptions>) -> Self {
        Self { devices, exceptions, given: BTreeMap::new() }
    }

    /// Lets the hypervisor open a disk.
    ///
    /// # Errors
    /// Errors of the kernel. Nothing is given then.
    pub fn give(&mut self, disk: DiskId, wanted: WantedDisk) -> Result<()> {
        self.given.insert(disk, wanted);
        let WantedDisk { device, read_only } = wanted;
        let given = self.allow(device).and_then(|()| self.devices.add(disk, device, read_only));
        given.inspect_err(|_| drop(self.take_back(disk)))
    }

    /// Keeps the hypervisor from opening a disk again. Idempotent.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn take_back(&mut self, disk: DiskId) -> Result<()> {
        self.devices.remove(disk)?;
        self.given.remove(&disk).map_or(Ok(()), |wanted| self.allow(wanted.device))
    }

    /// Allows what the disks that are this device need.
    fn allow(&self, device: DeviceNumbers) -> Result<()> {
        self.exceptions.set_block(device.major, device.minor, access(self.given.values(), device))
    }
}

/// The accesses that these disks need to a device.
fn access<'a>(disks: impl Iterator<Item = &'a WantedDisk>, device: DeviceNumbers) -> i32 {
    let needed = disks.filter(|disk| disk.device == device).map(|disk| if disk.read_only { READ } else { READ | WRITE });
    needed.fold(0, |all, access| all | access)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_may_be_written_as_long_as_one_of_its_disks_needs_it() {
        let disk = |minor, read_only| WantedDisk { device: DeviceNumbers { major: 7, minor }, read_only };
        let device = DeviceNumbers { major: 7, minor: 0 };
        assert_eq!(access([disk(0, true), disk(0, false)].iter(), device), READ | WRITE);
        assert_eq!(access([disk(0, true), disk(1, false)].iter(), device), READ);
        assert_eq!(access([disk(1, false)].iter(), device), 0);
    }
}
