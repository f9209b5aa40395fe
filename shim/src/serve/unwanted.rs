// SPDX-License-Identifier: Apache-2.0
//! Finds unwanted pods: those that were created and never started, and those that containerd does
//! not know.
//!
//! ```text
//!   created  ──10 min without Start──────────────────────────────────> unwanted
//!   created or started ──no Wait call: 3 s, 10 s, 30 s, every 5 min──> ask containerd
//!               it does not know the pod ──2 s──> still not ─────────> unwanted
//!               it knows the pod, or does not answer ────────────────> ask again later
//! ```
//!
//! If serve is killed when a pod has just been created or started, containerd does not get the
//! answer, forgets the pod and does not shut it down. Such a pod looks like any other, but has no
//! Wait call. For the pods that it keeps, containerd calls Wait right after Start and after each
//! restart, its own or ours.

use super::pod::Pod;
use crate::stage::Stage;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// When pods are checked.
#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    /// How long a pod may stay created without being started.
    pub unstarted: Duration,
    /// How long a pod must be without a Wait call before containerd is asked, and the times between
    /// the next questions.
    pub first: [Duration; 3],
    /// The time between all later questions.
    pub later: Duration,
    /// The time before the second question, whose answer can end a pod: containerd may be about to
    /// call.
    pub again: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            // containerd may pull an image in between.
            unstarted: Duration::from_secs(600),
            // containerd connects again within some 4 s.
            first: [3, 7, 20].map(Duration::from_secs),
            later: Duration::from_secs(300),
            again: Duration::from_secs(2),
        }
    }
}

/// The calls for a pod that this serve has received. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Interest(watch::Sender<Calls>);

#[derive(Debug, Clone, Copy, Default)]
struct Calls {
    created: bool,
    started: bool,
    waiting: usize,
}

/// A Wait call for a pod, for as long as this lives.
#[derive(Debug)]
pub struct Waiting(Interest);

impl Interest {
    /// The pod was created.
    pub fn created(&self) {
        self.0.send_modify(|calls| calls.created = true);
    }

    /// The pod was started.
    pub fn started(&self) {
        self.0.send_modify(|calls| (calls.created, calls.started) = (true, true));
    }

    /// A Wait call for the pod has begun.
    pub fn waiting(&self) -> Waiting {
        self.0.send_modify(|calls| calls.waiting += 1);
        Waiting(self.clone())
    }

    async fn wait_until(&self, what: impl FnMut(&Calls) -> bool) {
        let mut calls = self.0.subscribe();
        // This never fails: `self` is a sender.
        let _calls = calls.wait_for(what).await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.send_modify(|calls| calls.waiting -= 1);
    }
}

impl Calls {
    fn has_no_wait(&self) -> bool {
        self.created && self.waiting == 0
    }
}

/// Returns when a pod is unwanted, and returns why. `knows` asks containerd, which may not answer.
/// Cancel-safe.
pub async fn unwanted<F>(pod: &Pod, interest: &Interest, rhythm: Rhythm, knows: impl Fn() -> F) -> &'static str
where
    F: Future<Output = Option<bool>>,
{
    tokio::select! {
        () = never_started(pod, interest, rhythm) => "it was created and not started in time",
        () = forgotten(interest, rhythm, knows) => "containerd does not know it",
    }
}

async fn never_started(pod: &Pod, interest: &Interest, rhythm: Rhythm) {
    let started = timeout(rhythm.unstarted, interest.wait_until(|calls| calls.started)).await;
    // A pod whose stage cannot be read is left to the next `serve`.
    if started.is_ok() || !matches!(Stage::of(&pod.dir), Ok(Stage::Created)) {
        std::future::pending::<()>().await;
    }
}

async fn forgotten<F: Future<Output = Option<bool>>>(interest: &Interest, rhythm: Rhythm, knows: impl Fn() -> F) {
    loop {
        interest.wait_until(Calls::has_no_wait).await;
        tokio::select! {
            () = interest.wait_until(|calls| !calls.has_no_wait()) => {}
            () = denied_twice(rhythm, &knows) => return,
        }
    }
}

/// Returns when containerd has answered twice in a row that it does not know the pod.
async fn denied_twice<F: Future<Output = Option<bool>>>(rhythm: Rhythm, knows: &impl Fn() -> F) {
    let mut first = rhythm.first.into_iter();
    let mut denied = false;
    loop {
        sleep(if denied { rhythm.again } else { first.next().unwrap_or(rhythm.later) }).await;
        // Boxed, because a call needs much more memory than waiting for the next one, and
        // containerd is never asked about most pods.
        let known = Box::pin(knows()).await;
        if denied && known == Some(false) {
            return;
        }
        denied = known == Some(false);
    }
}

#[cfg(test)]
mod tests;
