// SPDX-License-Identifier: Apache-2.0
//! A container and its processes, as the Task API sees them.

use super::registry::Registry;
use super::spec::Spec;
use crate::cgroup::OwnedCgroup;
use crate::copies::Copies;
use crate::error::{Context, Result};
use crate::ids::{ContainerId, ExecId};
use crate::logger::{LogPipes, Logging};
use crate::process::{Life, Phase};
use crate::runtime::Subject;
use crate::stdio::{ChildStreams, Keepers, StdioSpec};
use crate::terminal::Terminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// One container of the pod.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub id: ContainerId,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The directory where we mounted its root filesystem.
    pub rootfs: Option<PathBuf>,
    /// Its specification.
    pub spec: Spec,
    /// Its first process.
    pub init: Arc<Process>,
    /// Its further processes.
    pub execs: Registry<ExecId, Process>,
    cgroup: OnceLock<OwnedCgroup>,
    oom_reported: AtomicU64,
}

/// One process of a container.
#[derive(Debug)]
pub struct Process {
    /// Its streams.
    pub stdio: StdioSpec,
    /// Its life.
    pub life: Life,
    /// `process` of the OCI specification as JSON; empty for an init, whose bundle has it.
    pub process: Vec<u8>,
    streams: Mutex<Attached>,
    /// The logging program for its output, if there is one.
    pub logging: Logging,
    copies: Mutex<Option<Copies>>,
}

#[derive(Debug, Default)]
enum Attached {
    #[default]
    None,
    Pipes(Keepers),
    Terminal(Terminal),
}

impl Container {
    /// A container before it is made.
    pub fn new(id: ContainerId, bundle: PathBuf, rootfs: Option<PathBuf>, spec: Spec, stdio: StdioSpec) -> Self {
        let init = Arc::new(Process::new(stdio, Vec::new(), Phase::Creating));
        let execs = Registry::new("exec", format!("container {id}"));
        Self { id, bundle, rootfs, spec, init, execs, cgroup: OnceLock::new(), oom_reported: AtomicU64::new(0) }
    }

    /// Sets the cgroup that was claimed for it. Only the first call counts.
    pub fn set_cgroup(&self, cgroup: OwnedCgroup) {
        let _the_first_counts = self.cgroup.set(cgroup);
    }

    /// Its cgroup. `None` until one is claimed, and if its specification names none.
    pub fn cgroup(&self) -> Option<&OwnedCgroup> {
        self.cgroup.get()
    }

    /// Whether `kills`, the kernel's count of OOM kills in the container, has grown since the last
    /// report.
    pub fn is_new_oom(&self, kills: u64) -> bool {
        self.oom_reported.fetch_max(kills, Ordering::Relaxed) < kills
    }

    /// Its init, whose process id is `pid`.
    pub fn init_subject(&self, pid: u32) -> Subject<'_> {
        Subject { container: &self.id, exec: None, pid }
    }

    /// Its init, or one of its execs.
    ///
    /// # Errors
    /// `NotFound` for an exec that was not announced or has been deleted.
    pub fn process(&self, exec: Option<&ExecId>) -> Result<Arc<Process>> {
        match exec {
            None => Ok(self.init.clone()),
            Some(exec) => self.execs.get(exec),
        }
    }
}

impl Process {
    /// A process that does not run yet.
    pub fn new(stdio: StdioSpec, process: Vec<u8>, phase: Phase) -> Self {
        Self { stdio, life: Life::new(phase), process, streams: Mutex::default(), logging: Logging::default(), copies: Mutex::default() }
    }

    /// Ends the outputs of an exec that is being removed.
    pub async fn end_outputs(&self) {
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(copies) = copies {
            copies.end().await;
        }
    }

    /// Opens the FIFOs for a process without a terminal, and gives them to the user it runs as. The
    /// output of an exec is copied, so that it can be ended while another process still has it
    /// open.
    pub async fn open_pipes(&self, owner: Option<(u32, u32)>, logs: Option<LogPipes>, is_exec: bool) -> Result<ChildStreams> {
        let (mut child, keepers) = self.stdio.open(logs).await?;
        if is_exec {
            *self.copies.lock().unwrap_or_else(PoisonError::into_inner) = Some(Copies::begin(&mut child)?);
        }
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            let ours = [
                (self.stdio.stdin.is_some(), &child.stdin),
                (self.stdio.stdout.is_some(), &child.stdout),
                (self.stdio.stderr.is_some(), &child.stderr),
            ];
            for (ours, fd) in ours {
                if ours {
                    rustix::fs::fchown(fd, Some(uid), Some(gid)).context(|| "cannot give a stream to the container's user".into())?;
                }
            }
        }
        *self.streams() = Attached::Pipes(keepers);
        Ok(child)
    }

    /// Sets the terminal.
    pub fn set_terminal(&self, terminal: Terminal) {
        *self.streams() = Attached::Terminal(terminal);
    }

    /// Its terminal, if it has one.
    pub fn terminal(&self) -> Option<Terminal> {
        match &*self.streams() {
            Attached::Terminal(terminal) => Some(terminal.clone()),
            Attached::Pipes(_) | Attached::None => None,
        }
    }

    /// Ends its input.
    pub fn close_stdin(&self) {
        match &*self.streams() {
            Attached::Pipes(keepers) => keepers.close_stdin(),
            // A terminal's input cannot be closed: the user types the end of input.
            Attached::Terminal(_) | Attached::None => {}
        }
    }

    /// Releases the streams after its end, so that readers see the end.
    pub fn detach(&self) {
        *self.streams() = Attached::None;
    }

    fn streams(&self) -> MutexGuard<'_, Attached> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
