// SPDX-License-Identifier: Apache-2.0
//! The place where the engine of a model answers: a socket in a folder of its user's.

use super::llama::SOCKET;
use magnetar_core::confined::socket::NamedSocket;
use magnetar_core::error::{Code, Context, Result};
use rustix::fs::{Gid, Mode, OFlags, Uid, chown, open};
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tracing::debug;

/// How often an engine is asked whether it has loaded its model: it has no other way to say so.
const LOOK: Duration = Duration::from_millis(5);

/// Where an engine answers.
#[derive(Debug)]
pub struct Place {
    /// Its folder.
    pub folder: PathBuf,
    /// The user it runs as, and its group.
    pub user: u32,
}

impl Place {
    /// Makes the folder for its user, and opens it.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn make(&self) -> Result<OwnedFd> {
        let folder = &self.folder;
        let what = || format!("cannot make {}", folder.display());
        let parent = folder.parent().unwrap_or(folder);
        DirBuilder::new().mode(0o700).recursive(true).create(parent).context(what)?;
        DirBuilder::new().mode(0o700).create(folder).context(what)?;
        chown(folder, Some(Uid::from_raw(self.user)), Some(Gid::from_raw(self.user))).context(what)?;
        open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).context(what)
    }

    /// Makes symbolic links in the folder.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn link(&self, links: &[(String, PathBuf)]) -> Result<()> {
        let what = |name: &str| format!("cannot make the link {name} in {}", self.folder.display());
        links.iter().try_for_each(|(name, to)| symlink(to, self.folder.join(name)).context(|| what(name)))
    }

    /// Removes the folder. What stays is removed with the pod.
    pub fn remove(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            debug!(%error, folder = %self.folder.display(), "cannot remove the folder of a model's engine");
        }
    }

    /// Connects to the engine.
    ///
    /// # Errors
    /// Those of [`NamedSocket::of`], and of the kernel.
    pub async fn connect(&self) -> Result<UnixStream> {
        let socket = NamedSocket::of(&self.folder.join(SOCKET), self.user)?;
        UnixStream::connect(socket.path()).await.context(|| "cannot connect to the engine of a model".into())
    }

    /// Waits until the engine has loaded its model. Cancel-safe.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), but that it does not listen yet.
    pub async fn loaded(&self) -> Result<()> {
        loop {
            match self.is_loaded().await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if matches!(error.code(), Code::NotFound | Code::Unavailable) => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether it says so (llama.cpp's server, `GET /health`: 503 while it loads).
    async fn is_loaded(&self) -> Result<bool> {
        let mut connection = self.connect().await?;
        let mut answer = Vec::new();
        let asked = async {
            connection.write_all(b"GET /health HTTP/1.1\r\nHost: model\r\nConnection: close\r\n\r\n").await?;
            connection.take(1 << 10).read_to_end(&mut answer).await
        };
        // It may end meanwhile, which is noticed elsewhere.
        let _broken_off = asked.await;
        Ok(answer.starts_with(b"HTTP/1.1 200 "))
    }
}
