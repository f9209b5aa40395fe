// SPDX-License-Identifier: Apache-2.0
//! The interface between a hypervisor and the rest of this program. Each hypervisor has a file or
//! folder here, which holds everything specific to it.
//!
//! ```text
//! traits   its abilities, read before anything is made
//! plan     its process, as data: a pure function of the machine's specification
//! begin    connects to the running process and lets the guest begin ──> Control, owned by Connection
//! verdict  after the process ended: whether the guest or the hypervisor caused it
//! ```
//!
//! The trait is object-safe: `main` chooses an implementation, and no other code depends on it.

pub mod cloud_hypervisor;
pub mod connection;
pub mod disk_nodes;
pub mod qemu;
pub mod snapshots;

use crate::host::vsock::{VsockAttachment, VsockSupport};
use crate::machine::size::Size;
use crate::machine::spec::VmSpec;
use magnetar_core::confined::program::Invocation;
use magnetar_core::error::Result;
use magnetar_core::reaper::Exit;
use snapshots::{Save, Snapshots};
use std::fmt;
use std::os::fd::OwnedFd;
use std::pin::Pin;

/// The boxed future that a method of an object-safe trait returns.
pub type Promise<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// A hypervisor's abilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Whether it can emulate a processor where there is no KVM.
    pub emulates: bool,
    /// How its guests access the host's files.
    pub sharing: Sharing,
    /// What can serve its guests' vsock.
    pub vsocks: VsockSupport,
    /// The folders in `share/magnetar` with guests that it boots by default: the first that is
    /// there. At least one.
    pub guests: &'static [&'static str],
}

/// How guests access the host's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// A virtiofsd shares a directory with them.
    Virtiofs,
    /// They only have block devices.
    #[cfg_attr(not(any(test, fuzzing)), expect(dead_code, reason = "Firecracker is the first; until then the tests' own hypervisor"))]
    BlockOnly,
}

/// The number of a machine's disk. A machine never uses a number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskId(pub u32);

/// The disk's serial number, by which the guest finds it. A virtio-blk device has at most 20 bytes
/// for it (`VIRTIO_BLK_ID_BYTES` of linux/virtio_blk.h).
impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk-{}", self.0)
    }
}

/// A block device of the host, as a disk of the guest.
#[derive(Debug)]
pub struct Disk {
    /// Its number.
    pub id: DiskId,
    /// The device, opened with `O_DIRECT` for reading, and also for writing unless it is read-only.
    pub device: OwnedFd,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

/// A machine's state, as its hypervisor reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineState {
    /// Its processors run.
    Running,
    /// Somebody has paused it.
    Paused,
    /// Its kernel has panicked.
    Panicked,
    /// It is being made, or ends.
    Other,
}

/// What a hypervisor reports by itself, and what ends the machine although the hypervisor's process
/// runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest has restarted or panicked. Nothing of the pod is in it any more.
    Restarted,
}

/// Waits for a machine's event.
pub type EventWatch = Pin<Box<dyn Future<Output = MachineEvent> + Send>>;

/// Who caused the end of a hypervisor's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The guest: it has switched itself off, restarted or panicked.
    Guest,
    /// The hypervisor itself, without a request of the guest.
    Hypervisor,
}

/// A kind of hypervisor.
pub trait Hypervisor: Send + Sync {
    /// Its name in messages.
    fn name(&self) -> &'static str;

    /// Its abilities.
    fn traits(&self) -> Traits;

    /// How to run its process: a pure function of the machine. Its standard output is the guest's
    /// console.
    fn plan<'a>(&self, spec: &'a VmSpec, vsock: VsockAttachment<'a>) -> Invocation<'a>;

    /// Connects to the process, which was just started. Lets the guest begin if it waits for that.
    /// Cancel-safe.
    ///
    /// # Errors
    /// Errors of the hypervisor.
    fn begin<'a>(&'a self, spec: &'a VmSpec) -> Promise<'a, Box<dyn Control>>;

    /// Saves machines, and begins machines as copies of saved ones; `None` if it cannot.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Who caused this exit of its process.
    fn verdict(&self, exit: Exit) -> Verdict;

    /// Whether this line, its last on standard error, says that it has failed, although its exit is
    /// that of a machine whose guest has ended.
    fn is_failure(&self, _line: &str) -> bool {
        false
    }
}

/// The control connection to a running hypervisor. Its methods are not cancel-safe.
pub trait Control: Send {
    /// The machine's state.
    fn state(&mut self) -> Promise<'_, MachineState>;

    /// The events that the hypervisor reports by itself, for one caller; `None` if it has none, and
    /// its process ends with every guest.
    fn events(&mut self) -> Option<EventWatch> {
        None
    }

    /// The interface to attach and detach disks while the machine runs; `None` if the hypervisor
    /// cannot.
    fn disks(&mut self) -> Option<&mut dyn HotPlug>;

    /// The interface to save the machine; `None` if the hypervisor cannot.
    fn save(&mut self) -> Option<&mut dyn Save> {
        None
    }

    /// The interface to change the machine's size while it runs; `None` if the hypervisor, or this
    /// machine, cannot.
    fn size(&mut self) -> Option<&mut dyn Resize> {
        None
    }
}

/// Changes the size of a running machine. Its method is not cancel-safe.
pub trait Resize: Send {
    /// Asks for a size between that of the machine's start and [`VmSpec::most`]. Returns the size
    /// that the machine has now, because only the guest can take memory and processors, and give
    /// them back. Repeat the call to learn how far it is. Repeated calls change nothing else.
    fn resize(&mut self, wanted: Size) -> Promise<'_, Size>;
}

/// Attaches and detaches disks of a running machine. Its methods are not cancel-safe.
pub trait HotPlug: Send {
    /// Attaches a disk. A failed call leaves nothing behind.
    fn attach<'a>(&'a mut self, disk: &'a Disk) -> Promise<'a, ()>;

    /// Detaches a disk, even if the guest uses it. On return the hypervisor has written all pending
    /// data and closed the device.
    fn detach(&mut self, disk: DiskId) -> Promise<'_, ()>;
}

#[cfg(test)]
mod tests;
