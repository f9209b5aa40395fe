// SPDX-License-Identifier: Apache-2.0
//! What a hypervisor is to the rest of this program. One file, or folder, each; what one of them alone knows stays in there.
//!
//! ```text
//! traits   what it can do: asked before anything is made
//! plan     its process, as data: a pure function of the machine
//! begin    when that process runs: talks to it, and lets the guest begin ──> Control, which Connection owns from then on
//! verdict  when it has ended: whose end that was
//! ```
//!
//! The trait is object-safe: `main` chooses one, and nobody else knows which.

pub mod connection;
pub mod qemu;

use crate::host::vsock::{Carried, Vsocks};
use crate::machine::program::Invocation;
use crate::machine::spec::VmSpec;
use magnetar_core::error::Result;
use magnetar_core::reaper::Exit;
use std::fmt;
use std::os::fd::OwnedFd;
use std::pin::Pin;

/// What a method of an object-safe trait promises.
pub type Promise<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// What a hypervisor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Whether it can emulate a processor where there is no KVM.
    pub emulates: bool,
    /// How its guests get at the host's files.
    pub sharing: Sharing,
    /// What can carry its guests' vsock.
    pub vsocks: Vsocks,
    /// The folder, in `share/magnetar`, of the guest that it starts if none is configured.
    pub guest: &'static str,
}

/// How guests get at the host's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// A virtiofsd shares a directory with them.
    Virtiofs,
    /// They have block devices and nothing else.
    #[cfg_attr(not(test), expect(dead_code, reason = "Firecracker is the first; until then the tests' own hypervisor"))]
    BlockOnly,
}

/// A disk of a machine: no other of it has, or had, the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskId(pub u32);

/// Its serial number, by which the guest finds it: not longer than a virtio-blk device can tell, which is 20 bytes
/// (`VIRTIO_BLK_ID_BYTES` of linux/virtio_blk.h).
impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk-{}", self.0)
    }
}

/// A block device of the host, as a disk of the guest.
#[derive(Debug)]
pub struct Disk {
    /// Which one it is.
    pub id: DiskId,
    /// The device, open for reading, and for writing unless it is read-only, with `O_DIRECT`.
    pub device: OwnedFd,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

/// Whether a machine runs, as its hypervisor has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineState {
    /// Its processors execute.
    Running,
    /// Somebody has paused it.
    Paused,
    /// Its kernel has panicked.
    Panicked,
    /// It is being made, or ends.
    Other,
}

/// Whose end the end of a hypervisor's process was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The guest's: it has switched itself off, restarted or panicked.
    Guest,
    /// The hypervisor's own, which the guest did not ask for.
    Hypervisor,
}

/// A kind of hypervisor.
pub trait Hypervisor: Send + Sync {
    /// As it is called, for messages.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn traits(&self) -> Traits;

    /// Its process: nothing but a function of the machine. Its standard output is the guest's console.
    fn plan<'a>(&self, spec: &'a VmSpec, vsock: Carried<'a>) -> Invocation<'a>;

    /// Connects to the process, which was just run, and lets the guest begin if it waits. Cancel-safe.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn begin<'a>(&'a self, spec: &'a VmSpec) -> Promise<'a, Box<dyn Control>>;

    /// Whose end this exit of its process was.
    fn verdict(&self, exit: Exit) -> Verdict;
}

/// The connection to a hypervisor that runs. Its methods are not cancel-safe.
pub trait Control: Send {
    /// Whether the machine runs.
    fn state(&mut self) -> Promise<'_, MachineState>;

    /// How disks come and go while the machine runs; `None` where they cannot.
    fn disks(&mut self) -> Option<&mut dyn HotPlug>;
}

/// Disks that come and go while a machine runs. Its methods are not cancel-safe.
pub trait HotPlug: Send {
    /// Attaches a disk; where that fails nothing of it is left.
    fn attach<'a>(&'a mut self, disk: &'a Disk) -> Promise<'a, ()>;

    /// Detaches a disk, whatever the guest does with it. When it returns the hypervisor has written what it had of it, and has closed
    /// the device.
    fn detach(&mut self, disk: DiskId) -> Promise<'_, ()>;
}

#[cfg(test)]
mod tests;
