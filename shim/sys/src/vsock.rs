// SPDX-License-Identifier: Apache-2.0
//! /dev/vhost-vsock, the kernel's device that connects a guest's vsock, and /dev/vsock, which tells
//! a guest its address.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOW(VHOST_VIRTIO, 0x60, __u64)` of linux/vhost.h.
const VHOST_VSOCK_SET_GUEST_CID: u32 = 0x4008_af60;

/// Sets the guest's address (its CID) on an open device. The device keeps it until it gets another
/// one or is closed. Meanwhile no other device can have the same address: on the whole host, or
/// only in the same network namespace where namespaces have addresses of their own
/// (net.vsock.ns_mode).
///
/// # Errors
/// `EADDRINUSE` when another device has the address, `EINVAL` for an address that no guest can have
/// (0 to 2, and 2³² − 1), `ENOTTY` when the descriptor is not of /dev/vhost-vsock.
pub fn set_guest_cid(device: BorrowedFd, cid: u32) -> io::Result<()> {
    let cid = u64::from(cid);
    // SAFETY: the request reads a `__u64`, which outlives the call, and writes no memory of ours.
    match unsafe { libc::ioctl(device.as_raw_fd(), VHOST_VSOCK_SET_GUEST_CID as _, &raw const cid) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// `_IO(7, 0xb9)` of linux/vm_sockets.h.
const IOCTL_VM_SOCKETS_GET_LOCAL_CID: u32 = 0x07b9;

/// The first address that a guest can have: those below are the hypervisor's, this machine's own
/// and the host's (vsock(7)).
const FIRST_GUEST: u32 = 3;

/// The address of this machine on the vsock of its host, once the kernel's driver can use it.
/// `None` before, and if this machine is no guest. `device` is /dev/vsock.
///
/// # Errors
/// `ENOTTY` when the descriptor is not of /dev/vsock.
pub fn guest_cid(device: BorrowedFd) -> io::Result<Option<u32>> {
    let mut cid = 0_u32;
    // SAFETY: the request writes an `unsigned int`, which outlives the call, and reads no memory of
    // ours.
    match unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_VM_SOCKETS_GET_LOCAL_CID as _, &raw mut cid) } {
        -1 => Err(io::Error::last_os_error()),
        // The highest number stands for no address.
        _ => Ok(Some(cid).filter(|cid| (FIRST_GUEST..u32::MAX).contains(cid))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_device_other_than_vhost_vsock_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(set_guest_cid(null.as_fd(), 3).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(guest_cid(null.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn two_devices_cannot_have_the_same_address() {
        let open = || File::options().read(true).write(true).open("/dev/vhost-vsock");
        // Not every kernel has the device.
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
