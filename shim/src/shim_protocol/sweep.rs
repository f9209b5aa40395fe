// SPDX-License-Identifier: Apache-2.0
//! Pods that nobody cleans up: their process was killed between the end of `start` and containerd's first call.
//!
//! containerd fails the pod then and does not call `delete` (`core/runtime/v2/binary.go`: nothing is undone where the
//! connection fails). Nothing but the pod's directory was made by then; the next `start` removes it. A dead pod that
//! containerd does know it removes a little earlier, which `delete` does not mind.

use super::delete::undo_hooks;
use crate::clean::clean_pod;
use crate::stage::Stage;
use magnetar_core::error::{Context, Result};
use magnetar_core::ids::ContainerId;
use magnetar_core::record::{Found, PodDir};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For how long nothing may have changed in the directory. It is longer than a `start` may take that has made it and
/// whose process has not locked it yet.
const QUIET: Duration = Duration::from_secs(60);

/// Removes what is left of dead pods of `start`. What cannot be removed now is found again by the next call.
pub fn sweep(state_dir: &Path) {
    // What cannot be read now is read by the next call.
    let pods = PodDir::all(state_dir).unwrap_or_default();
    for (_, _, dir) in pods.into_iter().filter(|(_, _, dir)| is_dead(dir)) {
        // `start` has nowhere to tell it: what it prints is its answer.
        let _found_again = remove(&dir);
    }
}

fn is_dead(dir: &PodDir) -> bool {
    let quiet = dir.path().metadata().and_then(|metadata| metadata.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|age| age > QUIET));
    quiet && matches!(Stage::of(dir), Ok(Stage::Foreign)) && matches!(dir.try_lock(), Ok(Some(_)))
}

fn remove(dir: &PodDir) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "cannot start the event loop".into())?;
    runtime.block_on(async {
        let single = single(dir)?;
        clean_pod(dir, Duration::ZERO).await?;
        if let Some((container, bundle)) = single {
            undo_hooks(&container, &bundle).await;
        }
        Ok(())
    })
}

/// The container without a pod that a sandbox was made for, and its bundle, if it was not deleted.
fn single(dir: &PodDir) -> Result<Option<(ContainerId, PathBuf)>> {
    let (_, sandbox) = dir.names()?;
    let container = ContainerId::parse(sandbox.to_string())?;
    Ok(match dir.find_container(&container)? {
        Found::Record(record) => Some((container, record.bundle)),
        Found::Absent | Found::Damaged(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::config::HandlerConfig;
    use magnetar_core::ids::{Namespace, SandboxId};
    use magnetar_core::record::PodRecord;
    use std::time::SystemTime;

    #[test]
    fn only_what_is_dead_and_old_and_containerds_own_is_swept() {
        let state = tempfile::tempdir().unwrap();
        let pod = |id: &str, stage: Option<Stage>, age: Duration| {
            let (namespace, sandbox) = (Namespace::parse("n").unwrap(), SandboxId::parse(id).unwrap());
            let dir = PodDir::new(state.path(), &namespace, &sandbox).unwrap();
            dir.make().unwrap();
            dir.write_pod(&PodRecord::new(namespace, sandbox, HandlerConfig::default())).unwrap();
            stage.iter().for_each(|stage| Stage::Creating.advance(&dir, *stage).unwrap());
            std::fs::File::open(dir.path()).unwrap().set_modified(SystemTime::now() - age).unwrap();
            dir
        };
        let old = QUIET * 2;
        let dead = pod("dead", Some(Stage::Foreign), old);
        let lives = pod("lives", Some(Stage::Foreign), old);
        let young = pod("young", Some(Stage::Foreign), Duration::ZERO);
        let serves = pod("serves", Some(Stage::Started), old);
        let _lock = lives.try_lock().unwrap().unwrap();
        sweep(state.path());
        assert!(!dead.path().exists());
        for kept in [lives, young, serves] {
            assert!(kept.path().exists(), "{}", kept.path().display());
        }
    }
}
