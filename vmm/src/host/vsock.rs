// SPDX-License-Identifier: Apache-2.0
//! What serves a guest's vsock: the host's kernel where it can, otherwise a process in user space.
//!
//! With the kernel's vsock, each guest of the host has its own address, a CID. Nothing lists the
//! free CIDs, so it is chosen at random. It is taken by opening /dev/vhost-vsock and setting it
//! there. The kernel gives a CID to nobody else (libvirt, Kata) while that descriptor is open. The
//! hypervisor inherits the descriptor. We keep ours until the machine has ended, so that a
//! connection to the CID never reaches another guest. Nothing on the host listens for the guest,
//! because any guest of the host could connect there.
//!
//! Linux 7.0 can limit CIDs to a network namespace (net.vsock.child_ns_mode). One thread opens the
//! device and the connections in the pod's namespace, so that makes no difference here.

use crate::machine::devices::VSOCK_DEVICE;
use magnetar_core::error::{Context, Error, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::debug;

/// The setting in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The kernel's vsock if it works, otherwise the one in user space.
    #[default]
    Auto,
    /// The kernel's vsock only.
    Kernel,
    /// The vsock in user space, even if the kernel has one.
    User,
}

/// What can serve the vsock of a hypervisor's guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VsockSupport {
    /// The host's kernel, through its vhost-vsock device. The hypervisor inherits the open device.
    pub kernel: bool,
    /// A process in user space, through vhost-user.
    pub user: bool,
    /// The hypervisor itself, through a Unix socket. This excludes the others.
    pub own: bool,
}

/// What serves a guest's vsock.
#[derive(Debug)]
pub enum Vsock {
    /// The host's kernel.
    Kernel(Cid),
    /// A process in user space.
    User {
        /// Its program.
        program: PathBuf,
    },
    /// The hypervisor itself.
    Own,
}

/// What the hypervisor gets to attach a vsock.
#[derive(Debug, Clone, Copy)]
pub enum VsockAttachment<'a> {
    /// The CID, and the kernel's device that has it.
    Kernel(&'a Cid),
    /// A connection to the process in user space. Its socket is in a directory of another user.
    User(BorrowedFd<'a>),
    /// The socket on which the hypervisor listens itself, with the protocol of Firecracker's
    /// docs/vsock.md.
    Own(&'a Path),
}

/// A guest's CID, and the device that has it. No other guest gets the CID while a descriptor of the
/// device is open.
#[derive(Debug, Clone)]
pub struct Cid {
    /// The CID, from [`LEAST`] to [`MOST`].
    pub number: u32,
    /// The open device /dev/vhost-vsock.
    pub device: Arc<OwnedFd>,
}

/// The kernel's device.
const DEVICE: &str = "/dev/vhost-vsock";

/// The lowest CID for a guest. Those below are for the hypervisor, local communication and the host
/// (vsock(7)).
pub const LEAST: u32 = 3;

/// The highest CID for a guest. The next one is the wildcard.
pub const MOST: u32 = u32::MAX - 1;

/// How many CIDs are tried. With a thousand guests on a host, one try in four million meets a used
/// one.
const TRIES: usize = 16;

/// Decides for a `hypervisor`, which supports what `can` says, after checking this node. Takes a
/// CID if the kernel's vsock is chosen.
///
/// # Errors
/// As [`decide`]; `NotFound` if only the program is missing.
pub fn choose(choice: Choice, hypervisor: &str, can: VsockSupport) -> Result<Vsock> {
    if can.own {
        return own(choice, hypervisor);
    }
    let kernel = if choice != Choice::User && can.kernel { take() } else { Err("it is not asked for".into()) };
    if decide(choice, hypervisor, can, kernel.as_ref().map(drop).map_err(String::as_str))? == Choice::Kernel {
        // The kernel is chosen only if it works.
        return kernel.map(Vsock::Kernel).map_err(Error::internal);
    }
    let program = VSOCK_DEVICE.find("");
    match (program, kernel) {
        (Ok(program), kernel) => {
            debug!(kernel = kernel.err(), "using a vsock in user space");
            Ok(Vsock::User { program })
        }
        (Err(missing), Err(reason)) if choice == Choice::Auto && can.kernel => {
            Err(Error::new(missing.code(), format!("{missing}; or load the kernel's module vhost_vsock: {reason}")))
        }
        (Err(missing), _) => Err(missing),
    }
}

fn own(choice: Choice, hypervisor: &str) -> Result<Vsock> {
    match choice {
        Choice::Auto => Ok(Vsock::Own),
        Choice::Kernel | Choice::User => {
            Err(Error::precondition(format!("{hypervisor} serves its guests' vsock itself: set vsock = \"auto\", or leave it out")))
        }
    }
}

/// The decision, given whether the kernel's vsock works or why it does not. Never [`Choice::Auto`].
///
/// # Errors
/// `FailedPrecondition` if the requested vsock is not available, with the reason and a remedy.
fn decide(choice: Choice, hypervisor: &str, can: VsockSupport, kernel: Result<(), &str>) -> Result<Choice> {
    let cannot = |what: &str, instead: &str| Error::precondition(format!("{hypervisor} cannot have {what}: set vsock = \"{instead}\""));
    match (choice, can, kernel) {
        (_, VsockSupport { kernel: false, user: false, .. }, _) => Err(Error::unimplemented(format!(
            "{hypervisor} supports neither the kernel's vsock nor one in user space; pods need one of them so far"
        ))),
        (Choice::User, VsockSupport { user: false, .. }, _) => Err(cannot("a vsock in user space", "kernel")),
        (Choice::Kernel, VsockSupport { kernel: false, .. }, _) => Err(cannot("the kernel's vsock", "user")),
        (Choice::Auto | Choice::Kernel, VsockSupport { kernel: true, .. }, Ok(())) => Ok(Choice::Kernel),
        (Choice::Auto | Choice::User, VsockSupport { user: true, .. }, _) => Ok(Choice::User),
        (Choice::Kernel, VsockSupport { user: true, .. }, Err(reason)) => Err(Error::precondition(format!(
            "{hypervisor} is configured to use the kernel's vsock, but {reason}; load the module vhost_vsock, or set vsock = \"user\""
        ))),
        (Choice::Auto | Choice::Kernel, VsockSupport { user: false, .. }, Err(reason)) => {
            Err(Error::precondition(format!("{hypervisor} needs the kernel's vsock, but {reason}; load the module vhost_vsock")))
        }
    }
}

/// Takes a CID, or returns why it cannot. The kernel loads both modules, for guests' vsocks and for
/// the host's, on demand.
fn take() -> Result<Cid, String> {
    let device = File::options().read(true).write(true).open(DEVICE).map_err(|error| format!("{DEVICE}: {error}"))?;
    // The service manager or a container may forbid it.
    rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| format!("there are no vsock sockets: {error}"))?;
    let number = take_from(TRIES, random, |number| magnetar_sys::vsock::set_guest_cid(device.as_fd(), number))?;
    Ok(Cid { number, device: Arc::new(device.into()) })
}

/// A random number, so that few tries meet a CID of another guest.
fn random() -> Result<u32> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes, GetRandomFlags::empty()).context(|| "cannot get random bytes for the guest's address".into())?;
    Ok(u32::from_ne_bytes(bytes))
}

/// The first unused one of `tries` CIDs.
fn take_from(
    tries: usize,
    mut random: impl FnMut() -> Result<u32>,
    mut set: impl FnMut(u32) -> std::io::Result<()>,
) -> Result<u32, String> {
    for _ in 0..tries {
        let number = LEAST + random().map_err(|error| error.to_string())? % (MOST - LEAST + 1);
        match set(number) {
            Ok(()) => return Ok(number),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(format!("{DEVICE} does not accept the CID {number}: {error}")),
        }
    }
    Err(format!("all {tries} CIDs that were tried are in use"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::error::Code;

    const BOTH: VsockSupport = VsockSupport { kernel: true, user: true, own: false };
    const KERNEL: VsockSupport = VsockSupport { kernel: true, user: false, own: false };
    const USER: VsockSupport = VsockSupport { kernel: false, user: true, own: false };

    #[test]
    fn the_kernels_vsock_is_used_if_it_works() {
        for (choice, can) in [(Choice::Auto, BOTH), (Choice::Auto, KERNEL), (Choice::Kernel, BOTH), (Choice::Kernel, KERNEL)] {
            assert_eq!(decide(choice, "QEMU", can, Ok(())).unwrap(), Choice::Kernel);
        }
        for (choice, can) in [(Choice::User, BOTH), (Choice::User, USER), (Choice::Auto, USER)] {
            assert_eq!(decide(choice, "QEMU", can, Ok(())).unwrap(), Choice::User);
        }
    }

    #[test]
    fn without_the_kernels_vsock_only_auto_falls_back() {
        let missing = Err("there is none");
        assert_eq!(decide(Choice::Auto, "QEMU", BOTH, missing).unwrap(), Choice::User);
        assert_eq!(decide(Choice::User, "QEMU", BOTH, missing).unwrap(), Choice::User);
        for (choice, can) in [(Choice::Kernel, BOTH), (Choice::Kernel, KERNEL), (Choice::Auto, KERNEL)] {
            let error = decide(choice, "it", can, missing).unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition);
            assert!(error.to_string().contains("there is none; load the module vhost_vsock"), "{error}");
        }
    }

    #[test]
    fn an_unsupported_vsock_is_refused() {
        for (choice, can, word) in [(Choice::Kernel, USER, "set vsock = \"user\""), (Choice::User, KERNEL, "set vsock = \"kernel\"")] {
            let error = decide(choice, "it", can, Ok(())).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        let none = VsockSupport { kernel: false, user: false, own: false };
        for choice in [Choice::Auto, Choice::Kernel, Choice::User] {
            assert_eq!(decide(choice, "it", none, Ok(())).unwrap_err().code(), Code::Unimplemented);
        }
    }

    #[test]
    fn a_hypervisor_with_its_own_vsock_leaves_no_choice() {
        let own = VsockSupport { kernel: false, user: false, own: true };
        assert!(matches!(choose(Choice::Auto, "it", own), Ok(Vsock::Own)));
        for choice in [Choice::Kernel, Choice::User] {
            assert!(choose(choice, "it", own).unwrap_err().to_string().contains("set vsock = \"auto\""));
        }
    }

    #[test]
    fn a_used_cid_is_skipped() {
        let mut said = [0, u32::MAX, MOST - LEAST].into_iter();
        let mut tried = Vec::new();
        let taken = take_from(
            3,
            || Ok(said.next().unwrap()),
            |number| {
                tried.push(number);
                if tried.len() == 3 { Ok(()) } else { Err(ErrorKind::AddrInUse.into()) }
            },
        );
        assert_eq!(taken.unwrap(), MOST);
        assert!(tried.iter().all(|number| (LEAST..=MOST).contains(number)), "{tried:?}");
    }

    #[test]
    fn the_search_for_a_cid_ends() {
        let full = take_from(4, || Ok(7), |_| Err(ErrorKind::AddrInUse.into()));
        assert_eq!(full.unwrap_err(), "all 4 CIDs that were tried are in use");
        let refused = take_from(4, || Ok(7), |_| Err(ErrorKind::PermissionDenied.into())).unwrap_err();
        assert!(refused.contains("does not accept the CID 10"), "{refused}");
    }

    #[test]
    fn the_setting_has_three_values() {
        for (word, choice) in [("\"auto\"", Choice::Auto), ("\"kernel\"", Choice::Kernel), ("\"user\"", Choice::User)] {
            assert_eq!(serde_json::from_str::<Choice>(word).unwrap(), choice);
        }
        assert!(serde_json::from_str::<Choice>("\"vhost\"").is_err());
    }
}
