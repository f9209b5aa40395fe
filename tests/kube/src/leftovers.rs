// SPDX-License-Identifier: Apache-2.0
//! What pods leave on a node.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use magnetar_observe::Snapshot;

use crate::Kubectl;

/// The kubelet removes sandboxes that have ended once a minute, and one of each pod later than the
/// others.
const COLLECTED_SECONDS: u32 = 150;

/// What is kept on purpose: compiled code of modules, whose size is bounded, and the node's own
/// book-keeping.
const KEPT: [&str; 2] = ["file /var/lib/magnetar", "file /run/node/"];

/// A node before there are pods, to compare with.
#[derive(Debug)]
pub struct Leftovers(Snapshot);

impl Leftovers {
    /// Looks at the node now.
    ///
    /// # Errors
    /// The kernel's data cannot be read.
    pub fn before() -> Result<Self> {
        Ok(Self(look()?))
    }

    /// Waits until the node has nothing that it did not have: how long that took. What it has no
    /// more does not count: pods of other tests, which the kubelet collects late, go meanwhile.
    ///
    /// # Errors
    /// Something is left.
    pub fn none(&self, kubectl: Kubectl) -> Result<Duration> {
        let begin = Instant::now();
        let end = begin + kubectl.within(COLLECTED_SECONDS);
        loop {
            let left = look()?.since(&self.0).new;
            if left.is_empty() {
                return Ok(begin.elapsed());
            }
            if Instant::now() > end {
                bail!("left behind:\n{}", left.join("\n"));
            }
            thread::sleep(Duration::from_millis(500));
        }
    }
}

fn look() -> Result<Snapshot> {
    Ok(Snapshot::take()?.without(|thing| KEPT.iter().any(|kept| thing.starts_with(kept))))
}
