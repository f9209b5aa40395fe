// SPDX-License-Identifier: Apache-2.0
//! The processes that are devices of a machine: what shares files with the guest, and what carries its vsock.
//!
//! Both speak vhost-user: the hypervisor connects to a Unix socket and hands over the guest's memory. What comes out of that
//! memory is the guest's, so whoever reads it is confined as far as it lets itself be.

use crate::confinement::{Calls, Confinement, Files, Pids};
use crate::program::{Invocation, Program};
use magnetar_sys::bound::CapabilitySet;
use rustix::process::{Resource, getrlimit};
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// What shares files.
pub const VIRTIOFSD: Program = Program { name: "virtiofsd", places: &["/usr/libexec", "/usr/lib/qemu", "/usr/lib"], package: "virtiofsd" };

/// What carries the vsock where the kernel does not.
pub const VSOCK_DEVICE: Program =
    Program { name: "vhost-device-vsock", places: &["/usr/libexec", "/usr/lib/qemu"], package: "vhost-device-vsock" };

/// The socket for the hypervisor, in the vsock device's directory.
pub const VSOCK_SOCKET: &str = "device";

/// The socket for the host, in the vsock device's directory.
pub const VSOCK_HOST: &str = "host";

/// How many files virtiofsd would like to have open: one for each that the guest knows.
const FILES: u64 = 1_000_000;

/// The guest's address. Each guest has a device of its own, so that all can have the same: the least that is no one else's.
const GUEST_CID: u32 = 3;

/// Shares `directory` with the hypervisor that connects to `socket`; ends when that one disconnects.
///
/// What is mounted below the directory later is seen too, if the directory is below a shared mount (mount_namespaces(7)): the
/// process has a mount namespace of its own, which is a slave of ours. It has the mounts open as long as the guest knows files
/// there, so they can only be unmounted lazily.
pub fn virtiofsd(program: &Path, socket: PathBuf, directory: &Path) -> Invocation<'static> {
    let mut invocation = Invocation::new(program);
    let listener = invocation.listen(socket);
    invocation.arguments([
        format!("--fd={listener}").into(),
        option("--shared-dir", directory),
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

/// Carries the vsock of the guest whose hypervisor connects to [`VSOCK_SOCKET`] in `directory`. Not before that exists: this
/// program takes no descriptor for it. Processes of the host reach the guest by connecting to [`VSOCK_HOST`] and saying `CONNECT
/// <port>`; what the guest connects to is [`vsock_door`].
///
/// It does not confine itself, so that it is run as a `user` that owns this directory, given by its path and open, and has nothing
/// else. It gets there by the descriptor, since a pod's directories are root's. It does not end with the hypervisor.
pub fn vsock<'a>(program: &Path, directory: (&Path, BorrowedFd<'a>), user: u32) -> Invocation<'a> {
    let (path, directory) = directory;
    let mut invocation = Invocation::new(program);
    invocation.confinement = Confinement {
        user: Some(user),
        capabilities: CapabilitySet::NONE,
        pids: Pids::Itself,
        files: Some(Files { read: Vec::new(), own: vec![path.to_owned()] }),
        calls: Calls::Server,
    };
    let directory = PathBuf::from(format!("/proc/self/fd/{}", invocation.open(directory)));
    invocation.arguments([
        format!("--guest-cid={GUEST_CID}").into(),
        option("--socket", &directory.join(VSOCK_SOCKET)),
        option("--uds-path", &directory.join(VSOCK_HOST)),
    ]);
    invocation
}

/// The name of the socket that a connection of the guest to this port of the host arrives at, if it is there: it must be the
/// device's user's.
pub fn vsock_door(port: u32) -> String {
    format!("{VSOCK_HOST}_{port}")
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
    use std::os::fd::AsFd;

    fn words(invocation: &Invocation) -> Vec<String> {
        invocation.arguments.iter().map(|word| word.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn virtiofsd_inherits_its_socket() {
        let invocation = virtiofsd(Path::new("/usr/libexec/virtiofsd"), "/pod/share.sock".into(), Path::new("/pod/share"));
        assert_eq!(invocation.program, Path::new("/usr/libexec/virtiofsd"));
        assert_eq!(invocation.listeners().collect::<Vec<_>>(), [Path::new("/pod/share.sock")]);
        assert_eq!(words(&invocation)[..3], ["--fd=3", "--shared-dir=/pod/share", "--sandbox=namespace"]);
        assert_eq!(invocation.confinement.user, None, "it makes files for all users");
    }

    #[test]
    fn the_vsock_is_not_roots() {
        let directory = std::fs::File::open("/").unwrap();
        let invocation = vsock(Path::new("/usr/bin/vhost-device-vsock"), (Path::new("/pod/v"), directory.as_fd()), 2_000_000_007);
        assert_eq!(words(&invocation), ["--guest-cid=3", "--socket=/proc/self/fd/3/device", "--uds-path=/proc/self/fd/3/host"]);
        let Confinement { user, capabilities, pids, files, calls } = invocation.confinement;
        assert_eq!((user, capabilities, pids, calls), (Some(2_000_000_007), CapabilitySet::NONE, Pids::Itself, Calls::Server));
        assert_eq!(files.unwrap().own, [Path::new("/pod/v")]);
        assert_eq!(vsock_door(1025), "host_1025");
    }
}
