// SPDX-License-Identifier: Apache-2.0
//! A process's streams: FIFOs, as the core uses them, each with a connection to the host.
//!
//! When a process ends, its output is in the FIFO, and the end of file comes after it. So nothing
//! is lost, however quickly the process ends. A client that does not read blocks the process, by
//! the connection's flow control.

use magnetar_core::error::{Context, Error, Result};
use magnetar_core::ids::{ContainerId, ExecId};
use magnetar_vm_agent_api::{self as api, StreamKind, StreamName, chunk};
use rustix::fs::{CWD, FileType, Mode};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite, empty, sink};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

/// The processes that have streams.
#[derive(Debug, Default)]
pub struct Streams(Mutex<BTreeMap<(ContainerId, Option<ExecId>), Process>>);

#[derive(Debug, Default)]
struct Process {
    paths: Vec<PathBuf>,
    forgotten: CancellationToken,
}

/// One stream that was opened.
#[derive(Debug)]
pub struct Opened {
    fifo: Fifo,
    forgotten: CancellationToken,
}

/// The agent's end of the FIFO.
#[derive(Debug)]
enum Fifo {
    Input(pipe::Sender),
    Output(pipe::Receiver),
}

impl Streams {
    /// Makes a FIFO, and opens the agent's end of it.
    ///
    /// # Errors
    /// `InvalidArgument` for an invalid name, or the kernel's error.
    pub fn open(&self, name: &StreamName) -> Result<Opened> {
        let container = ContainerId::parse(name.container.clone())?;
        let exec = name.exec.clone().map(ExecId::parse).transpose()?;
        let path = PathBuf::from(name.path());
        let what = || format!("cannot make the stream {}", path.display());
        let dir = path.parent().ok_or_else(|| Error::internal(what()))?;
        std::fs::create_dir_all(dir).context(what)?;
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).context(what)?;
        let forgotten = {
            let mut processes = self.processes();
            let process = processes.entry((container, exec)).or_default();
            process.paths.push(path.clone());
            process.forgotten.clone()
        };
        let mut options = pipe::OpenOptions::new();
        let fifo = match name.kind {
            // For reading as well, so that it can be opened before its process is there.
            StreamKind::Stdin => Fifo::Input(options.read_write(true).open_sender(&path).context(what)?),
            StreamKind::Stdout | StreamKind::Stderr => Fifo::Output(options.open_receiver(&path).context(what)?),
        };
        Ok(Opened { fifo, forgotten })
    }

    /// Closes and removes a process's streams; for a container, those of its execs as well.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn forget(&self, container: &ContainerId, exec: Option<&ExecId>) -> Result<()> {
        let gone: Vec<Process> = {
            let mut processes = self.processes();
            let names = processes.keys().filter(|(of, its)| of == container && (exec.is_none() || its.as_ref() == exec));
            let names: Vec<_> = names.cloned().collect();
            names.iter().filter_map(|name| processes.remove(name)).collect()
        };
        for process in gone {
            process.forgotten.cancel();
            for path in process.paths {
                remove(std::fs::remove_file(&path), &path)?;
            }
        }
        if exec.is_none() {
            let dir = Path::new(api::STREAMS).join(container.as_str());
            remove(std::fs::remove_dir(&dir), &dir)?;
        }
        Ok(())
    }

    fn processes(&self) -> MutexGuard<'_, BTreeMap<(ContainerId, Option<ExecId>), Process>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove(removed: std::io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(|| format!("cannot remove {}", path.display())),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Opened {
    /// Copies until the process or the host has closed its end, or the process is forgotten.
    ///
    /// # Errors
    /// When one of the ends fails.
    pub async fn copy(self, connection: impl AsyncRead + AsyncWrite) -> std::io::Result<()> {
        let Self { fifo, forgotten } = self;
        let copied = async {
            match fifo {
                // This waits before it reads: a FIFO without a writer reads as if it had ended.
                Fifo::Output(fifo) => chunk::carry(fifo, sink(), connection).await,
                Fifo::Input(fifo) => chunk::carry(empty(), fifo, connection).await,
            }
        };
        tokio::select! {
            copied = copied => copied,
            () = forgotten.cancelled() => Ok(()),
        }
    }
}
