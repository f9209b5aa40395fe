// SPDX-License-Identifier: Apache-2.0
//! One task watches one sandbox process, and removes what is left of its pod when it has ended.
//!
//! ```text
//!   Alive ──the process ends──> Dead(how) ──clean_pod──> Gone(outcome)
//! ```
//!
//! Whoever needs to know (Create, Wait, Status, Shutdown) reads the watch channel, so there is one
//! place that cleans, whatever the reason for the end was.

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

/// How long others may take who clean the same pod.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What has become of a sandbox process.
#[derive(Debug, Clone)]
pub enum Life {
    /// It runs.
    Alive,
    /// It has ended, and this is how; its pod is being removed.
    Dead(String),
    /// After that end its pod was removed, or could not be.
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

/// A pod's process (none if it is known to be dead) and the means to watch it.
pub fn watch(process: Option<Process>) -> (Watched, Watcher) {
    let (sender, life) = watch::channel(Life::Alive);
    let expected = Arc::new(AtomicBool::new(false));
    let watched =
        Watched { life, process: process.as_ref().map(Process::handle), expected: Arc::clone(&expected), interest: Interest::default() };
    (watched, Watcher { life: sender, process, expected })
}

impl Watcher {
    /// Watches until the process has ended and its pod is removed; `forget` is called before that is
    /// told, with the end of a pod that was not expected to. Ends the process itself as soon as its pod is `unwanted`, for that reason.
    pub async fn run(mut self, pod: Pod, unwanted: impl Future<Output = &'static str>, forget: impl FnOnce(Option<End>)) {
        let since = since(&pod);
        let how = match &mut self.process {
            None => "nobody knows how: it ended while no serve ran".into(),
            Some(process) => tokio::select! {
                how = process.ended() => how,
                why = unwanted => {
                    warn!(why, "nobody wants this pod: removing it");
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
        // What many pods needed at once is not kept for days.
        magnetar_sys::memory::trim();
        self.life.send_replace(Life::Gone(how, outcome));
    }
}

/// Since when there is a pod: its directory is the first that is made of it.
fn since(pod: &Pod) -> SystemTime {
    let metadata = std::fs::metadata(pod.dir.path());
    metadata.and_then(|metadata| metadata.created().or_else(|_| metadata.modified())).unwrap_or_else(|_| SystemTime::now())
}

impl Watched {
    /// From now on the process may end without anybody being surprised.
    pub fn expect_end(&self) {
        self.expected.store(true, Ordering::Relaxed);
    }

    /// Where interest in the pod is noted.
    pub fn interest(&self) -> &Interest {
        &self.interest
    }

    /// Kills the process.
    pub fn kill(&self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Waits for the end of the process; says how it ended. Cancel-safe.
    pub async fn dead(&self) -> String {
        let mut life = self.life.clone();
        match life.wait_for(|life| !matches!(life, Life::Alive)).await.as_deref() {
            Ok(Life::Dead(how) | Life::Gone(how, _)) => how.clone(),
            Ok(Life::Alive) | Err(_) => "nobody watches it any more".into(),
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
