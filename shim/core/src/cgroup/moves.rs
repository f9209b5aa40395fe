// SPDX-License-Identifier: Apache-2.0
//! Moves this process between cgroups while no request waits for it.
//!
//! Before a process is moved, the kernel waits for an RCU grace period, some 10 ms, unless another
//! move has just done so. Only the first move of a burst pays for it (`cgroup_threadgroup_rwsem`,
//! kernel/cgroup/cgroup.c and kernel/rcu/sync.c). A sandbox process moves to a cgroup of its own,
//! and an OCI runtime moves each process that it makes. Both waits can happen while other work is
//! done:
//!
//! - [`join_soon`] moves this process in a thread of its own, which ends with it;
//! - [`warm_up`] makes a move that changes nothing while an OCI runtime is still being started.
//!
//! With v2 the runtimes make processes inside their cgroup, so there is nothing to warm up.

use super::{Cgroup, OwnedCgroup, owned};
use crate::error::{Context, Result};
use std::sync::{Mutex, PoisonError};
use tokio::sync::oneshot;
use tracing::debug;

/// One move of this process at a time: a warm-up must not undo a move.
static MOVES: Mutex<()> = Mutex::new(());

/// The stack of a thread that only writes a file. Only the pages that it touches cost memory.
const STACK: usize = 128 * 1024;

/// Begins to move this process and `others` to the cgroup of a sandbox process, and makes that
/// cgroup. The receiver gets the outcome.
///
/// # Errors
/// When no thread can be started.
pub fn join_soon(own: OwnedCgroup, others: Vec<u32>) -> Result<oneshot::Receiver<Result<()>>> {
    let (told, outcome) = oneshot::channel();
    in_thread(move || {
        // The receiver may have been dropped.
        let _unheard = told.send(join(&own, &others));
    })?;
    Ok(outcome)
}

/// Joins the cgroup of all sandbox processes in every hierarchy first, and then its own, where the
/// two differ.
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

/// Makes the kernel wait now, in a thread, so that the next move need not wait. Returns at once. A
/// failure only costs time.
pub fn warm_up() {
    let moved = in_thread(|| {
        let _alone = MOVES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(home @ Cgroup::V1 { .. }) = Cgroup::of_process(std::process::id()) {
            let _stays_where_it_is = home.join(std::process::id());
        }
    });
    if let Err(error) = moved {
        debug!(%error, "cannot warm up the next move between cgroups");
    }
}

fn in_thread(work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name("cgroup".into()).stack_size(STACK).spawn(work).map(drop).context(|| "cannot start a thread".into())
}
