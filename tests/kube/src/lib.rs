// SPDX-License-Identifier: Apache-2.0
//! What the tests by Kubernetes stand on: pods of each kind, and what must be gone when they are.
//!
//! ```text
//!   Kind ──> Pod::apply ── kubectl ──> API server ──> kubelet ──> containerd ──> Magnetar
//!             │ ready, logs, exec                                                  │
//!             └ delete ─────────────────────> Pod::traces, Leftovers <── this node's kernel
//! ```
//!
//! The tests (`tests/kube`) run inside a node that is a cluster, started by `tests/kube/run`,
//! and are built only with the feature `node`. They do what an operator does, with the operator's
//! program: a client library would need TLS, WebSockets and the types of the whole API, and
//! `kubectl logs`, `exec` or `describe` would still be untested.
//!
//! `MAGNETAR_PATIENCE` in the environment is a factor on all waiting, for slow nodes.

mod kind;
mod kubectl;
mod leftovers;
mod pod;
mod service;

pub use kind::{Kind, Words};
pub use kubectl::{Kubectl, Output};
pub use leftovers::Leftovers;
pub use pod::Pod;
pub use service::Service;
