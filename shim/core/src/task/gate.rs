// SPDX-License-Identifier: Apache-2.0
//! Lets a pod stop safely while containers are being made: waits for those, and refuses new ones.
//!
//! A container that is made after the pod's files were removed would miss them, or make them again.

use crate::error::{Error, Result};
use std::time::Duration;
use tokio::sync::watch;

/// How long a container in progress may take when its pod is stopped.
pub const CREATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Counts the containers that are being made, and can be closed.
#[derive(Debug, Default)]
pub struct Gate(watch::Sender<State>);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    closed: bool,
    inside: usize,
}

/// A container that is being made.
#[derive(Debug)]
pub struct Inside<'a>(&'a Gate);

impl Gate {
    /// An open gate.
    pub fn new() -> Self {
        Self(watch::Sender::new(State::default()))
    }

    /// Begins to make a container.
    ///
    /// # Errors
    /// `FailedPrecondition` once the pod is being stopped.
    pub fn enter(&self) -> Result<Inside<'_>> {
        let entered = self.0.send_if_modified(|state| {
            state.inside += usize::from(!state.closed);
            !state.closed
        });
        if entered { Ok(Inside(self)) } else { Err(Error::precondition("the sandbox is being stopped")) }
    }

    /// Closes the gate, and waits at most `patience` for containers in progress. Returns whether
    /// all are finished. Cancel-safe.
    pub async fn close(&self, patience: Duration) -> bool {
        self.0.send_modify(|state| state.closed = true);
        let mut state = self.0.subscribe();
        tokio::time::timeout(patience, state.wait_for(|state| state.inside == 0)).await.is_ok()
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.inside -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn close_waits_for_creations_and_refuses_new_ones() {
        let gate = Gate::new();
        let inside = gate.enter().unwrap();
        assert!(!gate.close(Duration::from_secs(1)).await);
        assert!(gate.enter().is_err());
        let (closed, ()) = tokio::join!(gate.close(Duration::from_secs(60)), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(inside);
        });
        assert!(closed);
    }
}
