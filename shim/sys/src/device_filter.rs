// SPDX-License-Identifier: Apache-2.0
//! Attaches a BPF program that decides which devices a cgroup may use. In cgroup v2 such programs
//! replace the devices controller (`BPF_PROG_TYPE_CGROUP_DEVICE`, linux/bpf.h).

use crate::bpf;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

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

/// `BPF_MAP_TYPE_HASH`.
const HASH: u32 = 1;

/// How many devices it can hold.
const ENTRIES: u32 = 256;

/// The devices that a program allows by looking into a map, so that they can change while it is
/// attached. A device's value is the accesses that are allowed.
#[derive(Debug)]
pub struct Exceptions(OwnedFd);

impl Exceptions {
    /// Without a device.
    ///
    /// # Errors
    /// The kernel's error: `EPERM` without CAP_BPF or CAP_SYS_ADMIN on the host.
    pub fn new() -> io::Result<Self> {
        bpf::map(HASH, 3, ENTRIES).map(Self)
    }

    /// The map, as a program that is about to be attached must name it.
    pub fn map(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Allows accesses to a device, or none with 0. Repeated calls do no harm. Needs no privilege.
    ///
    /// # Errors
    /// `E2BIG` for more than 256 devices.
    pub fn set(&self, kind: u32, major: u32, minor: u32, access: u32) -> io::Result<()> {
        // SAFETY: the map was made with keys of three words.
        match unsafe { bpf::put(self.0.as_fd(), &[kind, major, minor], (access != 0).then_some(access)) } {
            Err(error) if access == 0 && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            outcome => outcome,
        }
    }
}

/// The commands of bpf(2) that [`Exceptions::set`] calls.
pub const COMMANDS: [u64; 2] = [bpf::UPDATE as u64, bpf::DELETE as u64];
