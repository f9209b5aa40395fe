// SPDX-License-Identifier: Apache-2.0
//! The processes that are devices of a machine: what shares files with the guest, and what carries its vsock.
//!
//! Both speak vhost-user: the hypervisor connects to a Unix socket and hands over the guest's memory. What comes out of that
//! memory is the guest's, so whoever reads it is confined as far as it lets itself be.

use super::confinement::{Calls, Confinement, Files, Pids};
use super::processes::{Common, Process, listens};
use super::program::{Invocation, Program};
use super::spec::Virtiofs;
use super::vsock_directory::{DEVICE, HOST, VsockDirectory};
use crate::host::vsock::Cid;
use magnetar_core::error::{Error, Result};
use magnetar_core::reaper::Exit;
use magnetar_sys::bound::CapabilitySet;
use rustix::process::{Resource, getrlimit};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// What shares files.
pub const VIRTIOFSD: Program = Program { name: "virtiofsd", places: &["/usr/libexec", "/usr/lib/qemu", "/usr/lib"], package: "virtiofsd" };

/// What carries the vsock where the kernel does not.
pub const VSOCK_DEVICE: Program =
    Program { name: "vhost-device-vsock", places: &["/usr/libexec", "/usr/lib/qemu"], package: "vhost-device-vsock" };

/// How many files virtiofsd would like to have open: one for each that the guest knows.
const FILES: u64 = 1_000_000;

/// The guest's address. Each guest has a device of its own, so that all can have the same: the least that is no one else's.
const GUEST_CID: u32 = 3;

/// Shares a directory with the hypervisor that connects to its socket; ends when that one disconnects.
///
/// What is mounted below the directory later is seen too, if the directory is below a shared mount (mount_namespaces(7)): the
/// process has a mount namespace of its own, which is a slave of ours. It has the mounts open as long as the guest knows files
/// there, so they can only be unmounted lazily.
pub fn virtiofsd(share: &Virtiofs) -> Invocation<'static> {
    let mut invocation = Invocation::new(&share.program);
    let listener = invocation.listen(share.socket.clone());
    invocation.arguments([
        format!("--fd={listener}").into(),
        option("--shared-dir", &share.directory),
        // It sees nothing but the directory, and has no network, no other processes, and few capabilities.
        "--sandbox=namespace".into(),
        "--seccomp=kill".into(),
        // File systems below the directory stay different ones in the guest; else two files could be one to it, by their number.
        "--announce-submounts".into(),
        // Handles would spare descriptors, but to open one takes a capability (CAP_DAC_READ_SEARCH) that opens all files of the
        // file system by number, those outside of the directory too.
        "--inode-file-handles=never".into(),
        // Images have files with capabilities, and containers may set those and attributes of their own, as with any other
        // runtime. All other names mean something to the host: trusted.* to its overlayfs, security.selinux to its policy.
        "--xattr".into(),
        "--xattrmap=:ok:all:user.:::ok:all:security.capability:::unsupported:all:::".into(),
        // The guest may keep what it knows for a second, not for good: the host writes there too, the kubelet to volumes.
        "--cache=auto".into(),
        // One slow fsync must not hold up the other files of the pod. Without a pool, small requests are a tenth quicker.
        "--thread-pool-size=4".into(),
        // As many as we may have, where that is less than the million that it would like: or it warns of it, and that would be
        // its last word when it ends.
        format!("--rlimit-nofile={}", getrlimit(Resource::Nofile).maximum.unwrap_or(FILES).min(FILES)).into(),
        "--log-level=warn".into(),
    ]);
    invocation
}

/// Carries the vsock of the guest whose hypervisor connects to its socket in `directory`. Not before that exists: this program
/// takes no descriptor for it.
///
/// It does not confine itself, so it is run as the user that owns the directory, and has nothing else. It gets there by `opened`, since
/// a pod's directories are root's. It does not end with the hypervisor.
fn vsock<'a>(program: &Path, directory: &VsockDirectory, opened: BorrowedFd<'a>) -> Invocation<'a> {
    let mut invocation = Invocation::new(program);
    invocation.confinement = Confinement {
        user: Some(directory.owner()),
        capabilities: CapabilitySet::NONE,
        pids: Pids::Itself,
        files: Some(Files { read: Vec::new(), own: vec![directory.path().to_owned()] }),
        calls: Calls::Server,
    };
    let directory = PathBuf::from(format!("/proc/self/fd/{}", invocation.open(opened)));
    invocation.arguments([
        format!("--guest-cid={GUEST_CID}").into(),
        option("--socket", &directory.join(DEVICE)),
        option("--uds-path", &directory.join(HOST)),
    ]);
    invocation
}

/// Runs the vsock device, and returns when it listens.
///
/// # Errors
/// Where it cannot be run or ends; `DeadlineExceeded` where it does not listen.
pub async fn run_vsock(program: &Path, directory: &VsockDirectory, common: Common<'_>) -> Result<Process> {
    let opened = directory.open()?;
    let mut process = Process::run("vhost-device-vsock", &vsock(program, directory, opened.as_fd()), None, common)?;
    let socket = directory.device();
    tokio::select! {
        listens = listens(&socket) => listens?,
        exit = process.ended() => {
            return Err(Error::internal(format!("the virtual machine did not start: {}", process.describe(exit))));
        }
    }
    Ok(process)
}

/// What carries the guest's vsock, for as long as it has to.
pub enum Carrier {
    /// The kernel. The address is the guest's until this is dropped; then the kernel breaks the connections to it.
    Kernel(Option<Cid>),
    /// A process.
    User(Process),
    /// The hypervisor itself.
    Hypervisor,
}

impl Carrier {
    /// Waits until it has ended, and says how. Cancel-safe. The kernel does not end, and a hypervisor is waited for elsewhere.
    pub async fn ended(&mut self) -> (Exit, String) {
        match self {
            Self::Kernel(_) | Self::Hypervisor => std::future::pending().await,
            Self::User(process) => {
                let exit = process.ended().await;
                (exit, process.describe(exit))
            }
        }
    }

    /// Ends it.
    pub async fn kill(&mut self) {
        match self {
            Self::Kernel(cid) => drop(cid.take()),
            Self::User(process) => process.kill().await,
            Self::Hypervisor => {}
        }
    }
}

/// An option and its value in one word.
fn option(name: &str, value: &Path) -> OsString {
    let mut word = OsString::from(name);
    word.push("=");
    word.push(value);
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(invocation: &Invocation) -> Vec<String> {
        invocation.arguments.iter().map(|word| word.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn virtiofsd_inherits_its_socket() {
        let share = Virtiofs { program: "/usr/libexec/virtiofsd".into(), directory: "/pod/share".into(), socket: "/pod/share.sock".into() };
        let invocation = virtiofsd(&share);
        assert_eq!(invocation.program, Path::new("/usr/libexec/virtiofsd"));
        assert_eq!(invocation.listeners().collect::<Vec<_>>(), [Path::new("/pod/share.sock")]);
        assert_eq!(words(&invocation)[..3], ["--fd=3", "--shared-dir=/pod/share", "--sandbox=namespace"]);
        assert_eq!(invocation.confinement.user, None, "it makes files for all users");
    }

    #[test]
    fn the_vsock_is_not_roots() {
        let (directory, opened) = (VsockDirectory::new(Path::new("/pod"), 2_000_000_007), std::fs::File::open("/").unwrap());
        let invocation = vsock(Path::new("/usr/bin/vhost-device-vsock"), &directory, opened.as_fd());
        assert_eq!(words(&invocation), ["--guest-cid=3", "--socket=/proc/self/fd/3/device", "--uds-path=/proc/self/fd/3/host"]);
        let Confinement { user, capabilities, pids, files, calls } = invocation.confinement;
        assert_eq!((user, capabilities, pids, calls), (Some(2_000_000_007), CapabilitySet::NONE, Pids::Itself, Calls::Server));
        assert_eq!(files.unwrap().own, [Path::new("/pod/v")]);
    }
}
