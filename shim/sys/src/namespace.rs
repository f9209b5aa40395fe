// SPDX-License-Identifier: Apache-2.0
//! Relations between namespaces that only an ioctl tells.

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
