// SPDX-License-Identifier: Apache-2.0
//! A program in the kernel that decides which devices a cgroup may use: what cgroup v2 has in place of
//! the devices controller (`BPF_PROG_TYPE_CGROUP_DEVICE`, linux/bpf.h).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

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
}

/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const KIND: u32 = 15;

/// `BPF_PROG_ATTACH` and its part of `union bpf_attr`.
const ATTACH: libc::c_int = 8;

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    place: u32,
    flags: u32,
}

/// `BPF_CGROUP_DEVICE`.
const PLACE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: beside whatever systemd has there; each must agree.
const BESIDE_OTHERS: u32 = 2;

/// Attaches a program to a cgroup, for as long as the cgroup exists.
///
/// # Errors
/// What the kernel says: `EPERM` without CAP_BPF or CAP_SYS_ADMIN on the host, `EINVAL` for a program
/// that its verifier does not accept.
pub fn attach(program: &[Instruction], cgroup: impl AsFd) -> io::Result<()> {
    let load = Load {
        kind: KIND,
        length: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log: [0; 2],
        version_and_flags: 0,
    };
    // SAFETY: `load` is the published beginning of the union, with its own size; the instructions and the
    // license that it points to live through the call, which copies them.
    let program = unsafe { libc::syscall(libc::SYS_bpf, LOAD, &load, size_of::<Load>()) };
    if program < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(program as i32) };
    let attach =
        Attach { target: cgroup.as_fd().as_raw_fd() as u32, program: program.as_raw_fd() as u32, place: PLACE, flags: BESIDE_OTHERS };
    // SAFETY: as above; both descriptors are open.
    let attached = unsafe { libc::syscall(libc::SYS_bpf, ATTACH, &attach, size_of::<Attach>()) };
    if attached < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
