// SPDX-License-Identifier: Apache-2.0
//! Session keyrings (keyrings(7)). A process inherits its parent's session keyring, and containers
//! with the same session keyring see each other's keys.

use std::ffi::CStr;
use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING` and `KEYCTL_SETPERM` of `linux/keyctl.h`.
const JOIN: libc::c_long = 1;
const SET_RIGHTS: libc::c_long = 5;

/// Permissions (keyctl_setperm(3)). The possessor has all; the owning user may view, read, search
/// and link. A new keyring lacks the owner's right to search, without which it cannot be joined by
/// name.
const RIGHTS: libc::c_long = 0x3f1b_0000;

/// Joins the session keyring of that name, or a new one if none exists that may be found.
///
/// # Errors
/// The kernel's error, for example `EDQUOT` when the user has reached its limit of keys.
pub fn join_session(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a string that the kernel reads to its end; nothing else is given.
    match unsafe { libc::syscall(libc::SYS_keyctl, JOIN, name.as_ptr()) } {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes a new session keyring of that name, which [`join_session`] can find, and joins it.
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
    fn a_session_keyring_is_found_by_its_name() {
        let name = std::ffi::CString::new(format!("_test.{}", std::process::id())).unwrap();
        // A keyring belongs to the thread that joined it, and to the threads it starts afterwards.
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
            // If the keyring had not been found, there would be two.
            rings => assert_eq!(rings.unwrap(), 1),
        }
    }
}
