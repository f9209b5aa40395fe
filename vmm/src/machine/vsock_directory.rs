// SPDX-License-Identifier: Apache-2.0
//! The directory of a vsock that is carried in user space: its one owner is whoever carries it, the vsock device or the hypervisor
//! itself.
//!
//! ```text
//! <vm>/v/device     where the device waits for the hypervisor, by vhost-user; of a device only
//!        host       where processes of the host reach the guest: CONNECT <port>
//!        host_1025  where we hear the guest's first word; a connection of the guest to this port of the host
//! ```

use crate::host::socket::NamedSocket;
use magnetar_core::error::{Context, Result};
use magnetar_vm_agent_api::READY_PORT;
use rustix::fs::{Mode, OFlags, Uid, chown, open};
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// The directory's name. Short: a socket's path has its limits.
const NAME: &str = "v";

/// The socket for the hypervisor.
pub const DEVICE: &str = "device";

/// The socket for the host.
pub const HOST: &str = "host";

/// One, in the machine's directory.
#[derive(Debug, Clone)]
pub struct VsockDirectory {
    path: PathBuf,
    owner: u32,
}

impl VsockDirectory {
    /// That of the machine whose directory is `machine`, for a carrier that runs as the user `owner`. Nothing is made yet.
    pub fn new(machine: &Path, owner: u32) -> Self {
        Self { path: machine.join(NAME), owner }
    }

    /// Makes it, with the socket on which the guest's first word is heard.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make(&self) -> Result<UnixListener> {
        let ready = self.path.join(format!("{HOST}_{READY_PORT}"));
        DirBuilder::new().mode(0o700).create(&self.path).context(|| format!("cannot make {}", self.path.display()))?;
        let listener = UnixListener::bind(&ready).context(|| format!("cannot listen at {}", ready.display()))?;
        for path in [&self.path, &ready] {
            chown(path, Some(Uid::from_raw(self.owner)), None).context(|| format!("cannot give {} away", path.display()))?;
        }
        Ok(listener)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// Where the host reaches the guest.
    pub fn host(&self) -> PathBuf {
        self.path.join(HOST)
    }

    /// Where the device waits for the hypervisor.
    pub fn device(&self) -> PathBuf {
        self.path.join(DEVICE)
    }

    /// Itself, opened: a carrier that could not get here by the path gets here by this.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open(&self.path, flags, Mode::empty()).context(|| format!("cannot open {}", self.path.display()))
    }

    /// Connects to the device, for the hypervisor that inherits the connection.
    ///
    /// # Errors
    /// `PermissionDenied` where something else than the device's socket is there, and what the kernel says.
    pub fn connect_device(&self) -> Result<OwnedFd> {
        NamedSocket::of(&self.device(), self.owner)?.connect()
    }
}
