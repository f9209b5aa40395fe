// SPDX-License-Identifier: Apache-2.0
//! A /dev of a program's own: a small tmpfs with the device nodes that the program needs, which
//! belong to its user. So the program needs no right to the host's nodes, whose owner and mode
//! differ from node to node.

use magnetar_core::error::{Context, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chownat, mknodat, stat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use std::os::fd::OwnedFd;
use std::path::Path;

/// The most that it may hold. Nodes take none of it.
const SIZE: &str = "64k";

/// Makes a detached mount with a node for each of the host's devices with these names, for `user`.
///
/// # Errors
/// `NotFound` if the host has no such device; other errors of the kernel.
pub fn make(names: &[&str], user: u32) -> Result<OwnedFd> {
    let what = || "cannot make a /dev for a program of the virtual machine".to_string();
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
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::error::Code;
    use rustix::fs::statat;

    #[test]
    fn nodes_belong_to_the_user() {
        let made = make(&["null"], 2_000_000_001);
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: nodes_belong_to_the_user: only root can make a device node");
        }
        let made = made.unwrap();
        let (node, host) = (statat(&made, "null", AtFlags::SYMLINK_NOFOLLOW).unwrap(), stat("/dev/null").unwrap());
        assert_eq!((node.st_rdev, node.st_uid, node.st_mode & 0o777), (host.st_rdev, 2_000_000_001, 0o600));
        assert_eq!(make(&["no-such-device"], 0).unwrap_err().code(), Code::NotFound);
    }
}
