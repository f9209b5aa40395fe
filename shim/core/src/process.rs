// SPDX-License-Identifier: Apache-2.0
//! The state machine of one process: a container's init or an exec.
//!
//! ```text
//!   Creating ──> Created ──> Starting ──> Running <──> Paused
//!      │            │           │            │           │
//!      └────────────┴───────────┴────────────┴───────────┴──> Stopped ──> Deleted
//! ```
//!
//! The state is in a watch channel, which can be changed, read and waited for. So State never waits
//! behind a start, and Wait is answered at the moment of the end. Every change is a pure function
//! of the state before it.

use crate::error::{Error, Result};
use crate::reaper::Exit;
use tokio::sync::watch;

/// The state of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The OCI runtime is making it.
    Creating,
    /// Made, and waiting for Start. An exec has no process yet: its pid is 0.
    Created {
        /// Its process id on the host.
        pid: u32,
    },
    /// Start is under way.
    Starting {
        /// Its process id on the host, 0 for an exec.
        pid: u32,
    },
    /// The user's program runs.
    Running {
        /// Its process id on the host.
        pid: u32,
    },
    /// Frozen.
    Paused {
        /// Its process id on the host.
        pid: u32,
    },
    /// Ended.
    Stopped {
        /// The process id that it had.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
    /// Being removed, or removed.
    Deleted {
        /// How it ended.
        exit: Exit,
    },
}

/// A change of a process's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The OCI runtime has made it.
    Made {
        /// Its process id on the host.
        pid: u32,
    },
    /// Start begins.
    Start,
    /// Start is done.
    Started {
        /// Its process id on the host.
        pid: u32,
    },
    /// Start failed; it can be tried again or deleted.
    StartFailed,
    /// It was frozen.
    Pause,
    /// It was thawed.
    Resume,
    /// It has ended.
    Exit(Exit),
    /// It is removed.
    Delete,
}

impl Phase {
    /// The phase after `change`.
    ///
    /// # Errors
    /// `FailedPrecondition`, naming the phase.
    pub fn after(self, change: Change) -> Result<Phase> {
        use Phase::{Created, Creating, Deleted, Paused, Running, Starting, Stopped};
        Ok(match (self, change) {
            (Creating, Change::Made { pid }) => Created { pid },
            (Created { pid }, Change::Start) => Starting { pid },
            (Starting { .. }, Change::Started { pid }) => Running { pid },
            (Starting { pid }, Change::StartFailed) => Created { pid },
            (Running { pid }, Change::Pause) => Paused { pid },
            (Paused { pid }, Change::Resume) => Running { pid },
            (Creating, Change::Exit(exit)) => Stopped { pid: 0, exit },
            (Created { pid } | Starting { pid } | Running { pid } | Paused { pid }, Change::Exit(exit)) => Stopped { pid, exit },
            // A program may end before its start was reported, and the start may fail because of
            // that.
            (Stopped { pid: 0, exit }, Change::Started { pid }) => Stopped { pid, exit },
            (stopped @ Stopped { .. }, Change::Started { .. } | Change::StartFailed | Change::Exit(_)) => stopped,
            (Stopped { exit, .. }, Change::Delete) => Deleted { exit },
            // An exec that was never started has no process.
            (Created { pid: 0 }, Change::Delete) => Deleted { exit: Exit::killed() },
            // A removal that failed, or whose caller left, may be repeated.
            (deleted @ Deleted { .. }, Change::Exit(_) | Change::Delete) => deleted,
            (phase, change) => return Err(Error::precondition(format!("it is {}, so it cannot {}", phase.name(), change.verb()))),
        })
    }

    /// The process id on the host, if there is or was a process.
    pub fn pid(self) -> u32 {
        match self {
            Phase::Creating | Phase::Deleted { .. } => 0,
            Phase::Created { pid }
            | Phase::Starting { pid }
            | Phase::Running { pid }
            | Phase::Paused { pid }
            | Phase::Stopped { pid, .. } => pid,
        }
    }

    /// How it ended, once it has.
    pub fn exit(self) -> Option<Exit> {
        match self {
            Phase::Stopped { exit, .. } | Phase::Deleted { exit } => Some(exit),
            Phase::Creating | Phase::Created { .. } | Phase::Starting { .. } | Phase::Running { .. } | Phase::Paused { .. } => None,
        }
    }

    /// The process id to send a signal to: only while the process exists and has not been reaped.
    pub fn living_pid(self) -> Option<u32> {
        match self {
            Phase::Created { pid } | Phase::Starting { pid } | Phase::Running { pid } | Phase::Paused { pid } => (pid != 0).then_some(pid),
            Phase::Creating | Phase::Stopped { .. } | Phase::Deleted { .. } => None,
        }
    }

    /// The phase as clients see it: a process in a frozen `container` is frozen.
    pub fn within(self, container: Phase) -> Phase {
        match (self, container) {
            (Phase::Created { pid } | Phase::Starting { pid } | Phase::Running { pid }, Phase::Paused { .. }) => Phase::Paused { pid },
            (phase, _) => phase,
        }
    }

    /// The phase's name for people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Creating => "being created",
            Phase::Created { .. } => "created",
            Phase::Starting { .. } => "being started",
            Phase::Running { .. } => "running",
            Phase::Paused { .. } => "paused",
            Phase::Stopped { .. } => "stopped",
            Phase::Deleted { .. } => "deleted",
        }
    }
}

impl Change {
    fn verb(self) -> &'static str {
        match self {
            Change::Made { .. } => "be made",
            Change::Start | Change::Started { .. } | Change::StartFailed => "be started",
            Change::Pause => "be paused",
            Change::Resume => "be resumed",
            Change::Exit(_) => "exit",
            Change::Delete => "be deleted",
        }
    }
}

/// The phase of one process, shared by all tasks that use it.
#[derive(Debug, Clone)]
pub struct Life(watch::Sender<Phase>);

impl Life {
    /// A process that does not exist yet.
    pub fn new(phase: Phase) -> Self {
        Self(watch::Sender::new(phase))
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Changes the phase; returns the new one.
    ///
    /// # Errors
    /// Those of [`Phase::after`]; nothing has changed then.
    pub fn change(&self, change: Change) -> Result<Phase> {
        let mut outcome = Ok(self.phase());
        self.0.send_if_modified(|phase| {
            outcome = phase.after(change);
            match outcome {
                Ok(next) if next != *phase => {
                    *phase = next;
                    true
                }
                Ok(_) | Err(_) => false,
            }
        });
        outcome
    }

    /// Waits for the end. Cancel-safe: nothing is consumed.
    pub async fn exit(&self) -> Exit {
        let mut receiver = self.0.subscribe();
        loop {
            if let Some(exit) = receiver.borrow_and_update().exit() {
                return exit;
            }
            if receiver.changed().await.is_err() {
                return Exit::killed();
            }
        }
    }
}

#[cfg(test)]
mod tests;
