// SPDX-License-Identifier: Apache-2.0
//! The sockets that WasmEdge adds to WASI preview 1, which Magnetar has with both engines.

use super::{Interest, Number};
use std::io;
use std::net::TcpListener;
use std::os::fd::FromRawFd as _;
use std::time::Duration;

const IPV4: u32 = 1;
const STREAM: u32 = 2;
/// How many clients may wait to be accepted.
const BACKLOG: u32 = 128;

/// The clock that no one sets.
const MONOTONIC: u32 = 1;
const CLOCK: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;

/// An address as WasmEdge reads it from the module's memory.
#[repr(C)]
struct Address {
    bytes: *const u8,
    length: u32,
}

/// What `poll_oneoff` waits for: a time, or a descriptor. The fields behind the number are those of
/// a time.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Subscription {
    userdata: u64,
    kind: u8,
    /// The number comes after eight bytes, as some of what may be there has such a size.
    gap: [u8; 7],
    number: u32,
    timeout: u64,
    precision: u64,
    flags: u16,
}

/// What has happened.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    userdata: u64,
    error: u16,
    kind: u8,
    bytes: u64,
    flags: u16,
}

// The host reads and writes these in our memory.
const _: () = assert!(size_of::<Subscription>() == 48 && size_of::<Event>() == 32);
const _: () = assert!(std::mem::offset_of!(Subscription, number) == 16 && std::mem::offset_of!(Subscription, timeout) == 24);

// SAFETY: these are the types of the functions in WASI preview 1 and in WasmEdge. Each returns an
// error number of WASI, or 0.
#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn sock_open(family: u32, kind: u32, socket: *mut i32) -> u32;
    fn sock_bind(socket: i32, address: *const Address, port: u32) -> u32;
    safe fn sock_listen(socket: i32, backlog: u32) -> u32;
    fn poll_oneoff(subscriptions: *const Subscription, events: *mut Event, count: u32, happened: *mut u32) -> u32;
}

pub fn listen(port: u16) -> io::Result<TcpListener> {
    let mut socket = -1;
    let any = [0_u8; 4];
    let address = Address { bytes: any.as_ptr(), length: 4 };
    // SAFETY: the host writes the new descriptor there, and nobody else has it.
    let listener = unsafe {
        done(sock_open(IPV4, STREAM, &raw mut socket))?;
        TcpListener::from_raw_fd(socket)
    };
    // SAFETY: the address and its bytes live longer than the call.
    done(unsafe { sock_bind(socket, &raw const address, u32::from(port)) })?;
    done(sock_listen(socket, BACKLOG))?;
    Ok(listener)
}

pub fn wait(interests: &[Interest], timeout: Option<Duration>) -> io::Result<()> {
    let of = |kind: u8, socket: Number| Subscription { kind, number: socket.cast_unsigned(), ..Subscription::default() };
    let mut subscriptions = Vec::with_capacity(interests.len() * 2 + 1);
    for interest in interests {
        subscriptions.extend(interest.read.then(|| of(READ, interest.socket)));
        subscriptions.extend(interest.write.then(|| of(WRITE, interest.socket)));
    }
    if let Some(timeout) = timeout {
        let timeout = timeout.as_nanos().try_into().unwrap_or(u64::MAX);
        subscriptions.push(Subscription { kind: CLOCK, number: MONOTONIC, timeout, ..Subscription::default() });
    }
    let mut events = vec![Event::default(); subscriptions.len()];
    let mut happened = 0;
    // SAFETY: there is an event for each subscription, and both live longer than the call.
    done(unsafe { poll_oneoff(subscriptions.as_ptr(), events.as_mut_ptr(), subscriptions.len() as u32, &raw mut happened) })
}

fn done(error: u32) -> io::Result<()> {
    match i32::try_from(error) {
        Ok(0) => Ok(()),
        Ok(error) => Err(io::Error::from_raw_os_error(error)),
        Err(error) => Err(io::Error::other(error)),
    }
}
