// SPDX-License-Identifier: Apache-2.0
//! A /dev of a program's own: a small tmpfs with the device nodes that the program needs. So the
//! program needs no right to the host's nodes, whose owner and mode differ from node to node.

use crate::error::{Context, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mkdirat, mknodat, stat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The most that it may hold. Nodes take none of it.
const SIZE: &str = "64k";

/// What is in it from the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The host's devices, by their names in /dev.
    pub devices: &'static [&'static str],
    /// Empty folders, which are root's: the program cannot change what is put in them.
    pub folders: &'static [&'static str],
    /// Devices that somebody else has chosen. What may be done with them is the cgroup's to say.
    pub nodes: Vec<Node>,
}

/// A character device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its path below /dev, of names only.
    pub path: PathBuf,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
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
    pub fn make(contents: &Contents, user: u32) -> Result<Self> {
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
            make_node(&mount, Path::new(name), device, user).context(what)?;
        }
        for folder in contents.folders {
            make_folder(&mount, Path::new(folder)).context(what)?;
        }
        for Node { path, major, minor } in &contents.nodes {
            let what = || format!("{}: {} as /dev/{}", what(), format_args!("{major}:{minor}"), path.display());
            let parents: Vec<_> = path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
            for parent in parents.into_iter().rev() {
                match make_folder(&mount, parent) {
                    // Several devices may be in one folder.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error).context(what),
                }
            }
            make_node(&mount, path, makedev(*major, *minor), user).context(what)?;
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

fn make_node(mount: &OwnedFd, path: &Path, device: u64, user: u32) -> rustix::io::Result<()> {
    mknodat(mount, path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device)?;
    chownat(mount, path, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)), AtFlags::SYMLINK_NOFOLLOW)
}

fn make_folder(mount: &OwnedFd, path: &Path) -> rustix::io::Result<()> {
    mkdirat(mount, path, Mode::RWXU)?;
    // What mkdirat(2) makes is subject to this process's umask.
    chmodat(mount, path, Mode::from_raw_mode(0o755), AtFlags::empty())
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
        let node = |path: &str, minor| Node { path: path.into(), major: 1, minor };
        let nodes = vec![node("dri/card0", 7), node("dri/by-path/one", 5)];
        let contents = Contents { devices: &["null"], folders: &["disks"], nodes };
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: nodes_belong_to_the_user_and_folders_to_root: only root can make a device node");
            return;
        }
        let made = OwnDevices::make(&contents, USER).unwrap();
        let (node, host) = (statat(&made, "null", AtFlags::SYMLINK_NOFOLLOW).unwrap(), stat("/dev/null").unwrap());
        assert_eq!((node.st_rdev, node.st_uid, node.st_mode & 0o777), (host.st_rdev, USER, 0o600));
        let folder = statat(&made, "disks", AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!((folder.st_uid, folder.st_mode & 0o777), (0, 0o755));
        for (path, device) in [("dri/card0", makedev(1, 7)), ("dri/by-path/one", makedev(1, 5))] {
            let chosen = statat(&made, path, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!((chosen.st_rdev, chosen.st_uid, chosen.st_mode & 0o777), (device, USER, 0o600), "{path}");
        }
        let absent = Contents { devices: &["no-such-device"], ..Contents::default() };
        assert_eq!(OwnDevices::make(&absent, 0).unwrap_err().code(), Code::NotFound);
    }
}
