// SPDX-License-Identifier: Apache-2.0
//! Machines that are saved, and machines that begin as a copy of a saved one. Two facets, which a
//! hypervisor may lack: [`Snapshots`] of the hypervisor itself, and [`Save`] of a running one.
//!
//! ```text
//! plan_saved ──> begin ──> Save::save: the state of the devices, in a file
//! plan_copy  ──> restore: the memory, the state, and then the vsock
//! ```

use super::{Control, Promise};
use crate::host::vsock::VsockAttachment;
use crate::machine::spec::VmSpec;
use magnetar_core::confined::program::Invocation;
use magnetar_vm_agent_api::network::Mac;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// Starts machines that can be saved, and machines from saved ones.
pub trait Snapshots: Send + Sync {
    /// Its programs. A machine can be restored only by the programs that have saved it.
    fn programs(&self) -> Vec<PathBuf>;

    /// All that a machine to restore must have in common with the saved one: a pure function of the
    /// machine. Files are named elsewhere.
    fn compatibility(&self, spec: &VmSpec) -> String;

    /// Who saves and loads the guest's memory.
    fn memory(&self) -> MemoryKeeper;

    /// How to run a machine to save: as [`plan`](super::Hypervisor::plan), but without a vsock.
    /// `memory` is an empty memory file, for the hypervisor that lets this program keep the memory.
    fn plan_saved<'a>(&self, spec: &'a VmSpec, memory: BorrowedFd<'a>) -> Invocation<'a>;

    /// How to run a machine that waits for the state of a saved one. `memory` is the memory file
    /// that is being filled, or the saved memory if the hypervisor loads it. The machine does not
    /// touch its memory before it is [restored](Self::restore).
    fn plan_copy<'a>(&self, spec: &'a VmSpec, memory: BorrowedFd<'a>) -> Invocation<'a>;

    /// Loads a saved state, attaches the vsock, and lets the guest go on. A memory file is complete
    /// by now. Cancel-safe.
    ///
    /// # Errors
    /// `FailedPrecondition` if another version of the hypervisor has saved it; errors of the
    /// hypervisor.
    fn restore<'a>(&'a self, spec: &'a VmSpec, saved: SavedState<'a>, vsock: VsockAttachment<'a>) -> Promise<'a, Box<dyn Control>>;
}

/// Who saves the memory of a machine, and fills that of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKeeper {
    /// This program. The memory is a file of its own, which the hypervisor inherits.
    Program,
    /// The hypervisor.
    Hypervisor,
}

/// A machine that was saved.
#[derive(Debug)]
pub struct Saved {
    /// The version of the hypervisor, in its own words.
    pub version: String,
    /// Its memory, if the hypervisor has saved it.
    pub memory: Option<File>,
}

/// A saved machine's state, without its memory.
#[derive(Debug, Clone, Copy)]
pub struct SavedState<'a> {
    /// What the hypervisor has written, opened for reading.
    pub file: BorrowedFd<'a>,
    /// That of [`Saved`].
    pub version: &'a str,
}

/// Saves a running machine. Its method is not cancel-safe.
pub trait Save: Send {
    /// Pauses the machine for good, and writes the state of its devices to a file, which is open
    /// for writing only.
    fn save<'a>(&'a mut self, state: BorrowedFd<'a>) -> Promise<'a, Saved>;
}

/// The hardware address of a saved machine's network interface with this number. Those of pods are
/// set in the guest after the restore. It is one of those that an administrator gives away (the
/// second bit of the first byte), so it is no manufacturer's.
pub fn saved_mac(number: usize) -> Mac {
    Mac([0x02, 0x6d, 0x61, 0x67, 0x00, u8::try_from(number).unwrap_or(u8::MAX)])
}
