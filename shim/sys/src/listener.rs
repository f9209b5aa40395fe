// SPDX-License-Identifier: Apache-2.0
//! The listening socket that a sandbox process inherits.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

/// The descriptor at which the shim passes the socket. It is the number of systemd's socket
/// activation, so a sandboxer can be started by hand with `systemd-socket-activate`.
pub const LISTENER_FD: RawFd = 3;

/// Takes the inherited listener. Call it once, before anything else: later, fd 3 may be something
/// else.
///
/// # Errors
/// When fd 3 is not open or not a listening socket, because the program was not started by the
/// shim.
pub fn inherit() -> io::Result<UnixListener> {
    // SAFETY: `fcntl` with F_GETFD reads a number from the kernel and touches no memory.
    if unsafe { libc::fcntl(LISTENER_FD, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above) and, by contract, nothing in this process owns
    // it yet.
    let fd = unsafe { OwnedFd::from_raw_fd(LISTENER_FD) };
    // The socket must not reach the container's processes.
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    if !rustix::net::sockopt::socket_acceptconn(&fd)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "fd 3 is not a listening socket"));
    }
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    Ok(listener)
}
