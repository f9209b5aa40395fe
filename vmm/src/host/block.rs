// SPDX-License-Identifier: Apache-2.0
//! Opens block devices of the host by their numbers, because a container's specification has
//! nothing else.

use magnetar_core::error::{Context, Error, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev, mknodat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::fmt;
use std::os::fd::OwnedFd;

/// A device's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceNumbers {
    /// The driver's number.
    pub major: u32,
    /// The device's number within the driver.
    pub minor: u32,
}

impl fmt::Display for DeviceNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Opens a block device with `O_DIRECT`, which bypasses the host's page cache: for reading and,
/// unless it is `read_only`, for writing.
///
/// Uses a temporary device node on a file system that is mounted nowhere and ends with its
/// descriptor. A path on the host is not used: it may have become another device by now.
///
/// # Errors
/// `NotFound` if there is no such device; errors of the kernel.
pub fn open(device: DeviceNumbers, read_only: bool) -> Result<OwnedFd> {
    let what = || format!("cannot open the block device {device}");
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let opened = unmounted_dir().and_then(|dir| {
        mknodat(&dir, "device", FileType::BlockDevice, Mode::RUSR | Mode::WUSR, makedev(device.major, device.minor))?;
        let opened = openat(&dir, "device", access | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty());
        unlinkat(&dir, "device", AtFlags::empty())?;
        opened
    });
    match opened {
        Err(Errno::NXIO) => Err(Error::not_found(format!("{}: the host has no device with these numbers", what()))),
        opened => opened.context(what),
    }
}

/// An empty directory: the root of a tmpfs that is not mounted (fsopen(2)).
fn unmounted_dir() -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC)
}
