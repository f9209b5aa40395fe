// SPDX-License-Identifier: Apache-2.0
//! A small typed client of the Kubernetes Container Runtime Interface, for tests, the demo and
//! the benchmark.
//!
//! ```text
//!   PodSpec ──► Node::run_pod ──► Pod ──► Pod::create ──► Container ──► logs, exec, stats
//!                  │               │
//!                  │               └─ Pod::remove: stops and removes it, and its log folder
//!                  └─ Node::leftovers: pods nobody removed, for the end of a test
//! ```
//!
//! It speaks to containerd over its Unix socket with the published protobuf (the `k8s-cri`
//! crate, here as [`v1`]) and to the streaming server over WebSockets. It runs on the node
//! itself: container logs are read from the files that containerd writes.
//!
//! Deliberately absent: retries, defaults that a kubelet would fill in (what a test does not
//! ask for is not sent), and any knowledge of what is below the CRI.

mod container;
mod error;
mod log;
mod node;
mod pod;
mod resize;
mod spec;
mod stream;

pub use container::{Container, ExecOutput};
pub use error::{Error, Result};
pub use k8s_cri::v1;
pub use log::{Entry, Log, Source};
pub use node::Node;
pub use pod::Pod;
pub use spec::{ContainerSpec, PodSpec};
pub use stream::{Forward, Frame, Session, SessionOutput};
pub use tonic::Code;
