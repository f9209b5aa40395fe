// SPDX-License-Identifier: Apache-2.0
//! User namespaces: finds the one that owns a namespace, makes one only for its id maps, and maps
//! the ids of a mount.

use rustix::process::{Pid, Signal, WaitOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `NS_GET_USERNS` of `linux/nsfs.h`, `_IO(0xb7, 1)`.
const NS_GET_USERNS: libc::c_ulong = 0xb701;

/// The user namespace that owns `namespace`, as a descriptor for `setns`.
///
/// # Errors
/// `EPERM` where the owner lies outside of the caller's own user namespace.
pub fn owning_user_namespace(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: this request takes no argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS as _) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a user namespace with these maps and without any process, for an id-mapped mount to refer
/// to.
///
/// The maps have the form of `/proc/PID/uid_map` (user_namespaces(7)): each line has the first id
/// inside, the first id outside, and the number of ids.
///
/// # Errors
/// The kernel's error for the maps; nothing is left then.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let mut args: [u64; 8] = [0; 8];
    // `flags` and `exit_signal` of `clone_args` (linux/sched.h).
    args[0] = libc::CLONE_NEWUSER as u64;
    args[4] = libc::SIGCHLD as u64;
    // SAFETY: `args` is a `clone_args` of the first published size (64 bytes) with no pointers in
    // it; without CLONE_VM this is a fork, and the child makes nothing but system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: system calls only, none of which returns to this process's code: it waits to be
        // killed.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
    }
    let made = std::fs::write(format!("/proc/{pid}/uid_map"), uid_map)
        .and_then(|()| std::fs::write(format!("/proc/{pid}/gid_map"), gid_map))
        .and_then(|()| std::fs::File::open(format!("/proc/{pid}/ns/user")));
    if let Some(pid) = Pid::from_raw(pid as i32) {
        // It is our child and has not been reaped, so no other process can have its id.
        let _ended = rustix::process::kill_process(pid, Signal::KILL);
        let _reaped = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    }
    made.map(OwnedFd::from)
}

/// Maps the file owners of a detached mount by the id maps of `user_namespace` (mount_setattr(2),
/// Linux 5.12).
///
/// # Errors
/// `EINVAL` when the filesystem does not support it.
pub fn map_ids(mount: impl AsFd, user_namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: a `mount_attr` is four numbers, for which zeros are valid.
    let mut attributes = unsafe { std::mem::zeroed::<libc::mount_attr>() };
    attributes.attr_set = libc::MOUNT_ATTR_IDMAP;
    attributes.userns_fd = user_namespace.as_fd().as_raw_fd() as u64;
    set(mount, &attributes, 0)
}

/// Changes to a mount's attributes (mount_setattr(2), Linux 5.12).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The `MOUNT_ATTR_…` flags to set.
    pub set: u64,
    /// The flags to clear first. To set a flag for access times, clear all of them
    /// (`MOUNT_ATTR__ATIME`).
    pub clear: u64,
    /// The propagation type, such as `MS_PRIVATE`; 0 leaves it unchanged.
    pub propagation: u64,
}

/// Changes a mount, and with `recursive` all below it.
///
/// # Errors
/// The kernel's error.
pub fn set_attributes(mount: impl AsFd, attributes: Attributes, recursive: bool) -> io::Result<()> {
    // SAFETY: a `mount_attr` is four numbers, for which zeros are valid.
    let mut all = unsafe { std::mem::zeroed::<libc::mount_attr>() };
    (all.attr_set, all.attr_clr, all.propagation) = (attributes.set, attributes.clear, attributes.propagation);
    set(mount, &all, if recursive { libc::AT_RECURSIVE } else { 0 })
}

fn set(mount: impl AsFd, attributes: &libc::mount_attr, recursive: libc::c_int) -> io::Result<()> {
    let (mount, flags) = (mount.as_fd().as_raw_fd(), libc::AT_EMPTY_PATH | recursive);
    // SAFETY: the path is empty and ends with a zero, and the structure lives through the call,
    // with its own size.
    let outcome = unsafe { libc::syscall(libc::SYS_mount_setattr, mount, c"".as_ptr(), flags, attributes, size_of_val(attributes)) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
