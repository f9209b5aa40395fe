// SPDX-License-Identifier: Apache-2.0
//! Removes pods that containerd does not clean up, because their process was killed between the end
//! of `start` and containerd's first call.
//!
//! containerd then fails the pod and does not call `delete` (`core/runtime/v2/binary.go`: nothing
//! is undone when the connection fails). By then only the pod's directory exists; the next `start`
//! removes it. A dead pod that containerd does know may be removed here before containerd calls
//! `delete`, which does no harm.

use super::delete::undo_hooks;
use crate::clean::clean_pod;
use crate::stage::Stage;
use magnetar_core::error::{Context, Result};
use magnetar_core::ids::ContainerId;
use magnetar_core::record::{Found, PodDir};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the directory must have been unchanged. It is longer than a `start` takes from making
/// the directory until its process locks it.
const QUIET: Duration = Duration::from_secs(60);

/// Removes what is left of dead pods of `start`. The next call tries again what fails now.
pub fn sweep(state_dir: &Path) {
    // If the directory cannot be read now, the next call reads it.
    let pods = PodDir::all(state_dir).unwrap_or_default();
    for (_, _, dir) in pods.into_iter().filter(|(_, _, dir)| is_dead(dir)) {
        // A failure cannot be printed: the output of `start` is its answer.
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

/// If a sandbox was made for a single container without a pod, that container and its bundle;
/// `None` if the container was deleted.
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
    fn only_old_dead_pods_of_start_are_swept() {
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
