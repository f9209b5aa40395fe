// SPDX-License-Identifier: Apache-2.0
//! What a virtual machine is made of: checked, and the same for every hypervisor.

use super::vsock_directory::VsockDirectory;
use crate::host::vsock::Vsock;
use magnetar_core::ids::SandboxId;
use magnetar_vm_agent_api::network::Mac;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// A machine to be started.
#[derive(Debug)]
pub struct VmSpec {
    /// The pod that it is, for names.
    pub sandbox: SandboxId,
    /// The kernel: an ELF file with a PVH entry.
    pub kernel: PathBuf,
    /// What the kernel unpacks into its first root.
    pub initramfs: PathBuf,
    /// Words of the kernel's command line that are not the hypervisor's to choose.
    pub parameters: Vec<String>,
    /// Its memory, in MiB: at least [`LEAST_MEMORY`].
    pub memory_mib: u32,
    /// Whether the host gives it huge pages of 2 MiB, of which `memory_mib` is a multiple then.
    pub huge_pages: bool,
    /// Its processors, at least one.
    pub vcpus: u32,
    /// What executes its code.
    pub acceleration: Acceleration,
    /// What shares files with it, if the hypervisor has that.
    pub share: Option<Virtiofs>,
    /// What carries its vsock.
    pub vsock: Vsock,
    /// Its network interfaces.
    pub nics: Vec<Nic>,
    /// The directory for the hypervisor's own sockets, which nobody but root can enter.
    pub dir: PathBuf,
    /// Who its processes are.
    pub users: Users,
}

/// A virtiofsd that shares a directory with a guest, under [`magnetar_vm_agent_api::SHARE_TAG`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Virtiofs {
    /// Its program.
    pub program: PathBuf,
    /// The directory.
    pub directory: PathBuf,
    /// Its vhost-user socket.
    pub socket: PathBuf,
}

/// Less memory than this does not boot, in MiB.
pub const LEAST_MEMORY: u32 = 96;

/// The users, and groups of the same numbers, that the processes of a machine are. None is another's, nor another machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    /// What the hypervisor becomes when it has opened what only root can.
    pub hypervisor: u32,
    /// The vsock device's.
    pub vsock: u32,
}

impl VmSpec {
    /// The directory of a vsock that is carried in user space; none where the kernel carries it.
    pub fn vsock_directory(&self) -> Option<VsockDirectory> {
        match self.vsock {
            Vsock::Kernel(_) => None,
            Vsock::User { .. } => Some(VsockDirectory::new(&self.dir, self.users.vsock)),
            Vsock::Own => Some(VsockDirectory::new(&self.dir, self.users.hypervisor)),
        }
    }
}

impl Users {
    /// Those of a pod, by the sandbox process's id: while that lives, no other process has the id. The range is one that
    /// distributions leave unused, and above what kubelets give to pods with user namespaces (systemd's UIDS-GIDS.md has the list).
    pub fn of(sandbox_process: u32) -> Self {
        // PID_MAX_LIMIT of the kernel.
        const IDS: u32 = 1 << 22;
        let hypervisor = 2_000_000_000 + sandbox_process % IDS;
        Self { hypervisor, vsock: hypervisor + IDS }
    }
}

/// What executes a guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// The processor, through /dev/kvm.
    Kvm,
    /// A program that translates it: about ten times slower.
    Tcg,
}

/// A network interface.
#[derive(Debug)]
pub struct Nic {
    /// The host's end: a tap device with a virtio-net header, opened with one queue.
    pub tap: OwnedFd,
    /// The guest's hardware address.
    pub mac: Mac,
    /// Its MTU, in bytes.
    pub mtu: u32,
}
