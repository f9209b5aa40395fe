// SPDX-License-Identifier: Apache-2.0
//! Loads BPF programs into the kernel (bpf(2), linux/bpf.h).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// `BPF_MAP_CREATE` and its part of `union bpf_attr`.
const CREATE_MAP: libc::c_int = 0;

#[repr(C)]
struct CreateMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
}

/// Makes a map of a kind (`enum bpf_map_type`), with keys of 4 bytes each times `key_words`, values
/// of 4 bytes, and room for so many entries.
pub fn map(kind: u32, key_words: u32, entries: u32) -> io::Result<OwnedFd> {
    let map = CreateMap { kind, key_size: 4 * key_words, value_size: 4, entries };
    // SAFETY: `map` is the published beginning of this command's part of the union, and points to
    // nothing. It returns a descriptor.
    unsafe { descriptor(CREATE_MAP, &map) }
}

/// `BPF_MAP_UPDATE_ELEM`, `BPF_MAP_DELETE_ELEM` and their part of `union bpf_attr`.
pub const UPDATE: libc::c_int = 2;
/// See [`UPDATE`].
pub const DELETE: libc::c_int = 3;

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Sets the value of a key, or removes the key.
///
/// # Safety
/// `map` was made by [`map`] with keys of `N` words.
pub unsafe fn put<const N: usize>(map: BorrowedFd<'_>, key: &[u32; N], value: Option<u32>) -> io::Result<()> {
    let at = value.as_ref().map_or(0, |value| &raw const *value as u64);
    let element = Element { map: map.as_raw_fd() as u32, padding: 0, key: key.as_ptr() as u64, value: at, flags: 0 };
    let command = if value.is_some() { UPDATE } else { DELETE };
    // SAFETY: `element` is the published beginning of these commands' part of the union; it points
    // to a key and a value of the sizes that the map was made with, which live through the call.
    unsafe { call(command, &element) }.map(drop)
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
