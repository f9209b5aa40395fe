// SPDX-License-Identifier: Apache-2.0
//! What every sandboxer shares, and nothing that only one of them needs.
//!
//! ```text
//!   ttrpc ──> sandbox::SandboxService ──> sandbox::Pod ──commands──> a Sandboxer (runc, wasm, vmm, …)
//!         └─> task::TaskService ──> task::Containers ──> runtime::Runtime (an OCI command line, …)
//!                                        │    │
//!                           reaper ──exits    └──> events ──> containerd
//! ```
//!
//! - [`record`] is the truth on disk, [`cleanup`] removes a pod from it alone.
//! - [`sandbox`] and [`task`] are the two protocols; wire types stop there.
//! - [`process`] is the life of one process; [`reaper`] the one place that reaps.
//! - [`host_pod`] is the pod of those sandboxers whose containers are processes of this host.
//! - [`home`] is where a sandbox process comes from, and goes back to.
//! - [`hooks`] are the programs that clients have run for a container.
//! - [`cgroup`], [`mount`], [`stdio`], [`terminal`], [`sandbox_files`] are the kernel's side of a container.
//! - `netlink` (a feature) is how the kernel's network is asked.
//!
//! Deliberately absent: anything that only one kind of sandbox needs, a scheduler of retries, a second thread.

pub mod cgroup;
pub mod cleanup;
pub mod config;
pub mod copies;
pub mod error;
pub mod events;
pub mod home;
pub mod hooks;
pub mod host_pod;
pub mod idle;
pub mod ids;
pub mod logger;
pub mod logging;
pub mod mount;
#[cfg(feature = "netlink")]
pub mod netlink;
pub mod pod_config;
pub mod process;
pub mod reaper;
pub mod record;
pub mod runtime;
pub mod sandbox;
pub mod sandbox_files;
pub mod server;
pub mod stdio;
pub mod task;
pub mod terminal;
