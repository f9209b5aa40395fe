// SPDX-License-Identifier: Apache-2.0
//! Watches a sandbox process in a task, which removes what is left of the pod when the process has
//! ended.
//!
//! ```text
//!   Alive ──the process ends──> Dead(how) ──clean_pod──> Gone(outcome)
//! ```
//!
//! Create, Wait, Status and Shutdown read the watch channel. So only this task cleans up, whatever
//! the reason for the end was.

use super::lost::End;
use super::pod::Pod;
use super::process::{Handle, Process};
use super::unwanted::Interest;
use crate::clean::clean_pod;
use magnetar_core::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tracing::{debug, error, warn};

/// How long to wait for other processes that clean up the same pod.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The state of a watched sandbox process.
#[derive(Debug, Clone)]
pub enum Life {
    /// It runs.
    Alive,
    /// It has ended as the text says; its pod is being removed.
    Dead(String),
    /// It has ended as the text says, and its pod was removed or could not be removed.
    Gone(String, Result<(), Error>),
}

/// A pod whose process is watched. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watched {
    life: watch::Receiver<Life>,
    process: Option<Handle>,
    expected: Arc<AtomicBool>,
    interest: Interest,
}

/// The watching side of a [`Watched`].
#[derive(Debug)]
pub struct Watcher {
    life: watch::Sender<Life>,
    process: Option<Process>,
    expected: Arc<AtomicBool>,
}

/// Makes the two sides of a watch over a pod's process; `None` if the process is known to be dead.
pub fn watch(process: Option<Process>) -> (Watched, Watcher) {
    let (sender, life) = watch::channel(Life::Alive);
    let expected = Arc::new(AtomicBool::new(false));
    let watched =
        Watched { life, process: process.as_ref().map(Process::handle), expected: Arc::clone(&expected), interest: Interest::default() };
    (watched, Watcher { life: sender, process, expected })
}

impl Watcher {
    /// Watches until the process has ended and its pod is removed. Kills the process when
    /// `unwanted` returns. Before the state becomes [`Life::Gone`], calls `forget`, with the pod's
    /// [`End`] if that was unexpected.
    pub async fn run(mut self, pod: Pod, unwanted: impl Future<Output = &'static str>, forget: impl FnOnce(Option<End>)) {
        let since = since(&pod);
        let how = match &mut self.process {
            None => "exit status unknown: it ended while no serve ran".into(),
            Some(process) => tokio::select! {
                how = process.ended() => how,
                why = unwanted => {
                    warn!(why, "this pod is unwanted: removing it");
                    self.expected.store(true, Ordering::Relaxed);
                    process.handle().kill();
                    process.ended().await
                }
            },
        };
        if self.expected.load(Ordering::Relaxed) {
            debug!(how, "the sandbox process has ended");
        } else {
            warn!(how, "the sandbox process has ended unexpectedly: removing its pod");
        }
        let end = (!self.expected.load(Ordering::Relaxed)).then(|| End {
            reason: format!("the sandbox process has ended unexpectedly: {how}"),
            since,
            at: SystemTime::now(),
        });
        self.life.send_replace(Life::Dead(how.clone()));
        let outcome = clean_pod(&pod.dir, PATIENCE).await;
        if let Err(error) = &outcome {
            error!(%error, "cannot remove all of a pod");
        }
        forget(end);
        // Return the memory that many pods needed at once.
        magnetar_sys::memory::trim();
        self.life.send_replace(Life::Gone(how, outcome));
    }
}

/// When a pod was made: its directory is made first.
fn since(pod: &Pod) -> SystemTime {
    let metadata = std::fs::metadata(pod.dir.path());
    metadata.and_then(|metadata| metadata.created().or_else(|_| metadata.modified())).unwrap_or_else(|_| SystemTime::now())
}

impl Watched {
    /// From now on the end of the process is expected.
    pub fn expect_end(&self) {
        self.expected.store(true, Ordering::Relaxed);
    }

    /// The record of the calls for this pod.
    pub fn interest(&self) -> &Interest {
        &self.interest
    }

    /// Kills the process.
    pub fn kill(&self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Waits for the end of the process; returns how it ended. Cancel-safe.
    pub async fn dead(&self) -> String {
        let mut life = self.life.clone();
        match life.wait_for(|life| !matches!(life, Life::Alive)).await.as_deref() {
            Ok(Life::Dead(how) | Life::Gone(how, _)) => how.clone(),
            Ok(Life::Alive) | Err(_) => "exit status unknown: the watch over it has ended".into(),
        }
    }

    /// Waits until the pod is removed, or could not be. Cancel-safe.
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn gone(&self) -> Result<(), Error> {
        let mut life = self.life.clone();
        match life.wait_for(|life| matches!(life, Life::Gone(..))).await.as_deref() {
            Ok(Life::Gone(_, outcome)) => outcome.clone(),
            Ok(Life::Alive | Life::Dead(_)) | Err(_) => Err(Error::internal("the watch over the pod has ended")),
        }
    }
}
