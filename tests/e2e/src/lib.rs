// SPDX-License-Identifier: Apache-2.0
//! What every end-to-end test stands on: a turn of its own on the node, and the leak check.
//!
//! ```text
//!   on_node(test)          one at a time, whatever libtest's threads are
//!     ├─ snapshot          everything on the node that a pod can leave behind
//!     ├─ test(&Case)       pods on the handler under test
//!     ├─ leftovers         pods that the test did not remove: a failure
//!     └─ leak check        the same snapshot again, or a failure with what differs
//! ```
//!
//! The tests themselves (`tests/e2e.rs`) run inside a node, started by `tests/e2e/run`, and are
//! built only with the feature `node`: without one they could do nothing but pass silently. They go
//! through the CRI and look at the node with the kernel's eyes, so that the same tests hold for
//! every runtime handler. What can be true for ours only says so with [`on_magnetar`], and what a
//! virtual machine excludes with [`on_shared_kernel`].
//!
//! Settings come from the environment: `MAGNETAR_HANDLER` (the runtime handler under test),
//! `MAGNETAR_CRI_SOCKET`, and `MAGNETAR_PATIENCE` (a factor on all waiting, for slow nodes).

mod case;
mod check;
pub mod kernel;
mod manifest;
pub mod podless;
mod service;
#[cfg(target_arch = "x86_64")]
pub mod taken_over;
mod terminal;
mod tool;
mod turn;

pub use case::{BUSYBOX, Case, Scratch, recorded_pid};
pub use check::{eventually, refused, steady};
pub use manifest::Manifest;
pub use service::{Held, Service};
pub use terminal::Terminal;
pub use tool::{Output, Tool};
pub use turn::{
    OWN_GUEST, calm, on_magnetar, on_magnetar_that_resizes_pods, on_magnetar_with_shared_kernel, on_node, on_node_with, on_qemu,
    on_shared_kernel, on_vm, on_vm_that_resizes_pods, on_vm_with_hugetlb, on_vm_with_own_kernel, on_warm_node,
};
