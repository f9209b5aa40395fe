// SPDX-License-Identifier: Apache-2.0
//! A process's streams: FIFOs, which the core knows how to treat, each with a connection to the host.
//!
//! What a process has written is in the FIFO when it ends, and the end comes after it: nothing is lost, however quickly the
//! process ends. Whoever does not read holds up the process, by the connection's flow control.

use magnetar_core::error::{Context, Error, Result};
use magnetar_core::ids::{ContainerId, ExecId};
use magnetar_sys::readiness;
use magnetar_vm_agent_api::{StreamKind, StreamName};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};

/// Bytes moved at a time.
const BUFFER: usize = 32 << 10;

/// Makes a FIFO, and opens the end of it that is not the process's.
///
/// # Errors
/// `InvalidArgument` for a name that is none, and what the kernel says.
pub fn open(name: &StreamName) -> Result<AsyncFd<OwnedFd>> {
    ContainerId::parse(name.container.clone())?;
    name.exec.clone().map(ExecId::parse).transpose()?;
    let path = PathBuf::from(name.path());
    let what = || format!("cannot make the stream {}", path.display());
    let dir = path.parent().ok_or_else(|| Error::internal(what()))?;
    std::fs::create_dir_all(dir).context(what)?;
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).context(what)?;
    // For writing: open for reading too, so that it can be opened before its process is there.
    let flags = if name.kind == StreamKind::Stdin { OFlags::RDWR } else { OFlags::RDONLY };
    let fifo = rustix::fs::open(&path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).context(what)?;
    readiness::watch(fifo).context(what)
}

/// Copies until the process has closed its end, or the host its.
pub async fn copy(fifo: AsyncFd<OwnedFd>, kind: StreamKind, connection: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let (mut host, mut to_host) = tokio::io::split(connection);
    match kind {
        StreamKind::Stdin => {
            let mut buffer = vec![0; BUFFER];
            loop {
                let length = host.read(&mut buffer).await?;
                if length == 0 {
                    return Ok(());
                }
                let mut rest = &buffer[..length];
                while !rest.is_empty() {
                    let written = fifo.async_io(Interest::WRITABLE, |fifo| Ok(rustix::io::write(fifo, rest)?)).await?;
                    rest = &rest[written..];
                }
            }
        }
        StreamKind::Stdout | StreamKind::Stderr => {
            let mut word = [0];
            tokio::select! {
                copied = copy_out(&fifo, &mut to_host) => copied?,
                // The host says nothing here: it has gone.
                ended = host.read(&mut word) => return ended.map(drop),
            }
            to_host.shutdown().await?;
            // Closed by us alone, the connection might end before its last bytes have arrived.
            host.read(&mut word).await.map(drop)
        }
    }
}

async fn copy_out(fifo: &AsyncFd<OwnedFd>, to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        // Waits before it reads: a FIFO that nobody has opened for writing yet reads as if it had ended.
        let mut ready = fifo.readable().await?;
        match ready.try_io(|fifo| Ok(rustix::io::read(fifo, &mut buffer)?)) {
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(length)) => to.write_all(&buffer[..length]).await?,
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}
