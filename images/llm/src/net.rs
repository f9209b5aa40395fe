// SPDX-License-Identifier: Apache-2.0
//! The sockets of the host: the standard library's, made and waited for by calls that it lacks.
//!
//! What is waited for is said, and what has happened is not: the server tries all its connections
//! afterwards, none of which blocks.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

#[cfg(target_arch = "wasm32")]
mod wasi;

#[cfg(not(target_arch = "wasm32"))]
mod native;

#[cfg(not(target_arch = "wasm32"))]
use native as host;
#[cfg(target_arch = "wasm32")]
use wasi as host;

/// The number of a socket.
pub type Number = i32;

/// What to wait for at a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// The socket.
    pub socket: Number,
    /// Bytes, a client, or the end.
    pub read: bool,
    /// Room for bytes.
    pub write: bool,
}

/// A socket that listens on all addresses of the pod, and does not block.
///
/// # Errors
/// The host's error, such as a port that is taken.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = host::listen(port)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Waits until one of these things happens, or the time is over.
///
/// # Errors
/// The host's error.
pub fn wait(interests: &[Interest], timeout: Option<Duration>) -> io::Result<()> {
    host::wait(interests, timeout)
}
