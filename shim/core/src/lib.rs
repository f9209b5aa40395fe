// SPDX-License-Identifier: Apache-2.0
//! The code that all sandboxers share, and nothing that only one of them needs.
//!
//! ```text
//!   ttrpc ──> sandbox::SandboxService ──> sandbox::Pod ──commands──> a Sandboxer (runc, wasm, vmm, …)
//!         └─> task::TaskService ──> task::Containers ──> runtime::Runtime (an OCI command line, …)
//!                                        │    │
//!                           reaper ──exits    └──> events ──> containerd
//! ```
//!
//! - [`record`] is the pod's record on disk; [`cleanup`] removes a pod by its record alone.
//! - [`sandbox`] and [`task`] serve the two protocols; wire types are not used beyond them.
//! - [`process`] is the state machine of one process; [`reaper`] is the only place that reaps.
//! - [`host_pod`] is the pod of the sandboxers whose containers are processes of this host.
//! - [`home`] is the cgroup and the network namespace of the sandbox process itself.
//! - [`hooks`] runs the OCI hooks of containers in virtual machines.
//! - [`program`] finds programs of the node's.
//! - [`cgroup`], [`mount`], [`stdio`], [`terminal`], [`sandbox_files`] are the kernel's side of a
//!   container.
//! - `confined` (a feature) runs the programs beside a pod that serve it.
//! - `netlink` (a feature) sends requests to the kernel's network.
//!
//! Deliberately absent: anything that only one kind of sandbox needs, a scheduler of retries, a
//! second thread.

pub mod cgroup;
pub mod cleanup;
pub mod config;
#[cfg(feature = "confined")]
pub mod confined;
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
pub mod packet;
pub mod pod_config;
pub mod process;
pub mod program;
pub mod reaper;
pub mod record;
pub mod runtime;
pub mod sandbox;
pub mod sandbox_files;
pub mod server;
pub mod stdio;
pub mod task;
pub mod terminal;
