// SPDX-License-Identifier: Apache-2.0
//! Attaches a BPF program that decides which devices a cgroup may use. In cgroup v2 such programs
//! replace the devices controller (`BPF_PROG_TYPE_CGROUP_DEVICE`, linux/bpf.h).

use crate::bpf;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

pub use crate::bpf::Instruction;

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
/// `BPF_F_ALLOW_MULTI`: keep the programs that systemd attached; every program must allow an
/// access.
const BESIDE_OTHERS: u32 = 2;

/// Attaches a program to a cgroup, for as long as the cgroup exists.
///
/// # Errors
/// The kernel's error: `EPERM` without CAP_BPF or CAP_SYS_ADMIN on the host, `EINVAL` for a program
/// that its verifier rejects.
pub fn attach(program: &[Instruction], cgroup: impl AsFd) -> io::Result<()> {
    let program = bpf::load(KIND, PLACE, program)?;
    let attach =
        Attach { target: cgroup.as_fd().as_raw_fd() as u32, program: program.as_raw_fd() as u32, place: PLACE, flags: BESIDE_OTHERS };
    // SAFETY: `attach` is the published beginning of this command's part of the union; it points to
    // nothing, and both descriptors are open.
    unsafe { bpf::call(ATTACH, &attach) }.map(drop)
}
