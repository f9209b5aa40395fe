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
//!
//! The node is root's, and the hypervisor's group may read it, or also write. So the hypervisor
//! cannot give itself more rights to it. Each disk has a node of its own, also where two are the
//! same device: locks on the one then do not concern the other (fcntl(2)).

use super::DiskId;
use super::connection::WantedDisk;
use crate::host::block::DeviceNumbers;
use magnetar_core::cgroup::devices::{Exceptions, READ, WRITE};
use magnetar_core::confined::own_devices::OwnDevices;
use magnetar_core::error::{Context, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, chmodat, chownat, makedev, mknodat, unlinkat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder of the disks in the hypervisor's /dev. It is there from the start.
pub const FOLDER: &str = "disks";

/// Where the hypervisor finds that folder.
pub const DISKS_DIR: &str = "/dev/disks";

/// Where the hypervisor finds a disk.
pub fn disk_path(disk: DiskId) -> PathBuf {
    Path::new(DISKS_DIR).join(disk.to_string())
}

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
        let given = self.allow(device).and_then(|()| add(&self.devices, disk, device, read_only));
        given.inspect_err(|_| drop(self.take_back(disk)))
    }

    /// Keeps the hypervisor from opening a disk again. Idempotent.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn take_back(&mut self, disk: DiskId) -> Result<()> {
        remove(&self.devices, disk)?;
        self.given.remove(&disk).map_or(Ok(()), |wanted| self.allow(wanted.device))
    }

    /// Allows what the disks that are this device need.
    fn allow(&self, device: DeviceNumbers) -> Result<()> {
        self.exceptions.set_block(device.major, device.minor, access(self.given.values(), device))
    }
}

/// Adds a disk's node.
///
/// # Errors
/// Errors of the kernel. Nothing is left then.
fn add(devices: &OwnDevices, disk: DiskId, device: DeviceNumbers, read_only: bool) -> Result<()> {
    let what = || format!("cannot give the hypervisor a node of the block device {device}");
    let node = in_folder(disk);
    let mode = if read_only { Mode::RGRP } else { Mode::RGRP | Mode::WGRP };
    mknodat(devices, &node, FileType::BlockDevice, Mode::empty(), makedev(device.major, device.minor)).context(what)?;
    let given = chownat(devices, &node, None, Some(Gid::from_raw(devices.user())), AtFlags::SYMLINK_NOFOLLOW);
    given.and_then(|()| chmodat(devices, &node, mode, AtFlags::empty())).context(what).inspect_err(|_| drop(remove(devices, disk)))
}

/// Removes a disk's node. Idempotent.
///
/// # Errors
/// Errors of the kernel.
fn remove(devices: &OwnDevices, disk: DiskId) -> Result<()> {
    match unlinkat(devices, in_folder(disk), AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed.context(|| format!("cannot take away the hypervisor's node of {disk}")),
    }
}

fn in_folder(disk: DiskId) -> PathBuf {
    Path::new(FOLDER).join(disk.to_string())
}

/// The accesses that these disks need to a device.
fn access<'a>(disks: impl Iterator<Item = &'a WantedDisk>, device: DeviceNumbers) -> i32 {
    let needed = disks.filter(|disk| disk.device == device).map(|disk| if disk.read_only { READ } else { READ | WRITE });
    needed.fold(0, |all, access| all | access)
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::confined::own_devices::Contents;
    use rustix::fs::statat;

    const USER: u32 = 2_000_000_001;

    #[test]
    fn a_disks_node_is_roots_and_gives_the_group_only_what_the_disk_allows() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a_disks_node_is_roots_and_gives_the_group_only_what_the_disk_allows: only root can make a device node");
            return;
        }
        let made = OwnDevices::make(&Contents { folders: &[FOLDER], ..Contents::default() }, USER).unwrap();
        let device = DeviceNumbers { major: 7, minor: 3 };
        for (id, read_only, mode) in [(1, true, 0o040), (2, false, 0o060)] {
            add(&made, DiskId(id), device, read_only).unwrap();
            let node = statat(&made, format!("disks/disk-{id}"), AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!((node.st_uid, node.st_gid, node.st_mode & 0o777, node.st_rdev), (0, USER, mode, makedev(7, 3)));
            assert_eq!(disk_path(DiskId(id)), Path::new("/dev/disks").join(format!("disk-{id}")));
        }
        remove(&made, DiskId(1)).unwrap();
        remove(&made, DiskId(1)).unwrap();
        assert!(statat(&made, "disks/disk-1", AtFlags::SYMLINK_NOFOLLOW).is_err());
        assert!(add(&made, DiskId(2), device, true).is_err(), "it is there already");
    }

    #[test]
    fn a_device_may_be_written_as_long_as_one_of_its_disks_needs_it() {
        let disk = |minor, read_only| WantedDisk { device: DeviceNumbers { major: 7, minor }, read_only };
        let device = DeviceNumbers { major: 7, minor: 0 };
        assert_eq!(access([disk(0, true), disk(0, false)].iter(), device), READ | WRITE);
        assert_eq!(access([disk(0, true), disk(1, false)].iter(), device), READ);
        assert_eq!(access([disk(1, false)].iter(), device), 0);
    }
}
