// SPDX-License-Identifier: Apache-2.0
//! Id-mapped mounts, by which a pod with a user namespace owns the files of its image.
//!
//! containerd's overlay snapshotter asks for them with the options `uidmap=` and `gidmap=`
//! (`inside:outside:count`, several with commas). The upper directory belongs to the pod's root
//! already. The lower directories are shared with other pods, so they are mounted from an id-mapped
//! copy of their mount. The overlay keeps that copy alive. So the copy is mounted in the bundle,
//! beside the target, only until the overlay is made.

use super::{Kind, Mount, unmount};
use crate::error::{Context, Error, Result};
use magnetar_sys::namespace;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The maps of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdMaps {
    uids: String,
    gids: String,
}

impl IdMaps {
    /// The maps among the options, if there are any.
    ///
    /// # Errors
    /// `InvalidArgument` for one map without the other, and for an invalid map.
    pub(super) fn parse(options: &[String]) -> Result<Option<Self>> {
        let map = |prefix: &str| options.iter().rev().find_map(|option| option.strip_prefix(prefix));
        match (map("uidmap="), map("gidmap=")) {
            (None, None) => Ok(None),
            (Some(uids), Some(gids)) => Ok(Some(Self { uids: lines(uids)?, gids: lines(gids)? })),
            (Some(_), None) | (None, Some(_)) => Err(Error::invalid("a mount has to have both uidmap= and gidmap=, or none of them")),
        }
    }

    /// Makes the mount with these maps.
    pub(super) fn mount_at(&self, mount: &Mount, target: &Path) -> Result<()> {
        let plain = Mount { ids: None, ..mount.clone() };
        match &mount.kind {
            Kind::Filesystem(kind) if kind == "overlay" => self.overlay_at(plain, target),
            Kind::Filesystem(_) | Kind::Bind => {
                plain.mount_at(target)?;
                self.copy_mapped(target, target)
            }
        }
    }

    fn overlay_at(&self, mut overlay: Mount, target: &Path) -> Result<()> {
        let Some(lower) =
            overlay.data.iter_mut().find_map(|option| option.strip_prefix("lowerdir=").map(str::to_owned).map(|dirs| (option, dirs)))
        else {
            return Err(Error::invalid("an overlay with uidmap= has no lowerdir="));
        };
        let (option, dirs) = lower;
        let dirs: Vec<&Path> = dirs.split(':').map(Path::new).collect();
        let common = common_parent(&dirs)?;
        let copy = target.with_file_name(".mapped-layers");
        std::fs::create_dir_all(&copy).context(|| format!("cannot make {}", copy.display()))?;
        let mapped: Vec<String> =
            dirs.iter().map(|dir| copy.join(dir.strip_prefix(&common).unwrap_or(dir)).display().to_string()).collect();
        *option = format!("lowerdir={}", mapped.join(":"));
        let mounted = self.copy_mapped(&common, &copy).and_then(|()| overlay.mount_at(target));
        // Also if the overlay failed. If the copy cannot be unmounted, it stays in the bundle,
        // where clean-up finds it.
        unmount(&copy)?;
        std::fs::remove_dir(&copy).context(|| format!("cannot remove {}", copy.display()))?;
        mounted
    }

    /// Mounts a copy of `source` with mapped ids at `target`.
    fn copy_mapped(&self, source: &Path, target: &Path) -> Result<()> {
        let what = || format!("cannot map the ids of {}", source.display());
        let user_namespace = namespace::user_namespace(&self.uids, &self.gids).context(what)?;
        let copy: OwnedFd =
            rustix::mount::open_tree(CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).context(what)?;
        namespace::map_ids(&copy, &user_namespace).context(what)?;
        rustix::mount::move_mount(&copy, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context(what)
    }
}

/// `inside:outside:count,…` as the lines of a uid_map.
fn lines(map: &str) -> Result<String> {
    let line = |entry: &str| {
        let mut numbers = entry.split(':').map(|number| number.parse::<u32>().ok());
        match (numbers.next().flatten(), numbers.next().flatten(), numbers.next().flatten(), numbers.next()) {
            (Some(inside), Some(outside), Some(count), None) if count > 0 => Ok(format!("{inside} {outside} {count}\n")),
            _ => Err(Error::invalid(format!("{entry:?} is not an id map of the form inside:outside:count"))),
        }
    };
    map.split(',').map(line).collect()
}

/// The directory above all layers; for a single layer, that layer.
fn common_parent(dirs: &[&Path]) -> Result<PathBuf> {
    let mut common = dirs.first().map(|dir| dir.to_path_buf()).unwrap_or_default();
    while !dirs.iter().all(|dir| dir.starts_with(&common)) {
        if !common.pop() {
            break;
        }
    }
    if !common.is_absolute() || common.parent().is_none() {
        return Err(Error::invalid(format!("the layers {dirs:?} have no directory in common that could be mapped")));
    }
    Ok(common)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_become_lines() {
        assert_eq!(lines("0:100000:65536").unwrap(), "0 100000 65536\n");
        assert_eq!(lines("0:1:2,3:4:5").unwrap(), "0 1 2\n3 4 5\n");
        for wrong in ["", "0:1", "0:1:0", "0:1:2:3", "a:b:c", "0:1:2,", "-1:0:1", "0:4294967296:1"] {
            assert!(lines(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_map_alone_is_refused() {
        let options = |options: &[&str]| options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
        assert_eq!(IdMaps::parse(&options(&["ro", "lowerdir=/a"])).unwrap(), None);
        assert!(IdMaps::parse(&options(&["uidmap=0:1:2"])).is_err());
        assert!(IdMaps::parse(&options(&["uidmap=0:1:2", "gidmap=0:3:4"])).unwrap().is_some());
    }

    #[test]
    fn layers_have_a_directory_in_common() {
        let common = |dirs: &[&str]| common_parent(&dirs.iter().map(Path::new).collect::<Vec<_>>());
        assert_eq!(common(&["/s/1/fs", "/s/22/fs"]).unwrap(), Path::new("/s"));
        assert_eq!(common(&["/s/1/fs"]).unwrap(), Path::new("/s/1/fs"));
        assert!(common(&["/a/1", "/b/2"]).is_err());
        assert!(common(&["a", "b"]).is_err());
        assert!(common(&[]).is_err());
    }
}
