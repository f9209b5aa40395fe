// SPDX-License-Identifier: Apache-2.0
//! Makes tap devices: network interfaces whose other end is a descriptor.

use rustix::fs::{Mode, OFlags};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Makes a tap device in the calling thread's network namespace. It has one queue. Every frame
/// begins with a virtio-net header (`struct virtio_net_hdr`, 10 bytes by default), so checksums and
/// segmentation can be left to whichever end does them best. The device lives as long as the
/// descriptor, which is non-blocking.
///
/// # Errors
/// `EBUSY` if an interface of that name exists, `InvalidInput` if the name is empty or too long, or
/// the kernel's error.
pub fn open(name: &CStr) -> io::Result<OwnedFd> {
    let tun = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    // All flags are in the lower 16 bits. The field's type is signed, so the highest flag makes it
    // negative.
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as i16 } };
    let bytes = name.to_bytes();
    // The last byte stays zero, to end the name.
    if bytes.is_empty() || bytes.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: the call takes a `struct ifreq` with a name that ends and with flags, which this one
    // has; it writes at most that structure, which outlives the call. The descriptor is owned here,
    // and open.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(tun),
    }
}
