// SPDX-License-Identifier: Apache-2.0
//! Steers every TCP connection to the loopback of a network namespace to one listener, whatever the
//! port.
//!
//! A BPF program in the kernel does it (`BPF_PROG_TYPE_SK_LOOKUP`, linux/bpf.h; Linux 5.9). The
//! kernel runs it after its search for an established connection and before its search for a
//! listener. So it runs once for each new connection, and takes precedence over any other listener
//! on that loopback. Other protocols and other addresses are not affected.

use crate::bpf::{self, Instruction};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Steers connections for as long as this value lives, or until the listener is closed.
#[derive(Debug)]
pub struct Steering {
    /// The BPF link that attaches the program to the namespace. It keeps the program, and so the
    /// map, but not the namespace alive.
    link: OwnedFd,
}

impl Drop for Steering {
    /// Detaches explicitly: a forked process may have a copy of the descriptor, so closing this one
    /// may not be enough.
    fn drop(&mut self) {
        let detach = DetachLink { link: self.link.as_raw_fd() as u32 };
        // SAFETY: `detach` is all of this command's part of the union; it points to nothing, and
        // the descriptor is open. It fails only when the namespace, and with it the link, is gone.
        let _gone = unsafe { bpf::call(DETACH_LINK, &detach) };
    }
}

/// Steers every new TCP connection to 127.0.0.0/8 and ::1, in the network namespace of the calling
/// thread, to a listening socket of that namespace. Without `v6`, connections to ::1 are not
/// steered.
///
/// # Errors
/// `Unsupported` when the kernel cannot do it; `PermissionDenied` without CAP_BPF and CAP_NET_ADMIN
/// in the initial user namespace; or another error of the kernel.
pub fn steer(v4: BorrowedFd<'_>, v6: Option<BorrowedFd<'_>>) -> io::Result<Steering> {
    let listeners = map().map_err(unsupported)?;
    // The kernel removes an entry when its socket is closed.
    put(&listeners, libc::AF_INET, v4)?;
    if let Some(v6) = v6 {
        put(&listeners, libc::AF_INET6, v6)?;
    }
    let program = bpf::load(KIND, PLACE, &program(&listeners)).map_err(unsupported)?;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    let link = CreateLink { program: program.as_raw_fd() as u32, target: namespace.as_raw_fd() as u32, place: PLACE, flags: 0 };
    // SAFETY: `link` is the published beginning of this command's part of the union; it points to
    // nothing, and both descriptors are open. It returns a descriptor.
    let link = unsafe { bpf::descriptor(CREATE_LINK, &link) }?;
    Ok(Steering { link })
}

/// Checks that [`steer`] can work here: that the kernel accepts the program.
///
/// # Errors
/// As [`steer`].
pub fn probe() -> io::Result<()> {
    let listeners = map().map_err(unsupported)?;
    bpf::load(KIND, PLACE, &program(&listeners)).map(drop).map_err(unsupported)
}

/// Names the cause of `EINVAL`: the kernel returns it for what it does not know, and has no other
/// reason to return it for this program and map.
fn unsupported(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS) => {
            io::Error::new(io::ErrorKind::Unsupported, "the kernel has no sk_lookup (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9)")
        }
        _ => error,
    }
}

/// `BPF_PROG_TYPE_SK_LOOKUP`.
const KIND: u32 = 30;
/// `BPF_SK_LOOKUP`.
const PLACE: u32 = 36;

/// `BPF_LINK_CREATE` and its part of `union bpf_attr`.
const CREATE_LINK: libc::c_int = 28;

#[repr(C)]
struct CreateLink {
    program: u32,
    target: u32,
    place: u32,
    flags: u32,
}

/// `BPF_LINK_DETACH` and its part of `union bpf_attr`.
const DETACH_LINK: libc::c_int = 34;

#[repr(C)]
struct DetachLink {
    link: u32,
}

/// `BPF_MAP_TYPE_SOCKHASH`.
const SOCKETS_BY_KEY: u32 = 18;

/// Makes a map for the listeners; the keys are their address families.
fn map() -> io::Result<OwnedFd> {
    bpf::map(SOCKETS_BY_KEY, 1, 2)
}

fn put(map: &OwnedFd, family: libc::c_int, listener: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the map was made with keys of one word.
    unsafe { bpf::put(map.as_fd(), &[family as u32], Some(listener.as_raw_fd() as u32)) }
}

// Operations.
const LOAD_WORD: u8 = 0x61;
const LOAD_BYTE: u8 = 0x71;
const LOAD_MAP: u8 = 0x18;
const STORE_WORD: u8 = 0x63;
const SET: u8 = 0xb7;
const COPY: u8 = 0xbf;
const ADD: u8 = 0x07;
const JUMP: u8 = 0x05;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// `BPF_PSEUDO_MAP_FD` in place of the source register: the constant is a map's descriptor.
const MAP: u8 = 1;

// Functions of the kernel.
const MAP_LOOKUP: i32 = 1;
const SOCKET_RELEASE: i32 = 86;
const SOCKET_ASSIGN: i32 = 124;

// Registers: a call's result, its arguments, two that calls preserve, and the stack.
const ANSWER: u8 = 0;
const FIRST: u8 = 1;
const SECOND: u8 = 2;
const THIRD: u8 = 3;
const CONTEXT: u8 = 6;
const SOCKET: u8 = 7;
const STACK: u8 = 10;

// `struct bpf_sk_lookup`; addresses are in the network's order.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_V4: i16 = 40;
const LOCAL_V6: i16 = 44;

/// `SK_PASS`: use the socket that was assigned, or search as usual if none was.
const PASS: i32 = 1;

/// Marks a jump to the last two instructions, which return `SK_PASS`. Its offset is filled in at
/// the end.
const TO_PASS: i16 = i16::MAX;

fn program(listeners: &OwnedFd) -> Vec<Instruction> {
    let op = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    let copy = |to: u8, from: u8| op(COPY, to | from << 4, 0, 0);
    let load = |offset| op(LOAD_WORD, SECOND | CONTEXT << 4, offset, 0);
    let must_be = |value| op(JUMP_UNLESS_EQUAL, SECOND, TO_PASS, value);
    let v4 = [op(LOAD_BYTE, SECOND | CONTEXT << 4, LOCAL_V4, 0), must_be(127)];
    let v6 = [
        must_be(libc::AF_INET6),
        load(LOCAL_V6),
        must_be(0),
        load(LOCAL_V6 + 4),
        must_be(0),
        load(LOCAL_V6 + 8),
        must_be(0),
        load(LOCAL_V6 + 12),
        must_be(1_i32.to_be()),
        op(JUMP, 0, v4.len() as i16, 0),
    ];
    let mut program = vec![
        copy(CONTEXT, FIRST),
        load(PROTOCOL),
        must_be(libc::IPPROTO_TCP),
        load(FAMILY),
        op(STORE_WORD, STACK | SECOND << 4, -4, 0),
        op(JUMP_IF_EQUAL, SECOND, v6.len() as i16, libc::AF_INET),
    ];
    program.extend(v6);
    program.extend(v4);
    program.extend([
        op(LOAD_MAP, FIRST | MAP << 4, 0, listeners.as_raw_fd()),
        op(0, 0, 0, 0),
        copy(SECOND, STACK),
        op(ADD, SECOND, 0, -4),
        op(CALL, 0, 0, MAP_LOOKUP),
        op(JUMP_IF_EQUAL, ANSWER, TO_PASS, 0),
        // The lookup took a reference. It must be released, whether or not the socket could be
        // assigned.
        copy(SOCKET, ANSWER),
        copy(FIRST, CONTEXT),
        copy(SECOND, SOCKET),
        op(SET, THIRD, 0, 0),
        op(CALL, 0, 0, SOCKET_ASSIGN),
        copy(FIRST, SOCKET),
        op(CALL, 0, 0, SOCKET_RELEASE),
    ]);
    let end = program.len();
    for (at, instruction) in program.iter_mut().enumerate().filter(|(_, instruction)| instruction.offset == TO_PASS) {
        instruction.offset = (end - at - 1) as i16;
    }
    program.extend([op(SET, ANSWER, 0, PASS), op(EXIT, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests;
