// SPDX-License-Identifier: Apache-2.0
//! A /dev of a program's own: a small tmpfs with the device nodes that the program needs. So the
//! program needs no right to the host's nodes, whose owner and mode differ from node to node.

use crate::error::{Context, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, mkdirat, mknodat, stat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The most that it may hold. Nodes take none of it.
const SIZE: &str = "64k";

/// What is in it from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// The host's devices, by their names in /dev.
    pub devices: &'static [&'static str],
    /// Empty folders, which are root's: the program cannot change what is put in them.
    pub folders: &'static [&'static str],
}

/// The /dev of a program.
#[derive(Debug)]
pub struct OwnDevices {
    mount: OwnedFd,
    user: u32,
}

impl OwnDevices {
    /// Makes a detached mount with these contents, for `user`.
    ///
    /// # Errors
    /// `NotFound` if the host has no such device; other errors of the kernel.
    pub fn make(contents: Contents, user: u32) -> Result<Self> {
        let config = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context(what)?;
        for (key, value) in [("size", SIZE), ("mode", "0755")] {
            fsconfig_set_string(&config, key, value).context(what)?;
        }
        fsconfig_create(&config).context(what)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&config, FsMountFlags::FSMOUNT_CLOEXEC, attributes).context(what)?;
        for name in contents.devices {
            let host = Path::new("/dev").join(name);
            let what = || format!("{}: {}", what(), host.display());
            let device = stat(&host).context(what)?.st_rdev;
            mknodat(&mount, *name, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device).context(what)?;
            chownat(&mount, *name, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)), AtFlags::SYMLINK_NOFOLLOW).context(what)?;
        }
        for folder in contents.folders {
            mkdirat(&mount, *folder, Mode::RWXU).context(what)?;
            // What these calls make is subject to this process's umask.
            chmodat(&mount, *folder, Mode::from_raw_mode(0o755), AtFlags::empty()).context(what)?;
        }
        Ok(Self { mount, user })
    }

    /// The mount, to be moved to its place.
    ///
    /// # Errors
    /// If this process has too many open files.
    pub fn mount(&self) -> Result<OwnedFd> {
        self.mount.try_clone().context(what)
    }

    /// The program's user, and its group.
    pub fn user(&self) -> u32 {
        self.user
    }
}

impl AsFd for OwnDevices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

fn what() -> String {
    "cannot make a /dev for a helper program".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use rustix::fs::statat;

    const USER: u32 = 2_000_000_001;

    #[test]
    fn nodes_belong_to_the_user_and_folders_to_root() {
        let contents = Contents { devices: &["null"], folders: &["disks"] };
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: nodes_belong_to_the_user_and_folders_to_root: only root can make a device node");
            return;
        }
        let made = OwnDevices::make(contents, USER).unwrap();
        let (node, host) = (statat(&made, "null", AtFlags::SYMLINK_NOFOLLOW).unwrap(), stat("/dev/null").unwrap());
        assert_eq!((node.st_rdev, node.st_uid, node.st_mode & 0o777), (host.st_rdev, USER, 0o600));
        let folder = statat(&made, "disks", AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!((folder.st_uid, folder.st_mode & 0o777), (0, 0o755));
        let absent = Contents { devices: &["no-such-device"], folders: &[] };
        assert_eq!(OwnDevices::make(absent, 0).unwrap_err().code(), Code::NotFound);
    }
}
