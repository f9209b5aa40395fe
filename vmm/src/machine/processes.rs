// SPDX-License-Identifier: Apache-2.0
//! The processes of a machine: the hypervisor and its helpers. They die with this process, gain no privileges, and are
//! reaped where all are.

use super::confinement::{Confinement, Pids};
use super::log_tail::LogTail;
use super::program::Invocation;
use magnetar_core::cgroup::Cgroup;
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::reaper::{Exit, Reaper};
use magnetar_sys::bound::{self, Bounds};
use magnetar_sys::holder::{self, HolderError};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// One of them.
#[derive(Debug)]
pub struct Process {
    /// As it is called.
    pub name: &'static str,
    /// Its process id.
    pub pid: u32,
    /// What it says on standard error.
    pub errors: LogTail,
    reaper: Reaper,
    ended: oneshot::Receiver<Exit>,
    exit: Option<Exit>,
    _holder: Option<Holder>,
}

/// The first process of another one's PID namespace. What is in there dies with it.
#[derive(Debug)]
struct Holder {
    pid: u32,
    reaper: Reaper,
    /// Only what is watched is signalled.
    _ended: oneshot::Receiver<Exit>,
}

impl Holder {
    fn run(reaper: &Reaper) -> Result<Self> {
        let what = || "cannot make a PID namespace".to_string();
        let pid = holder::spawn(true, || Ok(())).map_err(|error| match error {
            HolderError::Fork(error) => Error::internal(format!("{}: {error}", what())),
            HolderError::Prepare(message) => Error::internal(format!("{}: {message}", what())),
        })?;
        Ok(Self { pid, reaper: reaper.clone(), _ended: reaper.watch(pid) })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ended_meanwhile = self.reaper.signal(self.pid, libc::SIGKILL as u32);
    }
}

/// What all processes of a machine have in common.
#[derive(Debug, Clone, Copy)]
pub struct Common<'a> {
    /// Where they are reaped.
    pub reaper: &'a Reaper,
    /// The owner of the tasks that listen to them.
    pub tasks: &'a TaskTracker,
    /// The pod's cgroup, to which they are accounted from their first instruction on.
    pub cgroup: &'a Cgroup,
}

impl Process {
    /// Runs a program. Its standard output goes to `output`, if that is wanted, and a file.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run(name: &'static str, invocation: &Invocation<'_>, output: Option<(LogTail, PathBuf)>, common: Common<'_>) -> Result<Self> {
        let Common { reaper, tasks, cgroup } = common;
        let what = || format!("cannot run {}", invocation.program.display());
        let mut command = invocation.command()?;
        command.env_clear().current_dir("/");
        let (reader, writer) = std::io::pipe().context(what)?;
        command.stderr(writer);
        let errors = LogTail::default();
        tasks.spawn(errors.clone().listen(name, reader.into(), None));
        match output {
            None => {
                command.stdout(Stdio::null());
            }
            Some((words, file)) => {
                let (reader, writer) = std::io::pipe().context(what)?;
                command.stdout(writer);
                tasks.spawn(words.listen(name, reader.into(), Some(file)));
            }
        }
        let Confinement { user, capabilities, pids, .. } = invocation.confinement;
        let (ruleset, filters) = (invocation.confinement.ruleset(&invocation.program)?, invocation.confinement.filters()?);
        // This process is protected as the shim is. What a guest uses is its pod's.
        let bounds = Bounds { entrance: cgroup.entrance()?, user, capabilities, plain_oom_score: true, ruleset, filters };
        bound::bind(&mut command, bounds).context(what)?;
        let (child, holder) = match pids {
            Pids::All => (command.spawn(), None),
            Pids::Itself => (bound::spawn_alone(&mut command), None),
            Pids::ItselfAndHolder => {
                let holder = Holder::run(reaper)?;
                (bound::spawn_beside(&mut command, holder.pid), Some(holder))
            }
        };
        let child = child.context(what)?;
        // It holds the sockets that the program has inherited.
        drop(command);
        // Nothing was awaited since the spawn, so the reaper cannot have come first.
        let ended = reaper.watch(child.id());
        Ok(Self { name, pid: child.id(), errors, reaper: reaper.clone(), ended, exit: None, _holder: holder })
    }

    /// Waits for its end. Cancel-safe, and can be called again.
    pub async fn ended(&mut self) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        let exit = (&mut self.ended).await.unwrap_or_else(|_| Exit::killed());
        self.exit = Some(exit);
        exit
    }

    /// Kills it, and waits until it is gone.
    pub async fn kill(&mut self) {
        if self.exit.is_none() {
            let _ended_meanwhile = self.reaper.signal(self.pid, libc::SIGKILL as u32);
            self.ended().await;
        }
    }

    /// How it ended, in words.
    pub fn describe(&self, exit: Exit) -> String {
        let how = match exit.code {
            code @ 129.. => format!("was ended by signal {}", code - 128),
            code => format!("ended with code {code}"),
        };
        match self.errors.last_line() {
            Some(line) => format!("{} {how}: {line}", self.name),
            None => format!("{} {how}", self.name),
        }
    }
}

impl Drop for Process {
    /// One that nobody owns any more must not go on: a machine that could not be made has left it.
    fn drop(&mut self) {
        let _ended_meanwhile = self.reaper.signal(self.pid, libc::SIGKILL as u32);
    }
}

/// How long a program may take to listen.
const LISTENS: Duration = Duration::from_secs(10);

/// Waits until a program that makes its socket itself has done so. Cancel-safe.
///
/// # Errors
/// `DeadlineExceeded` where it does not.
pub async fn listens(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + LISTENS;
    while !socket.exists() {
        if Instant::now() > deadline {
            return Err(Error::new(Code::DeadlineExceeded, format!("nobody listens at {}: waited for {LISTENS:?}", socket.display())));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
