// SPDX-License-Identifier: Apache-2.0
//! Watches descriptors in the event loop.

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// Watches an owned descriptor (a pidfd, an eventfd, a terminal) in the current event loop.
///
/// # Errors
/// When epoll(7) does not support the descriptor, for example a regular file.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the value that is registered, so it stays open and is not
    // replaced for as long as it is registered.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
