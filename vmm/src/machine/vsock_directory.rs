// SPDX-License-Identifier: Apache-2.0
//! The directory of a vsock that is served in user space. It belongs to the user of whoever serves
//! it: the vsock device or the hypervisor itself.
//!
//! ```text
//! <vm>/v/device     the vsock device, if there is one, waits here for the hypervisor (vhost-user)
//!        host       processes of the host reach the guest here: CONNECT <port>
//!        host_1025  the guest's first message arrives here, as a connection to this port of the host
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

/// The directory's name. It is short because a socket's path is limited.
const NAME: &str = "v";

/// The socket for the hypervisor.
pub const DEVICE: &str = "device";

/// The socket for the host.
pub const HOST: &str = "host";

/// A vsock directory, in the machine's directory.
#[derive(Debug, Clone)]
pub struct VsockDirectory {
    path: PathBuf,
    owner: u32,
}

impl VsockDirectory {
    /// The vsock directory in `machine`, for a server that runs as the user `owner`. Makes nothing
    /// yet.
    pub fn new(machine: &Path, owner: u32) -> Self {
        Self { path: machine.join(NAME), owner }
    }

    /// Makes the directory, and the socket for the guest's first message.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn make(&self) -> Result<UnixListener> {
        let ready = self.path.join(format!("{HOST}_{READY_PORT}"));
        DirBuilder::new().mode(0o700).create(&self.path).context(|| format!("cannot make {}", self.path.display()))?;
        let listener = UnixListener::bind(&ready).context(|| format!("cannot listen at {}", ready.display()))?;
        for path in [&self.path, &ready] {
            chown(path, Some(Uid::from_raw(self.owner)), None).context(|| format!("cannot change the owner of {}", path.display()))?;
        }
        Ok(listener)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The user that owns it.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// The socket through which the host reaches the guest.
    pub fn host(&self) -> PathBuf {
        self.path.join(HOST)
    }

    /// The socket where the device waits for the hypervisor.
    pub fn device(&self) -> PathBuf {
        self.path.join(DEVICE)
    }

    /// Opens the directory. A server that cannot reach it by its path uses this descriptor.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open(&self.path, flags, Mode::empty()).context(|| format!("cannot open {}", self.path.display()))
    }

    /// Connects to the device. The hypervisor inherits the connection.
    ///
    /// # Errors
    /// `PermissionDenied` if there is something other than the device's socket; errors of the
    /// kernel.
    pub fn connect_device(&self) -> Result<OwnedFd> {
        NamedSocket::of(&self.device(), self.owner)?.connect()
    }
}
