// SPDX-License-Identifier: Apache-2.0
//! A /dev of a program's own: a small tmpfs with the device nodes that the program needs. So the
//! program needs no right to the host's nodes, whose owner and mode differ from node to node.
//!
//! ```text
//! /dev/kvm            from the start: it belongs to the program's user
//! /dev/disks/disk-1   while the machine has the disk: the user's group may read it, or also write
//! ```
//!
//! Disks are for hypervisors that take no open descriptor for one. The node is root's, so the
//! program cannot give itself more rights to it. Each disk has a node of its own, also where two
//! are the same device: locks on the one then do not concern the other (fcntl(2)).

use crate::host::block::DeviceNumbers;
use crate::hypervisor::DiskId;
use magnetar_core::error::{Context, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mkdirat, mknodat, stat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The most that it may hold. Nodes take none of it.
const SIZE: &str = "64k";

/// The folder of the disks.
const DISKS: &str = "disks";

/// The folder in which the program finds its disks. It is there from the start.
pub const DISKS_DIR: &str = "/dev/disks";

/// Where the program finds a disk.
pub fn disk_path(disk: DiskId) -> PathBuf {
    Path::new(DISKS_DIR).join(disk.to_string())
}

/// The /dev of a program.
#[derive(Debug)]
pub struct OwnDevices {
    mount: OwnedFd,
    user: u32,
}

impl OwnDevices {
    /// Makes a detached mount with a node for each of the host's devices with these names, for
    /// `user`.
    ///
    /// # Errors
    /// `NotFound` if the host has no such device; other errors of the kernel.
    pub fn make(names: &[&str], user: u32) -> Result<Self> {
        let config = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context(what)?;
        for (key, value) in [("size", SIZE), ("mode", "0755")] {
            fsconfig_set_string(&config, key, value).context(what)?;
        }
        fsconfig_create(&config).context(what)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&config, FsMountFlags::FSMOUNT_CLOEXEC, attributes).context(what)?;
        for name in names {
            let host = Path::new("/dev").join(name);
            let what = || format!("{}: {}", what(), host.display());
            let device = stat(&host).context(what)?.st_rdev;
            mknodat(&mount, *name, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device).context(what)?;
            chownat(&mount, *name, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)), AtFlags::SYMLINK_NOFOLLOW).context(what)?;
        }
        mkdirat(&mount, DISKS, Mode::RWXU).context(what)?;
        // What these calls make is subject to this process's umask.
        chmodat(&mount, DISKS, Mode::from_raw_mode(0o755), AtFlags::empty()).context(what)?;
        Ok(Self { mount, user })
    }

    /// The mount, to be moved to its place.
    ///
    /// # Errors
    /// If this process has too many open files.
    pub fn mount(&self) -> Result<OwnedFd> {
        self.mount.try_clone().context(what)
    }

    /// Adds a disk's node.
    ///
    /// # Errors
    /// Errors of the kernel. Nothing is left then.
    pub fn add(&self, disk: DiskId, device: DeviceNumbers, read_only: bool) -> Result<()> {
        let what = || format!("cannot give the hypervisor a node of the block device {device}");
        let node = in_disks(disk);
        let mode = if read_only { Mode::RGRP } else { Mode::RGRP | Mode::WGRP };
        mknodat(&self.mount, &node, FileType::BlockDevice, Mode::empty(), makedev(device.major, device.minor)).context(what)?;
        let given = chownat(&self.mount, &node, None, Some(Gid::from_raw(self.user)), AtFlags::SYMLINK_NOFOLLOW);
        given.and_then(|()| chmodat(&self.mount, &node, mode, AtFlags::empty())).context(what).inspect_err(|_| drop(self.remove(disk)))
    }

    /// Removes a disk's node. Idempotent.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn remove(&self, disk: DiskId) -> Result<()> {
        match unlinkat(&self.mount, in_disks(disk), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed.context(|| format!("cannot take away the hypervisor's node of {disk}")),
        }
    }
}

impl AsFd for OwnDevices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

fn in_disks(disk: DiskId) -> PathBuf {
    Path::new(DISKS).join(disk.to_string())
}

fn what() -> String {
    "cannot make a /dev for a program of the virtual machine".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::error::Code;
    use rustix::fs::statat;

    const USER: u32 = 2_000_000_001;

    fn made(test: &str) -> Option<OwnDevices> {
        let made = OwnDevices::make(&["null"], USER);
        if rustix::process::geteuid().is_root() {
            return Some(made.unwrap());
        }
        eprintln!("skipped: {test}: only root can make a device node");
        None
    }

    #[test]
    fn nodes_belong_to_the_user() {
        let Some(made) = made("nodes_belong_to_the_user") else { return };
        let (node, host) = (statat(&made, "null", AtFlags::SYMLINK_NOFOLLOW).unwrap(), stat("/dev/null").unwrap());
        assert_eq!((node.st_rdev, node.st_uid, node.st_mode & 0o777), (host.st_rdev, USER, 0o600));
        assert_eq!(OwnDevices::make(&["no-such-device"], 0).unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn a_disks_node_is_roots_and_gives_the_group_only_what_the_disk_allows() {
        let Some(made) = made("a_disks_node_is_roots_and_gives_the_group_only_what_the_disk_allows") else { return };
        let device = DeviceNumbers { major: 7, minor: 3 };
        for (id, read_only, mode) in [(1, true, 0o040), (2, false, 0o060)] {
            made.add(DiskId(id), device, read_only).unwrap();
            let node = statat(&made, format!("disks/disk-{id}"), AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!((node.st_uid, node.st_gid, node.st_mode & 0o777, node.st_rdev), (0, USER, mode, makedev(7, 3)));
            assert_eq!(disk_path(DiskId(id)), Path::new("/dev/disks").join(format!("disk-{id}")));
        }
        made.remove(DiskId(1)).unwrap();
        made.remove(DiskId(1)).unwrap();
        assert!(statat(&made, "disks/disk-1", AtFlags::SYMLINK_NOFOLLOW).is_err());
        assert!(made.add(DiskId(2), device, true).is_err(), "it is there already");
    }
}
