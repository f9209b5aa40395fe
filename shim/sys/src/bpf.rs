// SPDX-License-Identifier: Apache-2.0
//! Loads BPF programs into the kernel (bpf(2), linux/bpf.h).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// One instruction (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// The operation.
    pub code: u8,
    /// The destination in the lower half, the source in the upper.
    pub registers: u8,
    /// Where to jump or load from.
    pub offset: i16,
    /// A constant.
    pub immediate: i32,
}

/// `BPF_PROG_LOAD` and its part of `union bpf_attr`.
const LOAD: libc::c_int = 5;

#[repr(C)]
struct Load {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    version_and_flags: u64,
    name: [u8; 16],
    interface: u32,
    place: u32,
}

/// Loads a program of a kind (`enum bpf_prog_type`), to be attached to a place (`enum
/// bpf_attach_type`).
pub fn load(kind: u32, place: u32, program: &[Instruction]) -> io::Result<OwnedFd> {
    let load = Load {
        kind,
        length: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log: [0; 2],
        version_and_flags: 0,
        name: [0; 16],
        interface: 0,
        place,
    };
    // SAFETY: `load` is the published beginning of this command's part of the union; the
    // instructions and the license that it points to live through the call, which copies them. It
    // returns a descriptor.
    unsafe { descriptor(LOAD, &load) }
}

/// Calls bpf(2).
///
/// # Safety
/// `attributes` is the beginning of the command's part of `union bpf_attr`, has no padding, and
/// what it points to is valid for the call.
pub unsafe fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the caller vouches for what the kernel reads. The kernel fills a union that is
    // shorter than its own with zeros.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// Calls bpf(2) for a command that returns a descriptor.
///
/// # Safety
/// As [`call`]; and the command does return a descriptor.
pub unsafe fn descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for it.
    let descriptor = unsafe { call(command, attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
