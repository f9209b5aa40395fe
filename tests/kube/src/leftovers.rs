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

/// What is made for the first pod and kept: CNI's bridge, folders of containerd and of its shim. And
/// compiled code of modules, whose size is bounded.
const KEPT: [&str; 7] = [
    "link cni0",
    "file /var/lib/cni",
    "file /run/containerd/io.containerd.grpc.v1.cri/image-volumes",
    "file /run/containerd/runc",
    "file /run/containerd/s",
    "file /var/lib/magnetar",
    "file /run/node/",
];

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

    /// Waits until the node has nothing that it did not have. What it has no more does not count:
    /// pods of other tests, which the kubelet collects late, go meanwhile.
    ///
    /// # Errors
    /// Something is left.
    pub fn none(&self, kubectl: Kubectl) -> Result<()> {
        let end = Instant::now() + kubectl.within(COLLECTED_SECONDS);
        loop {
            let left = look()?.since(&self.0).new;
            if left.is_empty() {
                return Ok(());
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
