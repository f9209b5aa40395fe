// SPDX-License-Identifier: Apache-2.0
//! The device of the kernel that carries a guest's vsock, /dev/vhost-vsock.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOW(VHOST_VIRTIO, 0x60, __u64)` of linux/vhost.h.
const VHOST_VSOCK_SET_GUEST_CID: u32 = 0x4008_af60;

/// Gives an open device the address of its guest, which it has until it gets another one or is closed. No other device can have
/// it as long: of its network namespace where that has addresses of its own (net.vsock.ns_mode), else of the host.
///
/// # Errors
/// `EADDRINUSE` where another has the address, `EINVAL` where no guest can (0 to 2, and 2³² − 1), `ENOTTY` where the descriptor
/// is not /dev/vhost-vsock's.
pub fn set_guest_cid(device: BorrowedFd, cid: u32) -> io::Result<()> {
    let cid = u64::from(cid);
    // SAFETY: the request reads a `__u64`, which outlives the call, and writes no memory of ours.
    match unsafe { libc::ioctl(device.as_raw_fd(), VHOST_VSOCK_SET_GUEST_CID as _, &raw const cid) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn another_device_has_no_guest() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(set_guest_cid(null.as_fd(), 3).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn two_devices_cannot_have_the_same_guest() {
        let open = || File::options().read(true).write(true).open("/dev/vhost-vsock");
        // Not every kernel has it.
        let (Ok(one), Ok(other)) = (open(), open()) else { return };
        let cid = 0x4d61_0000 | (std::process::id() & 0xffff);
        set_guest_cid(one.as_fd(), cid).unwrap();
        set_guest_cid(one.as_fd(), cid).unwrap();
        assert_eq!(set_guest_cid(other.as_fd(), cid).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        drop(one);
        set_guest_cid(other.as_fd(), cid).unwrap();
        assert_eq!(set_guest_cid(other.as_fd(), 2).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
