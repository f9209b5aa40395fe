// SPDX-License-Identifier: Apache-2.0
//! The processes that serve a machine's devices: virtiofsd for shared files, and the vsock device.
//!
//! Both speak vhost-user: the hypervisor connects to a Unix socket and passes the guest's memory.
//! The guest controls the contents of that memory, so each process is confined as far as it
//! tolerates.

use super::spec::Virtiofs;
use super::vsock_directory::{DEVICE, HOST, VsockDirectory};
use crate::host::vsock::Cid;
use magnetar_core::confined::confinement::{Calls, Confinement, Files, Pids};
use magnetar_core::confined::process::{Common, Process};
use magnetar_core::confined::program::Invocation;
use magnetar_core::error::{Context, Error, Result};
use magnetar_core::program::Program;
use magnetar_core::reaper::Exit;
use magnetar_sys::bound::CapabilitySet;
use rustix::fs::{Mode, chmod};
use rustix::process::{Resource, getrlimit};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The program that shares files.
pub const VIRTIOFSD: Program =
    Program { name: "virtiofsd", places: &["/usr/libexec", "/usr/lib/qemu", "/usr/lib"], remedy: "install Debian's package virtiofsd" };

/// The program that serves the vsock where the kernel does not.
pub const VSOCK_DEVICE: Program = Program {
    name: "vhost-device-vsock",
    places: &["/usr/libexec", "/usr/lib/qemu"],
    remedy: "install Debian's package vhost-device-vsock",
};

/// The number of open files that virtiofsd asks for: one per file that the guest knows.
const FILES: u64 = 1_000_000;

/// The guest's address. Each guest has its own device, so all guests can have the same address.
/// This is the lowest one that is not reserved.
const GUEST_CID: u32 = 3;

/// Shares a directory with the hypervisor that connects to its socket. Ends when the hypervisor
/// disconnects.
///
/// The process has its own mount namespace, which is a slave of ours. So it also sees later mounts
/// below the directory, if that is below a shared mount (mount_namespaces(7)). It keeps a mount
/// open while the guest knows files there, so such mounts can only be unmounted lazily.
fn virtiofsd(share: &Virtiofs) -> Invocation<'static> {
    let mut invocation = Invocation::new(&share.program);
    let listener = invocation.listen(share.socket.clone());
    invocation.arguments([
        format!("--fd={listener}").into(),
        option("--shared-dir", &share.directory),
        // It sees only the directory, has no network, sees no other processes, and keeps few
        // capabilities.
        "--sandbox=namespace".into(),
        "--seccomp=kill".into(),
        // Without this option, two files of different file systems below the directory could have
        // the same inode number in the guest, and look like one file.
        "--announce-submounts".into(),
        // File handles would save descriptors. But opening one takes a capability
        // (CAP_DAC_READ_SEARCH) that allows opening any file of the file system, also outside the
        // directory.
        "--inode-file-handles=never".into(),
        // Images contain files with capabilities, and containers may set those and user attributes,
        // as with any other runtime. All other names have a meaning on the host: trusted.* for its
        // overlayfs, security.selinux for its policy.
        "--xattr".into(),
        "--xattrmap=:ok:all:user.:::ok:all:security.capability:::unsupported:all:::".into(),
        // One slow fsync must not delay the pod's other files. Without a pool, small requests are a
        // tenth faster.
        "--thread-pool-size=4".into(),
        // At most our own limit. Otherwise virtiofsd logs a warning, which would then be reported
        // as the reason when it ends.
        format!("--rlimit-nofile={}", getrlimit(Resource::Nofile).maximum.unwrap_or(FILES).min(FILES)).into(),
        "--log-level=warn".into(),
    ]);
    // The guest may cache metadata for a second, not indefinitely, because the host also writes
    // there (the kubelet writes to volumes). Without a cache, files can be mapped for writing only
    // with `--allow-mmap`.
    invocation.arguments(if share.is_cached { &["--cache=auto"][..] } else { &["--cache=never", "--allow-mmap"] });
    invocation
}

/// Runs virtiofsd, with these options more. Whoever runs as the hypervisor can connect to it.
///
/// # Errors
/// Errors of the kernel.
pub fn run_virtiofsd(share: &Virtiofs, options: &[&str], common: Common<'_>) -> Result<Process> {
    let mut invocation = virtiofsd(share);
    invocation.arguments(options);
    let process = Process::run("virtiofsd", &invocation, None, common)?;
    // Only root can enter its directory. A hypervisor that runs as another user reaches it through
    // a descriptor.
    let what = || format!("cannot open {} for the hypervisor", share.socket.display());
    chmod(&share.socket, Mode::from_raw_mode(0o666)).context(what)?;
    Ok(process)
}

/// Serves the vsock of the guest whose hypervisor connects to its socket in `directory`. The
/// program takes no descriptor for that socket, so whoever connects must wait until the program
/// listens.
///
/// It does not confine itself. So it runs as the directory's owner and can use nothing else. It
/// reaches the directory through the descriptor `opened`, since a pod's directories belong to root.
/// It does not end with the hypervisor.
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

/// Runs the vsock device, and connects to it once it listens. The hypervisor inherits the
/// connection.
///
/// # Errors
/// If it cannot be run or ends; errors of [`VsockDirectory::connect_device`].
pub async fn run_vsock(program: &Path, directory: &VsockDirectory, common: Common<'_>) -> Result<(Process, OwnedFd)> {
    let opened = directory.open()?;
    let mut process = Process::run("vhost-device-vsock", &vsock(program, directory, opened.as_fd()), None, common)?;
    let connection = tokio::select! {
        connected = directory.connect_device() => connected?,
        exit = process.ended() => {
            return Err(Error::internal(format!("the virtual machine did not start: {}", process.describe(exit))));
        }
    };
    Ok((process, connection))
}

/// What serves the guest's vsock while the machine runs.
pub enum VsockServer {
    /// The kernel. The guest keeps the address until this is dropped. Then the kernel breaks the
    /// connections to it.
    Kernel(Option<Cid>),
    /// A process.
    User(Process),
    /// The hypervisor itself.
    Hypervisor,
}

impl VsockServer {
    /// Waits until the process has ended. Returns the exit and its description. Never returns for
    /// the kernel, which does not end, and for the hypervisor, whose end is awaited elsewhere.
    /// Cancel-safe.
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

/// `name=value` as one argument.
fn option(name: &str, value: &Path) -> OsString {
    let mut word = OsString::from(name);
    word.push("=");
    word.push(value);
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(invocation: &Invocation) -> Vec<String> {
        invocation.arguments.iter().map(|word| word.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn virtiofsd_inherits_its_socket() {
        let share = Virtiofs {
            program: "/usr/libexec/virtiofsd".into(),
            directory: "/pod/share".into(),
            socket: "/pod/share.sock".into(),
            is_cached: false,
        };
        let invocation = virtiofsd(&share);
        assert!(arguments(&invocation).ends_with(&["--cache=never".into(), "--allow-mmap".into()]));
        assert_eq!(invocation.program, Path::new("/usr/libexec/virtiofsd"));
        assert_eq!(invocation.listeners().collect::<Vec<_>>(), [Path::new("/pod/share.sock")]);
        assert_eq!(arguments(&invocation)[..3], ["--fd=3", "--shared-dir=/pod/share", "--sandbox=namespace"]);
        assert_eq!(invocation.confinement.user, None, "it makes files for all users");
    }

    #[test]
    fn the_vsock_device_runs_as_the_directorys_owner() {
        let (directory, opened) = (VsockDirectory::new(Path::new("/pod"), 2_000_000_007), std::fs::File::open("/").unwrap());
        let invocation = vsock(Path::new("/usr/bin/vhost-device-vsock"), &directory, opened.as_fd());
        assert_eq!(arguments(&invocation), ["--guest-cid=3", "--socket=/proc/self/fd/3/device", "--uds-path=/proc/self/fd/3/host"]);
        let Confinement { user, capabilities, pids, files, calls } = invocation.confinement;
        assert_eq!((user, capabilities, pids, calls), (Some(2_000_000_007), CapabilitySet::NONE, Pids::Itself, Calls::Server));
        assert_eq!(files.unwrap().own, [Path::new("/pod/v")]);
    }
}
