// SPDX-License-Identifier: Apache-2.0
//! Moving this process between cgroups, where nobody waits for it.
//!
//! Whoever moves a process lets the kernel wait for an RCU grace period first, some 10 ms, unless
//! somebody has just done so: the price is paid by the first of a burst (`cgroup_threadgroup_rwsem`,
//! kernel/cgroup/cgroup.c and kernel/rcu/sync.c). A sandbox process moves to a cgroup of its own, and an OCI
//! runtime moves each process that it makes. Both waits can be had while something else is done:
//!
//! - [`join_soon`] moves this process in a thread of its own, which ends with it;
//! - [`warm_up`] makes a move that changes nothing while an OCI runtime is still being started.
//!
//! With v2 the runtimes make processes inside their cgroup, and there is nothing to warm up.

use super::{Cgroup, OwnedCgroup, owned};
use crate::error::{Context, Result};
use std::sync::{Mutex, PoisonError};
use tokio::sync::oneshot;
use tracing::debug;

/// One move of this process at a time: a warm-up must not undo a move.
static MOVES: Mutex<()> = Mutex::new(());

/// A thread that writes one file needs little; pages that it touches are what it costs.
const STACK: usize = 128 * 1024;

/// Begins to move this process, and `others`, to the cgroup of a sandbox process, which is made; the receiver tells the outcome.
///
/// # Errors
/// Where there can be no thread.
pub fn join_soon(own: OwnedCgroup, others: Vec<u32>) -> Result<oneshot::Receiver<Result<()>>> {
    let (told, outcome) = oneshot::channel();
    in_thread(move || {
        // Nobody may want to know any more.
        let _unheard = told.send(join(&own, &others));
    })?;
    Ok(outcome)
}

/// Into the cgroup of all sandbox processes in every hierarchy first, then into its own, where the two differ.
fn join(own: &OwnedCgroup, others: &[u32]) -> Result<()> {
    let _alone = MOVES.lock().unwrap_or_else(PoisonError::into_inner);
    let all = owned::sandboxes()?;
    all.create()?;
    own.create()?;
    for pid in others.iter().copied().chain([std::process::id()]) {
        if let Cgroup::V1 { .. } = &all {
            all.join_but(own, pid)?;
        }
        own.join(pid)?;
    }
    Ok(())
}

/// Has the kernel wait now for what the next mover would wait for. Returns at once; that it does not
/// work costs nothing but time.
pub fn warm_up() {
    let moved = in_thread(|| {
        let _alone = MOVES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(home @ Cgroup::V1 { .. }) = Cgroup::of_process(std::process::id()) {
            let _stays_where_it_is = home.join(std::process::id());
        }
    });
    if let Err(error) = moved {
        debug!(%error, "no warm-up");
    }
}

fn in_thread(work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name("cgroup".into()).stack_size(STACK).spawn(work).map(drop).context(|| "cannot start a thread".into())
}
