// SPDX-License-Identifier: Apache-2.0
//! Signals by number: real-time signals have numbers but no names.

use std::io;

/// Sends a signal. The caller must own the process, that is, not have reaped it.
///
/// # Errors
/// `ESRCH` where it is gone, `EINVAL` for a number that is no signal.
pub fn signal(pid: u32, signal: u32) -> io::Result<()> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let pid = libc::pid_t::try_from(pid).map_err(invalid)?;
    let signal = libc::c_int::try_from(signal).map_err(invalid)?;
    if pid <= 0 {
        // Zero and below name groups, which is never meant.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: `kill` takes two numbers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
