// SPDX-License-Identifier: Apache-2.0
//! What is the same for the processes of all pods, whether they run on this host or in a guest.

use super::registry::Registry;
use super::{State, subject};
use crate::error::{Error, Result};
use crate::ids::{ContainerId, ExecId};
use crate::process::{Change, Life, Phase};
use crate::reaper::Exit;
use crate::stdio::StdioSpec;
use std::path::PathBuf;
use std::sync::Arc;

/// One process, as State and Wait see it.
#[derive(Debug)]
pub struct View {
    /// Its container's bundle.
    pub bundle: PathBuf,
    /// Its streams.
    pub stdio: StdioSpec,
    /// Its life.
    pub life: Life,
    /// The life of its container's init: the same life unless the process is an exec.
    pub init: Life,
}

impl View {
    /// The answer of State.
    pub fn state(self) -> State {
        State { bundle: self.bundle, phase: self.life.phase().within(self.init.phase()), stdio: self.stdio }
    }
}

/// Adds an exec to `execs`, those of a container with this `init`.
///
/// # Errors
/// `AlreadyExists` for a name in use, `FailedPrecondition` if the container does not run.
pub fn add_exec<P>(id: &ContainerId, init: &Life, execs: &Registry<ExecId, P>, exec: &ExecId, process: P) -> Result<()> {
    execs.add(exec.clone(), Arc::new(process))?;
    match init.phase() {
        Phase::Created { .. } | Phase::Starting { .. } | Phase::Running { .. } => Ok(()),
        phase @ (Phase::Creating | Phase::Paused { .. } | Phase::Stopped { .. } | Phase::Deleted { .. }) => {
            execs.remove(exec);
            Err(Error::precondition(format!("cannot exec in container {id}: it is {}", phase.name())))
        }
    }
}

/// Marks a process as deleted. Returns how it ended; one that never ran counts as killed.
///
/// # Errors
/// `FailedPrecondition` while it runs.
pub fn mark_deleted(id: &ContainerId, exec: Option<&ExecId>, life: &Life) -> Result<Exit> {
    let deleted = life.change(Change::Delete);
    let deleted = deleted.map_err(|e| Error::new(e.code(), format!("cannot delete {}: {e}", subject(id, exec))))?;
    Ok(deleted.exit().unwrap_or_else(Exit::killed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    const RUNNING: Phase = Phase::Running { pid: 7 };

    fn names() -> (ContainerId, ExecId) {
        (ContainerId::parse("web".to_owned()).unwrap(), ExecId::parse("shell".to_owned()).unwrap())
    }

    #[test]
    fn an_exec_of_a_paused_container_is_seen_as_paused() {
        let (life, init) = (Life::new(RUNNING), Life::new(Phase::Paused { pid: 1 }));
        let view = View { bundle: PathBuf::new(), stdio: StdioSpec::default(), life, init };
        assert_eq!(view.state().phase, Phase::Paused { pid: 7 });
    }

    #[test]
    fn a_refused_exec_is_not_kept() {
        let ((id, exec), execs) = (names(), Registry::new("exec", "container web"));
        let refused = add_exec(&id, &Life::new(Phase::Creating), &execs, &exec, ()).unwrap_err();
        assert_eq!(
            (refused.code(), refused.to_string().as_str()),
            (Code::FailedPrecondition, "cannot exec in container web: it is being created")
        );
        add_exec(&id, &Life::new(RUNNING), &execs, &exec, ()).unwrap();
        let twice = add_exec(&id, &Life::new(RUNNING), &execs, &exec, ()).unwrap_err();
        assert_eq!(twice.code(), Code::AlreadyExists);
        execs.get(&exec).unwrap();
    }

    #[test]
    fn a_running_process_is_not_deleted_and_one_that_never_ran_counts_as_killed() {
        let (id, exec) = names();
        let refused = mark_deleted(&id, Some(&exec), &Life::new(RUNNING)).unwrap_err();
        assert_eq!(refused.to_string(), "cannot delete exec shell of container web: it is running, so it cannot be deleted");
        assert_eq!(mark_deleted(&id, Some(&exec), &Life::new(Phase::Created { pid: 0 })).unwrap().code, Exit::killed().code);
    }
}
