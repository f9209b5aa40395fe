// SPDX-License-Identifier: Apache-2.0
//! The kernel's random number generator: gives it fresh bytes, and makes it use them at once.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// How many bytes [`mix_in`] takes.
pub const LENGTH: usize = 64;

/// `_IOW('R', 0x03, int [2])` of linux/random.h.
const RNDADDENTROPY: u32 = 0x4008_5203;

/// `_IO('R', 0x07)` of linux/random.h.
const RNDRESEEDCRNG: u32 = 0x5207;

/// `struct rand_pool_info` of linux/random.h, with its buffer.
#[repr(C)]
struct PoolInfo {
    /// The entropy of the bytes, in bits.
    entropy: libc::c_int,
    /// The number of bytes.
    size: libc::c_int,
    bytes: [u8; LENGTH],
}

/// Adds secret random bytes to the kernel's pool, and derives all further random numbers from the
/// pool. `device` is /dev/random, opened for writing. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// `EPERM` without the capability, `ENODATA` if the kernel has never had enough entropy, `ENOTTY`
/// when the descriptor is not of /dev/random.
pub fn mix_in(device: BorrowedFd, bytes: [u8; LENGTH]) -> io::Result<()> {
    let info = PoolInfo { entropy: LENGTH as libc::c_int * 8, size: LENGTH as libc::c_int, bytes };
    // SAFETY: the request reads a `struct rand_pool_info` with as many bytes as it says. It
    // outlives the call, which writes no memory of ours.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the request takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_device_other_than_the_generator_is_refused() {
        let null = File::options().write(true).open("/dev/null").unwrap();
        assert_eq!(mix_in(null.as_fd(), [7; LENGTH]).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn the_generator_takes_bytes_from_root_alone() {
        let random = File::options().write(true).open("/dev/random").unwrap();
        match mix_in(random.as_fd(), [7; LENGTH]) {
            Ok(()) => assert!(rustix::process::geteuid().is_root()),
            // Root of a container may lack the capability as well.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
    }
}
