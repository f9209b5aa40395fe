// SPDX-License-Identifier: Apache-2.0
//! Mounts overlays with so many layers that their list does not fit into the page that mount(2)
//! reads.
//!
//! From Linux 6.7 on, the newer interface (fsconfig) takes the layers one by one. On older kernels
//! the list is shortened: the layers' common directory is opened, and the layers are named through
//! its descriptor. The working directory is not changed, because all threads of the process share
//! it.

use super::{DATA_MAX, fd_path, mount_filesystem};
use rustix::fs::{Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Mounts an overlay whose `data` is longer than [`DATA_MAX`] on `target`.
pub(super) fn mount_many_layers(source: &str, flags: MountFlags, data: &[String], target: &OwnedFd) -> io::Result<()> {
    // The first error is not needed: the second way succeeds, or fails for the same reason.
    layer_by_layer(source, flags, data, target).or_else(|_| shortened(source, flags, data, target))
}

fn layer_by_layer(source: &str, flags: MountFlags, data: &[String], target: &OwnedFd) -> io::Result<()> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount};
    let filesystem = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&filesystem, "source", source)?;
    if flags.contains(MountFlags::RDONLY) {
        fsconfig_set_flag(&filesystem, "ro")?;
    }
    for option in data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                for layer in layers_of(layers) {
                    fsconfig_set_string(&filesystem, "lowerdir+", layer)?;
                }
            }
            Some((key, value)) => fsconfig_set_string(&filesystem, key, value)?,
            None => fsconfig_set_flag(&filesystem, option.as_str())?,
        }
    }
    fsconfig_create(&filesystem)?;
    let mount = fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes(flags))?;
    move_mount(&mount, "", target, "", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
}

fn shortened(source: &str, flags: MountFlags, data: &[String], target: &OwnedFd) -> io::Result<()> {
    let directory = common_directory(data).ok_or(Errno::TOOBIG)?;
    let opened = rustix::fs::open(&directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let data = shorten(data, &directory, &fd_path(&opened));
    if data.iter().map(|option| option.len() + 1).sum::<usize>() > DATA_MAX {
        return Err(Errno::TOOBIG);
    }
    mount_filesystem("overlay", source, flags, &data, target)
}

/// The directories of a `lowerdir` value, top one first. A colon inside a name is escaped by a
/// backslash.
fn layers_of(list: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    list.split(move |letter| {
        let boundary = letter == ':' && !escaped;
        escaped = letter == '\\' && !escaped;
        boundary
    })
}

/// The deepest directory above all layers; `None` if that is the root.
fn common_directory(data: &[String]) -> Option<PathBuf> {
    let mut layers = data.iter().filter_map(|option| option.strip_prefix("lowerdir=")).flat_map(layers_of).map(Path::new);
    let mut common = layers.next()?.parent()?.to_owned();
    for layer in layers {
        while !layer.starts_with(&common) {
            common.pop();
        }
    }
    (common.is_absolute() && common.parent().is_some()).then_some(common)
}

/// Replaces `directory` by `short` at the start of every layer.
fn shorten(data: &[String], directory: &Path, short: &str) -> Vec<String> {
    let shorten_layer = |layer: &str| match Path::new(layer).strip_prefix(directory) {
        Ok(rest) => format!("{short}/{}", rest.display()),
        Err(_) => layer.to_owned(),
    };
    data.iter()
        .map(|option| match option.strip_prefix("lowerdir=") {
            Some(layers) => format!("lowerdir={}", layers_of(layers).map(shorten_layer).collect::<Vec<_>>().join(":")),
            None => option.clone(),
        })
        .collect()
}

/// The flags of the mount, as opposed to those of the filesystem, for fsmount(2).
fn attributes(flags: MountFlags) -> MountAttrFlags {
    [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (MountFlags::NOSYMFOLLOW, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .fold(MountAttrFlags::empty(), |attributes, (_, attribute)| attributes | attribute)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::tests::in_private_mounts;

    #[test]
    fn layers_split_at_plain_colons() {
        assert_eq!(layers_of(r"/a:/b\:c:/d\\:/e").collect::<Vec<_>>(), ["/a", r"/b\:c", r"/d\\", "/e"]);
    }

    #[test]
    fn the_common_directory_is_that_of_all_layers() {
        let of = |list: &str| common_directory(&["index=off".to_owned(), format!("lowerdir={list}")]);
        assert_eq!(of("/s/snapshots/12/fs:/s/snapshots/1/fs"), Some(PathBuf::from("/s/snapshots")));
        assert_eq!(of("/s/one/fs"), Some(PathBuf::from("/s/one")));
        assert_eq!(of("/a/fs:/b/fs"), None);
        assert_eq!(of("a/fs:a/gs"), None);
    }

    #[test]
    fn only_layers_below_the_directory_are_shortened() {
        let data = ["workdir=/s/9/work".to_owned(), "lowerdir=/s/1/fs:/t/2:/ss/3".to_owned()];
        assert_eq!(shorten(&data, Path::new("/s"), "/proc/self/fd/7"), ["workdir=/s/9/work", "lowerdir=/proc/self/fd/7/1/fs:/t/2:/ss/3"]);
    }

    #[test]
    fn both_ways_mount_more_layers_than_a_page_holds() {
        in_private_mounts(|scratch| {
            let deep = scratch.join("a-rather-long-name-for-a-directory-of-layers".repeat(2));
            let mut layers = Vec::new();
            for number in 0..60 {
                let layer = deep.join(number.to_string());
                std::fs::create_dir_all(&layer).unwrap();
                std::fs::write(layer.join(format!("file{number}")), "").unwrap();
                layers.push(layer.display().to_string());
            }
            let data = [format!("lowerdir={}", layers.join(":"))];
            assert!(data[0].len() > DATA_MAX);
            let target = scratch.join("merged");
            std::fs::create_dir(&target).unwrap();
            for way in [layer_by_layer, shortened] {
                let opened = crate::mount::open_target(&target).unwrap();
                way("overlay", MountFlags::RDONLY | MountFlags::NODEV, &data, &opened).unwrap();
                assert!(target.join("file0").exists() && target.join("file59").exists());
                let written = std::fs::write(target.join("new"), "").unwrap_err();
                assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
                crate::mount::unmount(&target).unwrap();
            }
        });
    }
}
