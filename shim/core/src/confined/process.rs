// SPDX-License-Identifier: Apache-2.0
//! The processes of helper programs. They die with this process and gain no privileges. This
//! process's reaper collects them.

use super::confinement::{Confinement, Pids};
use super::log_tail::LogTail;
use super::own_devices::OwnDevices;
use super::program::Invocation;
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::reaper::{Exit, Reaper};
use magnetar_sys::bound::{self, Bounds};
use magnetar_sys::holder::{self, HolderError};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Its name in messages.
    pub name: &'static str,
    /// Its process id.
    pub pid: u32,
    /// The end of its standard error.
    pub errors: LogTail,
    /// Its own /dev, if it has one.
    pub devices: Option<Arc<OwnDevices>>,
    reaper: Reaper,
    ended: oneshot::Receiver<Exit>,
    exit: Option<Exit>,
    _holder: Option<Holder>,
}

/// The first process of a helper's PID namespace. All other processes in the namespace die with it.
#[derive(Debug)]
struct Holder {
    pid: u32,
    reaper: Reaper,
    /// The reaper signals only processes that are watched.
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
    /// The reaper that collects them.
    pub reaper: &'a Reaper,
    /// The owner of the tasks that read their output.
    pub tasks: &'a TaskTracker,
    /// The pod's cgroup. They are in it from their first instruction on.
    pub cgroup: &'a Cgroup,
}

impl Process {
    /// Runs a program. Its standard output is discarded, or goes to the tail and the file in
    /// `output`.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn run(name: &'static str, invocation: &Invocation<'_>, output: Option<(LogTail, PathBuf)>, common: Common<'_>) -> Result<Self> {
        let Common { reaper, tasks, cgroup } = common;
        let what = || format!("cannot run {}", invocation.program.display());
        let mut command = invocation.command()?;
        command.env_clear().current_dir("/");
        let (reader, writer) = std::io::pipe().context(what)?;
        command.stderr(writer);
        let errors = LogTail::default();
        tasks.spawn(errors.clone().follow(name, reader.into(), None));
        match output {
            None => {
                command.stdout(Stdio::null());
            }
            Some((tail, file)) => {
                let (reader, writer) = std::io::pipe().context(what)?;
                command.stdout(writer);
                tasks.spawn(tail.follow(name, reader.into(), Some(file)));
            }
        }
        let Confinement { capabilities, pids, .. } = invocation.confinement;
        let user = invocation.confinement.user;
        let own = invocation.devices.as_ref().map(|contents| OwnDevices::make(contents, user.unwrap_or(0))).transpose()?.map(Arc::new);
        let ruleset = invocation.confinement.ruleset(&invocation.program, own.as_deref().map(AsFd::as_fd))?;
        let devices = own.as_ref().map(|own| own.mount()).transpose()?;
        let filters = invocation.confinement.filters()?;
        // This process is protected from the OOM killer, as the shim is. A helper is not: a guest's
        // memory counts as its pod's.
        let bounds = Bounds { entrance: cgroup.entrance()?, user, capabilities, plain_oom_score: true, devices, ruleset, filters };
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
        // The command still holds the sockets that the program inherited.
        drop(command);
        // There was no await since the spawn, so the reaper cannot have run before this watch.
        let ended = reaper.watch(child.id());
        Ok(Self { name, pid: child.id(), errors, devices: own, reaper: reaper.clone(), ended, exit: None, _holder: holder })
    }

    /// Waits for its end. Cancel-safe; may be called again.
    pub async fn ended(&mut self) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        let exit = (&mut self.ended).await.unwrap_or_else(|_| Exit::killed());
        self.exit = Some(exit);
        exit
    }

    /// Kills it, and waits for its end.
    pub async fn kill(&mut self) {
        if self.exit.is_none() {
            let _ended_meanwhile = self.reaper.signal(self.pid, libc::SIGKILL as u32);
            self.ended().await;
        }
    }

    /// A description of its end.
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
    /// A process without an owner must not go on running. This happens if a machine could not be
    /// made.
    fn drop(&mut self) {
        let _ended_meanwhile = self.reaper.signal(self.pid, libc::SIGKILL as u32);
    }
}
