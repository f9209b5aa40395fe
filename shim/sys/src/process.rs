// SPDX-License-Identifier: Apache-2.0
//! Sends signals by number, because real-time signals have no names.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sends a signal. The process must be a child that the caller has not reaped; otherwise its id may
/// belong to another process.
///
/// # Errors
/// `ESRCH` where it is gone, `EINVAL` for a number that is no signal.
pub fn signal(pid: u32, signal: u32) -> io::Result<()> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let pid = libc::pid_t::try_from(pid).map_err(invalid)?;
    let signal = libc::c_int::try_from(signal).map_err(invalid)?;
    if pid <= 0 {
        // kill(2) takes zero and negative numbers for process groups, which no caller means.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: `kill` takes two numbers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal to the process of a pidfd, even if another process has its id by now.
///
/// # Errors
/// As [`signal`].
pub fn signal_pidfd(pidfd: impl AsFd, signal: u32) -> io::Result<()> {
    let signal = libc::c_int::try_from(signal).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let (pidfd, none) = (pidfd.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: without a `siginfo_t` the call takes three numbers (pidfd_send_signal(2)).
    if unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, none, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
