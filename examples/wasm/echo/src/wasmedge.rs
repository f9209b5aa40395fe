// SPDX-License-Identifier: Apache-2.0
//! The sockets that WasmEdge adds to WASI preview 1.

use std::{io, net::TcpListener, os::fd::FromRawFd as _};

/// An address as WasmEdge reads it from the module's memory.
#[repr(C)]
struct Address {
    bytes: *const u8,
    length: u32,
}

const IPV4: u32 = 1;
const STREAM: u32 = 2;
/// How many clients may wait to be accepted.
const BACKLOG: u32 = 16;

// SAFETY: these are the types of the functions in WasmEdge 0.17. Each returns an error number of
// WASI, or 0.
#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn sock_open(family: u32, kind: u32, socket: *mut i32) -> u32;
    fn sock_bind(socket: i32, address: *const Address, port: u32) -> u32;
    safe fn sock_listen(socket: i32, backlog: u32) -> u32;
}

/// A socket that listens on all addresses of the pod.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let mut socket = -1;
    let any = [0_u8; 4];
    let address = Address { bytes: any.as_ptr(), length: 4 };
    // SAFETY: WasmEdge writes the new descriptor there, and nobody else has it.
    let listener = unsafe {
        done(sock_open(IPV4, STREAM, &mut socket))?;
        TcpListener::from_raw_fd(socket)
    };
    // SAFETY: the address and its bytes live longer than the call.
    done(unsafe { sock_bind(socket, &address, u32::from(port)) })?;
    done(sock_listen(socket, BACKLOG))?;
    Ok(listener)
}

fn done(error: u32) -> io::Result<()> {
    match i32::try_from(error) {
        Ok(0) => Ok(()),
        Ok(error) => Err(io::Error::from_raw_os_error(error)),
        Err(error) => Err(io::Error::other(error)),
    }
}
