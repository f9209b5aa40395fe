// SPDX-License-Identifier: Apache-2.0
//! Tap devices: network interfaces whose other end is a descriptor.

use rustix::fs::{Mode, OFlags};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Makes a tap device in the calling thread's network namespace. It has one queue, and every frame has a virtio-net header
/// before it (`struct virtio_net_hdr`, 10 bytes until somebody changes that), so that work on checksums and segments can be
/// left to whoever does it best. The device lives as long as the descriptor, which does not block.
///
/// # Errors
/// `EBUSY` if there is an interface of that name, `EINVAL` if it can be none's, and what else the kernel says.
pub fn open(name: &CStr) -> io::Result<OwnedFd> {
    let tun = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    // The flags are all of the lower 16 bits, as the kernel has them; only in C's signed type the last is negative.
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as i16 } };
    let bytes = name.to_bytes();
    // The last byte stays zero, for the name to have an end.
    if bytes.is_empty() || bytes.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: the call takes a `struct ifreq` with a name that ends and with flags, which this one has; it writes at most
    // that structure, which outlives the call. The descriptor is owned here, and open.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(tun),
    }
}
