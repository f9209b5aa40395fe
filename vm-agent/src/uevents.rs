// SPDX-License-Identifier: Apache-2.0
//! The kernel's messages about devices that appear and disappear (NETLINK_KOBJECT_UEVENT of
//! netlink(7)). Only that there was one matters: whoever waits looks again.

use magnetar_core::error::{Context, Result};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The netlink group of the kernel's own messages (linux/kobject.h has no name for it). The second
/// group is udev's.
const FROM_KERNEL: u32 = 1;

/// Opens a socket for the kernel's messages.
///
/// # Errors
/// The kernel's error.
pub fn listen() -> Result<AsyncFd<OwnedFd>> {
    let watched = open(SocketFlags::NONBLOCK).and_then(magnetar_sys::readiness::watch);
    watched.context(|| "cannot listen for the kernel's device events".into())
}

/// A socket for these messages, with additional flags, for those who wait without an event loop.
///
/// # Errors
/// The kernel's error.
pub fn open(flags: SocketFlags) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags | SocketFlags::CLOEXEC, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, FROM_KERNEL))?;
    Ok(socket)
}

/// Waits for a message. Its content does not matter: the caller looks at all devices again.
///
/// # Errors
/// The kernel's error.
pub async fn hear(socket: &AsyncFd<OwnedFd>) -> Result<()> {
    let mut message = [0; 64];
    let heard = socket.async_io(Interest::READABLE, |socket| match recv(socket, &mut message, RecvFlags::empty()) {
        // NOBUFS: some messages were lost because there were too many.
        Ok(_) | Err(Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    });
    heard.await.context(|| "cannot receive the kernel's device events".into())
}
