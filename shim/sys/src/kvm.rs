// SPDX-License-Identifier: Apache-2.0
//! Asks KVM, the kernel's hypervisor, for its version.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IO(KVMIO, 0x00)` of linux/kvm.h.
const KVM_GET_API_VERSION: u32 = 0xae00;

/// The version of KVM's interface. It has been 12 since 2007, and the kernel's documentation says
/// to refuse all others.
///
/// # Errors
/// `ENOTTY` if the descriptor is not of /dev/kvm.
pub fn api_version(device: BorrowedFd) -> io::Result<i32> {
    // SAFETY: this request takes no argument and touches no memory of ours.
    let version = unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_API_VERSION as _, 0) };
    if version < 0 { Err(io::Error::last_os_error()) } else { Ok(version) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_device_other_than_kvm_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(api_version(null.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
