// SPDX-License-Identifier: Apache-2.0
//! What a hypervisor is to the rest of this program. One file each; what one of them alone knows stays in its file.

pub mod qemu;

use crate::program::Invocation;
use crate::spec::VmSpec;
use crate::vsock::{Carried, Vsocks};
use magnetar_core::error::Result;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

/// What a hypervisor can do. Asked before anything is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether it can emulate a processor where there is no KVM.
    pub emulates: bool,
    /// Whether a virtiofsd can share files with its guests.
    pub virtiofs: bool,
    /// What can carry its guests' vsock.
    pub vsocks: Vsocks,
    /// Whether disks can be attached to a machine that runs.
    pub hot_plug: bool,
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

/// A kind of hypervisor.
pub trait Hypervisor: Send + Sync + 'static {
    /// The connection to one that runs.
    type Control: Control;

    /// As it is called, for messages.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// How it is run: nothing but a function of the machine. Its standard output is the guest's console.
    fn invocation<'a>(&self, spec: &'a VmSpec, vsock: Carried<'a>) -> Invocation<'a>;

    /// Connects to one that was just run for a machine whose [`VmSpec::dir`] is `dir`, and lets the guest begin if it waits.
    fn connect(&self, dir: &Path) -> impl Future<Output = Result<Self::Control>> + Send;
}

/// The connection to a hypervisor that runs.
pub trait Control: Send + 'static {
    /// Whether the machine runs. Not cancel-safe.
    fn state(&mut self) -> impl Future<Output = Result<MachineState>> + Send;

    /// Attaches a disk; where that fails nothing of it is left. Only with [`Capabilities::hot_plug`]. Not cancel-safe.
    fn attach(&mut self, disk: &Disk) -> impl Future<Output = Result<()>> + Send;

    /// Detaches a disk, whatever the guest does with it. When it returns the hypervisor has written
    /// what it had of it, and has closed the device. Not cancel-safe.
    fn detach(&mut self, disk: DiskId) -> impl Future<Output = Result<()>> + Send;
}
