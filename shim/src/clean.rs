// SPDX-License-Identifier: Apache-2.0
//! Cleans up a pod while other processes may be cleaning up the same pod: containerd calls `delete`
//! for the pod and for each of its containers at once, and `serve` sees the end of the sandbox
//! process itself.
//!
//! One of them holds the pod's lock at a time. The others wait. When they get the lock, either
//! nothing is left to do, or they clean up the rest.

use magnetar_core::cleanup;
use magnetar_core::error::{Code, Result};
use magnetar_core::record::PodDir;
use std::time::Duration;
use tokio::time::Instant;

/// The time between two attempts.
const AGAIN: Duration = Duration::from_millis(20);

/// Removes all that is left of a pod. Waits at most about `patience` for other processes that clean
/// it up.
///
/// # Errors
/// As [`cleanup::clean_pod`].
pub async fn clean_pod(dir: &PodDir, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match cleanup::clean_pod(dir).await {
            Err(error) if error.code() == Code::Unavailable && Instant::now() < deadline => tokio::time::sleep(AGAIN).await,
            // Another process has removed the directory meanwhile, so nothing is left.
            Err(error) if error.code() == Code::NotFound && matches!(dir.exists(), Ok(false)) => return Ok(()),
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::config::HandlerConfig;
    use magnetar_core::ids::{Namespace, SandboxId};
    use magnetar_core::record::PodRecord;

    #[tokio::test(flavor = "current_thread")]
    async fn a_second_clean_up_waits_for_the_first() {
        let state = tempfile::tempdir().unwrap();
        let (namespace, sandbox) = (Namespace::parse("n").unwrap(), SandboxId::parse("s").unwrap());
        let dir = PodDir::new(state.path(), &namespace, &sandbox).unwrap();
        dir.make().unwrap();
        dir.write_pod(&PodRecord::new(namespace, sandbox, HandlerConfig::default())).unwrap();
        let lock = dir.try_lock().unwrap().unwrap();
        assert_eq!(clean_pod(&dir, Duration::ZERO).await.unwrap_err().code(), Code::Unavailable);
        let (outcome, ()) = tokio::join!(clean_pod(&dir, Duration::from_secs(5)), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(lock);
        });
        outcome.unwrap();
        assert!(!dir.path().exists());
        clean_pod(&dir, Duration::ZERO).await.unwrap();
    }
}
