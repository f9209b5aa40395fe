// SPDX-License-Identifier: Apache-2.0
//! Programs beside a pod that serve it: a hypervisor and what serves its devices, the engine of a
//! language model.
//!
//! ```text
//! program       how to find one, and how to run one: data that a pure function can decide
//! confinement   what it may do, assuming that what it serves has taken it over
//! filter        the system calls that it may make
//! process       runs it in the pod's cgroup; it dies with this process
//! log_tail      the end of its output, which explains its end
//! socket        connects to what it listens at
//! own_devices   a /dev of its own
//! ```

pub mod confinement;
pub mod filter;
pub mod log_tail;
pub mod own_devices;
pub mod process;
pub mod program;
pub mod socket;

/// How far the users of a pod's helpers are apart: how many process ids there can be, the
/// kernel's `PID_MAX_LIMIT`, so that no two are the same.
pub const USERS_APART: u32 = 1 << 22;

/// The user of a pod's helper number `which`; the group id is the same. No other user and no other
/// pod's helper has it.
///
/// It is derived from the sandbox process's id, which no other process has while that process
/// lives. Distributions leave this range unused, and it is above the range that kubelets use for
/// pods with user namespaces (listed in systemd's UIDS-GIDS.md).
pub fn user(sandbox_process: u32, which: u32) -> u32 {
    2_000_000_000 + sandbox_process % USERS_APART + which * USERS_APART
}
