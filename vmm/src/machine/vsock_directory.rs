// SPDX-License-Identifier: Apache-2.0
//! The directory of a vsock that is served in user space. It belongs to the user of whoever serves
//! it: the vsock device or the hypervisor itself.
//!
//! ```text
//! <vm>/v/device     the vsock device, if there is one, waits here for the hypervisor (vhost-user)
//!        host       processes of the host reach the guest here: CONNECT <port>
//!        host_1025  the guest's first message arrives here, as a connection to this port of the host
//! ```

use magnetar_core::confined::socket::NamedSocket;
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_vm_agent_api::READY_PORT;
use rustix::fs::{Mode, OFlags, Uid, chown, open};
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::time::Instant;

/// The directory's name. It is short because a socket's path is limited.
const NAME: &str = "v";

/// The socket for the hypervisor.
pub const DEVICE: &str = "device";

/// The socket for the host.
pub const HOST: &str = "host";

/// How long the vsock device may take until it listens.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

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

    /// Connects to the device, once it listens. Cancel-safe.
    ///
    /// A program binds its socket before it listens there. In between, the socket exists and the
    /// kernel refuses connections to it (unix(7), ECONNREFUSED).
    ///
    /// # Errors
    /// `DeadlineExceeded` if the device does not listen in time; `PermissionDenied` if there is
    /// something other than the device's socket; errors of the kernel.
    pub async fn connect_device(&self) -> Result<OwnedFd> {
        let device = self.device();
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        loop {
            match NamedSocket::of(&device, self.owner).and_then(|socket| socket.connect()) {
                Err(error) if matches!(error.code(), Code::NotFound | Code::Unavailable) => {
                    if Instant::now() > deadline {
                        let message = format!("the vsock device does not listen at {} after {LISTEN_TIMEOUT:?}: {error}", device.display());
                        return Err(Error::new(Code::DeadlineExceeded, message));
                    }
                }
                connected => return connected,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

    fn directory(dir: &tempfile::TempDir) -> VsockDirectory {
        let directory = VsockDirectory::new(dir.path(), rustix::process::geteuid().as_raw());
        std::fs::create_dir(directory.path()).unwrap();
        directory
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_is_connected_to_once_it_listens() {
        let dir = tempfile::tempdir().unwrap();
        let directory = directory(&dir);
        let device = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let path = SocketAddrUnix::new(directory.device()).unwrap();
        let device = async {
            tokio::time::sleep(LISTEN_TIMEOUT / 4).await;
            bind(&device, &path).unwrap();
            // Connections are refused now.
            tokio::time::sleep(LISTEN_TIMEOUT / 4).await;
            listen(&device, 1).unwrap();
        };
        let (connected, ()) = tokio::join!(directory.connect_device(), device);
        connected.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_never_listens_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = directory(&dir).connect_device().await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        assert!(error.to_string().contains("does not listen at"), "{error}");
    }
}
