// SPDX-License-Identifier: Apache-2.0
//! Pods that nobody wants: created and never started, or not known to containerd.
//!
//! ```text
//!   created  ──10 min without Start────────────────────────────────> unwanted
//!   created or started ──nobody Waits: 3 s, 10 s, 30 s, every 5 min──> containerd is asked
//!               it does not know the pod ──2 s──> nor now ─────────> unwanted
//!               it does, or does not answer ───────────────────────> asked again later
//! ```
//!
//! If serve is killed when a pod has just been created or started, containerd does not get the answer,
//! forgets the pod and shuts nothing down. Such a pod looks like any other, but nobody Waits for it: for
//! those that it keeps, containerd calls Wait right after Start and after each restart, its own or ours.

use super::pod::Pod;
use crate::stage::Stage;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// When what is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    /// How long a pod may stay created without being started.
    pub unstarted: Duration,
    /// How long nobody needs to wait for a pod until containerd is asked, and between the next questions.
    pub first: [Duration; 3],
    /// Between all later questions.
    pub later: Duration,
    /// Before a question whose answer can end a pod: containerd may be about to call.
    pub again: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            // containerd may pull an image in between.
            unstarted: Duration::from_secs(600),
            // It tries to connect again after some 4 s at the latest.
            first: [3, 7, 20].map(Duration::from_secs),
            later: Duration::from_secs(300),
            again: Duration::from_secs(2),
        }
    }
}

/// What this serve has heard of the interest in a pod. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Interest(watch::Sender<Heard>);

#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    created: bool,
    started: bool,
    waiting: usize,
}

/// Somebody waits for a pod, for as long as this lives.
#[derive(Debug)]
pub struct Waiting(Interest);

impl Interest {
    /// The pod was created.
    pub fn created(&self) {
        self.0.send_modify(|heard| heard.created = true);
    }

    /// The pod was started.
    pub fn started(&self) {
        self.0.send_modify(|heard| (heard.created, heard.started) = (true, true));
    }

    /// Somebody waits for the pod's end.
    pub fn waiting(&self) -> Waiting {
        self.0.send_modify(|heard| heard.waiting += 1);
        Waiting(self.clone())
    }

    async fn hears(&self, what: impl FnMut(&Heard) -> bool) {
        let mut heard = self.0.subscribe();
        // There is always a sender: this one.
        let _heard = heard.wait_for(what).await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.send_modify(|heard| heard.waiting -= 1);
    }
}

impl Heard {
    fn alone(&self) -> bool {
        self.created && self.waiting == 0
    }
}

/// Returns when nobody wants a pod, and says why that is known. `knows` asks containerd, which may
/// not answer. Cancel-safe.
pub async fn unwanted<F>(pod: &Pod, interest: &Interest, rhythm: Rhythm, knows: impl Fn() -> F) -> &'static str
where
    F: Future<Output = Option<bool>>,
{
    tokio::select! {
        () = never_started(pod, interest, rhythm) => "it was created long ago and never started",
        () = forgotten(interest, rhythm, knows) => "containerd does not know it (any more)",
    }
}

async fn never_started(pod: &Pod, interest: &Interest, rhythm: Rhythm) {
    let started = timeout(rhythm.unstarted, interest.hears(|heard| heard.started)).await;
    // One of which nobody can tell is left to the next `serve`.
    if started.is_ok() || !matches!(Stage::of(&pod.dir), Ok(Stage::Created)) {
        std::future::pending::<()>().await;
    }
}

async fn forgotten<F: Future<Output = Option<bool>>>(interest: &Interest, rhythm: Rhythm, knows: impl Fn() -> F) {
    loop {
        interest.hears(Heard::alone).await;
        tokio::select! {
            () = interest.hears(|heard| !heard.alone()) => {}
            () = denied_twice(rhythm, &knows) => return,
        }
    }
}

/// Returns when containerd has said twice in a row that it does not know the pod.
async fn denied_twice<F: Future<Output = Option<bool>>>(rhythm: Rhythm, knows: &impl Fn() -> F) {
    let mut first = rhythm.first.into_iter();
    let mut denied = false;
    loop {
        sleep(if denied { rhythm.again } else { first.next().unwrap_or(rhythm.later) }).await;
        // Boxed because a call needs much more than waiting for the next one, and most pods are never asked for.
        let known = Box::pin(knows()).await;
        if denied && known == Some(false) {
            return;
        }
        denied = known == Some(false);
    }
}

#[cfg(test)]
mod tests;
