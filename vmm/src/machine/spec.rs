// SPDX-License-Identifier: Apache-2.0
//! The specification of a virtual machine: validated, and the same for every hypervisor.

use super::size::Size;
use super::vsock_directory::VsockDirectory;
use crate::host::vsock::Vsock;
use magnetar_core::confined;
use magnetar_core::ids::SandboxId;
use magnetar_vm_agent_api::network::Mac;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// A machine to start.
#[derive(Debug)]
pub struct VmSpec {
    /// The pod, for names.
    pub sandbox: SandboxId,
    /// The kernel: an ELF file with a PVH entry.
    pub kernel: PathBuf,
    /// The initramfs, which the kernel unpacks into its initial root.
    pub initramfs: PathBuf,
    /// Parameters of the kernel's command line that the hypervisor does not choose.
    pub parameters: Vec<String>,
    /// Its memory, in MiB: at least [`LEAST_MEMORY`].
    pub memory_mib: u32,
    /// Whether its memory consists of huge pages of 2 MiB on the host. `memory_mib` is then a
    /// multiple of 2.
    pub huge_pages: bool,
    /// Its processors, at least one.
    pub vcpus: u32,
    /// What it may grow to while it runs: at least `memory_mib` and `vcpus`.
    pub most: Size,
    /// Whether KVM or emulation executes its code.
    pub acceleration: Acceleration,
    /// The virtiofsd that shares files with it, if the hypervisor supports virtiofs.
    pub share: Option<Virtiofs>,
    /// What serves its vsock.
    pub vsock: Vsock,
    /// Its network interfaces.
    pub nics: Vec<Nic>,
    /// The directory of the hypervisor's sockets. Only root can enter it.
    pub dir: PathBuf,
    /// The users of its processes.
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
    /// Whether the guest keeps contents of files in its memory.
    pub is_cached: bool,
}

/// The least memory that a guest boots with, in MiB.
pub const LEAST_MEMORY: u32 = 96;

/// The users of a machine's processes; the group ids are the same. No other user and no other
/// machine has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    /// The hypervisor switches to this user after it has opened what only root can open.
    pub hypervisor: u32,
    /// The user of the vsock device.
    pub vsock: u32,
}

impl VmSpec {
    /// The directory of a vsock that is served in user space; `None` if the kernel serves it.
    pub fn vsock_directory(&self) -> Option<VsockDirectory> {
        match self.vsock {
            Vsock::Kernel(_) => None,
            Vsock::User { .. } => Some(VsockDirectory::new(&self.dir, self.users.vsock)),
            Vsock::Own => Some(VsockDirectory::new(&self.dir, self.users.hypervisor)),
        }
    }
}

impl Users {
    /// The users of a machine of this sandbox process.
    pub fn of(sandbox_process: u32) -> Self {
        Self { hypervisor: confined::user(sandbox_process, 0), vsock: confined::user(sandbox_process, 1) }
    }

    /// The users of a second machine of the same process: a template that it makes.
    pub fn second(self) -> Self {
        Self { hypervisor: self.hypervisor + 2 * confined::USERS_APART, vsock: self.vsock + 2 * confined::USERS_APART }
    }
}

/// What executes a guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// The processor, through /dev/kvm.
    Kvm,
    /// A program that translates it, about ten times slower.
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

#[cfg(test)]
impl VmSpec {
    /// A machine for the tests of all hypervisors. Its files do not exist.
    pub fn of_tests(nics: usize) -> Self {
        let tap = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        Self {
            sandbox: SandboxId::parse("pod-1").unwrap(),
            kernel: "/k".into(),
            initramfs: "/i".into(),
            parameters: vec!["a=b".into(), "c".into()],
            memory_mib: 256,
            huge_pages: false,
            vcpus: 2,
            most: Size { memory_mib: 256, vcpus: 2 },
            acceleration: Acceleration::Tcg,
            share: Some(Virtiofs { program: "/f".into(), directory: "/pod/share".into(), socket: "/pod/fs.sock".into(), is_cached: true }),
            vsock: Vsock::User { program: "/v".into() },
            nics: (0..nics).map(|n| Nic { tap: tap(), mac: Mac([2, 0, 0, 0, 0, n as u8]), mtu: 1450 }).collect(),
            dir: "/pod".into(),
            users: Users { hypervisor: 2_000_000_007, vsock: 2_000_000_008 },
        }
    }
}
