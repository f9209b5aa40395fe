// SPDX-License-Identifier: Apache-2.0
//! Copies a process's streams between containerd's FIFOs and the guest, with a connection and a
//! task for each.
//!
//! An output ends when the guest reports its end, after the last byte. So nothing is lost, however
//! quickly a process ends. An input ends with CloseIO, once containerd has closed its end too, or
//! with the process.

use crate::relay::guest::{Connection, Guest};
use magnetar_core::error::{Context, Error, Result};
use magnetar_core::ids::{ContainerId, ExecId};
use magnetar_core::logger::LogPipes;
use magnetar_core::stdio::{Output, StdioSpec, meet_reader};
use magnetar_vm_agent_api::{Purpose, StreamKind, StreamName, chunk};
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{self, Poll};
use tokio::io::{AsyncWrite, empty, sink};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// The streams of one process.
#[derive(Debug, Default)]
pub struct Streams {
    /// Keeps the input open while it has no writer.
    input: Mutex<Option<OwnedFd>>,
    ended: CancellationToken,
}

/// The names of a process's streams in the guest, for the Task API there. An empty name means no
/// stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StreamPaths {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// An output's destination on the host.
enum Sink {
    /// A FIFO, with a reader that keeps it open while containerd is away.
    Fifo(pipe::Sender, pipe::Receiver),
    /// A logging program.
    Program(pipe::Sender),
    /// A file.
    File(File),
}

impl Streams {
    /// Opens a process's streams on both sides and starts to copy them. `logs` are the pipes of its
    /// logging program. The input is copied in a task of `tasks`, each output in a task of
    /// `outputs`, which ends after the last byte. Call it before the process is made. Returns the
    /// streams, and their names in the guest.
    ///
    /// # Errors
    /// If a FIFO cannot be opened, no reader opens it, or the guest refuses.
    pub async fn open(
        guest: &Guest,
        container: &ContainerId,
        exec: Option<&ExecId>,
        stdio: &StdioSpec,
        tasks: &TaskTracker,
        outputs: &TaskTracker,
        logs: Option<LogPipes>,
    ) -> Result<(Self, StreamPaths)> {
        let streams = Self::default();
        let mut paths = StreamPaths::default();
        let name = |kind| StreamName { container: container.to_string(), exec: exec.map(ExecId::to_string), kind };
        if let Some(path) = &stdio.stdin {
            let what = || format!("cannot open the stream {}", path.display());
            let receiver = pipe::OpenOptions::new().open_receiver(path).context(what)?;
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            let keeper = rustix::fs::open(path, flags, Mode::empty()).context(what)?;
            *streams.input.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
            let name = name(StreamKind::Stdin);
            paths.stdin = name.path();
            let connection = guest.dial(Purpose::Stream(name)).await?;
            let ended = streams.ended.clone();
            tasks.spawn(async move {
                tokio::select! {
                    sent = chunk::carry(receiver, sink(), connection) => if let Err(error) = sent {
                        debug!(%error, "an input has ended early");
                    },
                    () = ended.cancelled() => {}
                }
            });
        }
        let (log_of_stdout, log_of_stderr) = logs.map(|logs| (logs.stdout, logs.stderr)).unzip();
        for (output, log, kind, path) in [
            (&stdio.stdout, log_of_stdout, StreamKind::Stdout, &mut paths.stdout),
            (&stdio.stderr, log_of_stderr, StreamKind::Stderr, &mut paths.stderr),
        ] {
            let Some(output) = output else { continue };
            let sink = Sink::open(output, log).await?;
            let name = name(kind);
            *path = name.path();
            let connection = guest.dial(Purpose::Stream(name)).await?;
            outputs.spawn(async move {
                if let Err(error) = sink.fill(connection).await {
                    debug!(%error, "an output has ended early");
                }
            });
        }
        Ok((streams, paths))
    }

    /// Ends the input once containerd has closed its end.
    pub fn close_input(&self) {
        drop(self.input.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Stops the input, because the process has ended. Outputs end by themselves.
    pub fn process_ended(&self) {
        self.close_input();
        self.ended.cancel();
    }
}

impl Sink {
    async fn open(output: &Output, log: Option<OwnedFd>) -> Result<Self> {
        let path = output.path();
        let what = || format!("cannot open the stream {}", path.display());
        let append = |create: bool| {
            let file = std::fs::OpenOptions::new().append(true).create(create).open(path);
            file.map(Sink::File).context(what)
        };
        match output {
            Output::Program(_) => {
                let log = log.ok_or_else(|| Error::internal(format!("the logging program {} was not run", path.display())))?;
                pipe::Sender::from_owned_fd(log).map(Sink::Program).context(what)
            }
            Output::File(_) => append(true),
            Output::Fifo(path) => {
                let stat = rustix::fs::stat(path.as_path()).context(what)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo { Self::fifo(path).await } else { append(false) }
            }
        }
    }

    async fn fifo(path: &Path) -> Result<Self> {
        let what = || format!("cannot open the stream {}", path.display());
        let sender = pipe::Sender::from_owned_fd(meet_reader(path).await?).context(what)?;
        Ok(Self::Fifo(sender, pipe::OpenOptions::new().open_receiver(path).context(what)?))
    }

    async fn fill(self, connection: Connection) -> std::io::Result<()> {
        match self {
            Sink::Fifo(fifo, _reader) => chunk::carry(empty(), fifo, connection).await,
            Sink::Program(pipe) => chunk::carry(empty(), pipe, connection).await,
            Sink::File(file) => chunk::carry(empty(), Blocking(file), connection).await,
        }
    }
}

/// A file is always ready; a write to it blocks until it is done.
struct Blocking(File);

impl AsyncWrite for Blocking {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut task::Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(self.0.write(bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(self.0.flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
