// SPDX-License-Identifier: Apache-2.0
//! What a hypervisor is to the rest of this program. One file each; what one of them alone knows stays in its file.

pub mod qemu;

use crate::program::Invocation;
use crate::spec::VmSpec;
use magnetar_core::error::Result;
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
}

/// What can carry the vsock of a hypervisor's guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vsocks {
    /// The host's kernel, by its vhost-vsock device, which the hypervisor is given open.
    pub kernel: bool,
    /// A process in user space, by vhost-user.
    pub user: bool,
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
    fn invocation<'a>(&self, spec: &'a VmSpec) -> Invocation<'a>;

    /// Connects to one that was just run for a machine whose [`VmSpec::dir`] is `dir`, and lets the guest begin if it waits.
    fn connect(&self, dir: &Path) -> impl Future<Output = Result<Self::Control>> + Send;
}

/// The connection to a hypervisor that runs.
pub trait Control: Send + 'static {
    /// Whether the machine runs. Not cancel-safe.
    fn state(&mut self) -> impl Future<Output = Result<MachineState>> + Send;
}
