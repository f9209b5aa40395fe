// SPDX-License-Identifier: Apache-2.0
//! Opens a program's file so that a container that runs the program cannot write to the file.
//!
//! A process that enters a container runs a program of the host until it becomes the container's
//! program. Through `/proc/<pid>/exe` the container could overwrite the host's file
//! (CVE-2019-5736). A read-only mount of the file prevents that without a copy.

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Opens the file at `path` through a detached, read-only mount. Run it as `/proc/self/fd/N`.
///
/// # Errors
/// The kernel's error. The calls need Linux 5.12 and CAP_SYS_ADMIN.
pub fn read_only(path: &Path) -> io::Result<OwnedFd> {
    of_tree(open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

/// Opens a file again for reading, so that nobody can open it for writing through `/proc/<pid>/fd`.
///
/// # Errors
/// Those of [`read_only`].
pub fn reopen(file: &File) -> io::Result<File> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = of_tree(open_tree(file, c"", flags)?)?;
    File::open(format!("/proc/self/fd/{}", tree.as_raw_fd()))
}

fn of_tree(tree: OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: a `mount_attr` is four numbers, for which zeros are valid.
    let mut attributes = unsafe { std::mem::zeroed::<libc::mount_attr>() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY;
    // SAFETY: the path is empty and ends with a zero, and the structure lives through the call,
    // with its own size.
    let changed = unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, &attributes, size_of_val(&attributes))
    };
    if changed < 0 { Err(io::Error::last_os_error()) } else { Ok(tree) }
}
