// SPDX-License-Identifier: Apache-2.0
//! Rings of keys (keyrings(7)). A process inherits its session's, and two containers with the same one see each other's keys.

use std::ffi::CStr;
use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING` and `KEYCTL_SETPERM` of `linux/keyctl.h`.
const JOIN: libc::c_long = 1;
const SET_RIGHTS: libc::c_long = 5;

/// What a new ring has, and the right of its owner to find it by its name: all for who has it, see, read, search and link for its user.
const RIGHTS: libc::c_long = 0x3f1b_0000;

/// Gives this process the session ring of that name: the one that is there and may be found, else a new one.
///
/// # Errors
/// What the kernel says, as `EDQUOT` where its user has as many keys as it may have.
pub fn join_session(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a string that the kernel reads to its end; nothing else is given.
    match unsafe { libc::syscall(libc::SYS_keyctl, JOIN, name.as_ptr()) } {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Gives this process a new session ring of that name which [`join_session`] finds.
///
/// # Errors
/// Those of [`join_session`].
pub fn make_session(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a string that the kernel reads to its end; nothing else is given.
    let ring = unsafe { libc::syscall(libc::SYS_keyctl, JOIN, name.as_ptr()) };
    if ring < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: two numbers are given, and the kernel keeps nothing.
    match unsafe { libc::syscall(libc::SYS_keyctl, SET_RIGHTS, ring, RIGHTS) } {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_ring_is_found_by_its_name() {
        let name = std::ffi::CString::new(format!("_test.{}", std::process::id())).unwrap();
        // A ring is that of the thread which has joined it, and of those that it starts.
        let first = std::thread::spawn(move || {
            make_session(&name)?;
            let second = std::thread::spawn(move || {
                join_session(c"_test.other")?;
                join_session(&name)?;
                let keys = std::fs::read_to_string("/proc/keys")?;
                Ok::<_, io::Error>(keys.lines().filter(|line| line.contains(name.to_str().unwrap())).count())
            });
            second.join().unwrap()
        });
        match first.join().unwrap() {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                let _unheard = writeln!(std::io::stderr(), "skipped: this kernel has no keys");
            }
            // Had it not been found, there would be two.
            rings => assert_eq!(rings.unwrap(), 1),
        }
    }
}
