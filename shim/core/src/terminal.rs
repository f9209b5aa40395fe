// SPDX-License-Identifier: Apache-2.0
//! Terminals: the OCI runtime passes a pseudo-terminal's master to us, and we copy between it and
//! the FIFOs.
//!
//! The master comes over a Unix socket as ancillary data, one message with one descriptor (runc's
//! `docs/terminals.md` calls it the console socket; crun does the same).

use crate::error::{Context, Error, Result};
use crate::stdio::{StdioSpec, meet_reader};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::termios::Winsize;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes moved at a time: a terminal's own buffer has 4096.
const BUFFER: usize = 4096;

/// The size of a terminal's window, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// How many stand side by side.
    pub columns: u16,
    /// How many lines there are.
    pub lines: u16,
}

/// The socket to which a runtime sends a master.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at `path`, which is removed when the socket is dropped.
    pub fn bind(path: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&path).context(|| format!("cannot listen at {}", path.display()))?;
        Ok(Self { listener, path })
    }

    /// The path to pass to the runtime.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the master out of the socket's queue. Call it when the runtime has succeeded: it has
    /// sent the message then, so this does not block. If it has not, that is an error.
    pub fn receive(&self) -> Result<OwnedFd> {
        let what = || "the OCI runtime sent no terminal".to_string();
        self.listener.set_nonblocking(true).context(what)?;
        let (stream, _) = self.listener.accept().context(what)?;
        stream.set_nonblocking(true).context(what)?;
        let mut name = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        rustix::net::recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).context(what)?;
        ancillary
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .ok_or_else(|| Error::internal(what()))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // A socket that stays is removed with the pod's directory.
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// A terminal in use.
#[derive(Debug, Clone)]
pub struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
    /// Set when the last process has closed its side.
    closed: CancellationToken,
}

impl Terminal {
    /// Waits for the reader of the output, then starts copying in tasks of `tasks`: input until its
    /// FIFO ends, output until the last process has closed the terminal. Then the output FIFO is
    /// closed, which ends the log. `log`, the pipe to a logging program, replaces that FIFO.
    ///
    /// # Errors
    /// When a FIFO cannot be opened, or no reader opens the output.
    pub async fn attach(master: OwnedFd, stdio: &StdioSpec, log: Option<OwnedFd>, tasks: &TaskTracker) -> Result<Self> {
        rustix::io::ioctl_fionbio(&master, true).context(|| "cannot make a terminal non-blocking".into())?;
        let master = Arc::new(magnetar_sys::readiness::watch(master).context(|| "cannot watch a terminal".into())?);
        let terminal = Self { master, closed: CancellationToken::new() };
        if let Some(path) = &stdio.stdin {
            // Open for writing as well, so that it does not end before the terminal does.
            let input =
                pipe::OpenOptions::new().read_write(true).open_receiver(path).context(|| format!("cannot open {}", path.display()))?;
            tasks.spawn(terminal.clone().copy_in(input));
        }
        let output = match (&stdio.stdout, log) {
            (Some(_), Some(log)) => Some((pipe::Sender::from_owned_fd(log).context(|| "cannot write to a logging program".into())?, None)),
            (Some(output), None) => {
                let path = output.path();
                let what = || format!("cannot open {}", path.display());
                let sender = pipe::Sender::from_owned_fd(meet_reader(path).await?).context(what)?;
                // This reader keeps the FIFO open while containerd is away.
                let keeper = pipe::OpenOptions::new().open_receiver(path).context(what)?;
                Some((sender, Some(keeper)))
            }
            (None, _) => None,
        };
        tasks.spawn(terminal.clone().copy_out(output));
        Ok(terminal)
    }

    /// Changes the size of the window.
    pub fn resize(&self, size: Size) -> Result<()> {
        let size = Winsize { ws_col: size.columns, ws_row: size.lines, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(self.master.get_ref(), size).context(|| "cannot resize the terminal".into())
    }

    async fn copy_in(self, mut input: pipe::Receiver) {
        let mut buffer = [0; BUFFER];
        loop {
            let length = tokio::select! {
                read = input.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(length) => length,
                },
                // A terminal without processes takes no input.
                () = self.closed.cancelled() => return,
            };
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                match self.master.async_io(tokio::io::Interest::WRITABLE, |master| Ok(rustix::io::write(master, rest)?)).await {
                    Ok(written) => rest = &rest[written..],
                    Err(_) => return,
                }
            }
        }
    }

    async fn copy_out(self, mut output: Option<(pipe::Sender, Option<pipe::Receiver>)>) {
        let _closed = self.closed.clone().drop_guard();
        let mut buffer = [0; BUFFER];
        loop {
            let read = self.master.async_io(tokio::io::Interest::READABLE, |master| Ok(rustix::io::read(master, &mut buffer)?)).await;
            match (read, &mut output) {
                // EIO: the last process has closed its side.
                (Ok(0) | Err(_), _) => return,
                (Ok(_), None) => {}
                (Ok(length), Some((sender, _keeper))) => {
                    if sender.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
