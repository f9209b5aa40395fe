// SPDX-License-Identifier: Apache-2.0
//! Block devices of the host: opened by their numbers, which is all that a container's specification says about them.

use magnetar_core::error::{Context, Error, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev, mknodat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::fmt;
use std::os::fd::OwnedFd;

/// A device's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Numbers {
    /// Its driver's.
    pub major: u32,
    /// Which of the driver's.
    pub minor: u32,
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Opens a block device, for reading, and for writing unless it is to be `read_only`, past the host's page cache (`O_DIRECT`).
///
/// By a node of our own, on a file system that is mounted nowhere and goes with its descriptor: where the host has a node for the
/// device is its own affair, and what is at that place may be another device when we come to look.
///
/// # Errors
/// `NotFound` where there is no such device, and what the kernel says.
pub fn open(device: Numbers, read_only: bool) -> Result<OwnedFd> {
    let what = || format!("cannot open the block device {device}");
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let opened = nowhere().and_then(|dir| {
        mknodat(&dir, "device", FileType::BlockDevice, Mode::RUSR | Mode::WUSR, makedev(device.major, device.minor))?;
        let opened = openat(&dir, "device", access | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty());
        unlinkat(&dir, "device", AtFlags::empty())?;
        opened
    });
    match opened {
        Err(Errno::NXIO) => Err(Error::not_found(format!("{}: the host has none of these numbers", what()))),
        opened => opened.context(what),
    }
}

/// An empty directory, the root of a tmpfs (fsopen(2)).
fn nowhere() -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC)
}
