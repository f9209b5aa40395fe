// SPDX-License-Identifier: Apache-2.0
//! A program where nobody who runs it can write to it.
//!
//! A container that gets hold of `/proc/<pid>/exe` of a process that is about to become its program
//! could otherwise overwrite the host's file (CVE-2019-5736). Through a mount of its own that is
//! read-only there is no way to it, and nothing has to be copied.

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// The file at `path` on a read-only mount that is nowhere attached. To be run as `/proc/self/fd/N`.
///
/// # Errors
/// What the kernel says: it has the calls since 5.12, and wants CAP_SYS_ADMIN.
pub fn read_only(path: &Path) -> io::Result<OwnedFd> {
    of_tree(open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

/// An open file once more, for reading, where opening it again through `/proc/<pid>/fd` cannot make it writable.
///
/// # Errors
/// As for [`read_only`].
pub fn reopen(file: &File) -> io::Result<File> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = of_tree(open_tree(file, c"", flags)?)?;
    File::open(format!("/proc/self/fd/{}", tree.as_raw_fd()))
}

fn of_tree(tree: OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: a `mount_attr` is four numbers, for which zeros are valid.
    let mut attributes = unsafe { std::mem::zeroed::<libc::mount_attr>() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY;
    // SAFETY: the path is empty and ends with a zero, and the structure lives through the call, with its own size.
    let changed = unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, &attributes, size_of_val(&attributes))
    };
    if changed < 0 { Err(io::Error::last_os_error()) } else { Ok(tree) }
}
