// SPDX-License-Identifier: Apache-2.0
//! The kernel's edge: all unsafe code of the project, and nothing else.
//!
//! ```text
//! abort          the last words of a process that aborts
//! bound          programs that do not outlive whoever runs them
//! compiled       code of a Wasm engine (feature `wasmtime`)
//! library        libraries that are loaded when they are needed (feature `library`)
//! listener       the socket that a sandbox process is born with
//! notification   the pipe on which it says whether it can serve
//! counter        the processor's time stamp counter
//! device_filter  which devices a cgroup may use
//! loopback       who listens on the loopback of a network namespace
//! fork           a copy of a process with one thread
//! holder         a process that only holds namespaces
//! namespace      user namespaces, and mounts that follow their maps
//! process        signals by number
//! keyring        rings of keys
//! kvm            what the kernel's hypervisor says of itself
//! readiness      descriptors in the event loop
//! sealed         a program, safe from those who run it
//! tap            network interfaces whose other end is a descriptor
//! vsock          the kernel's device for a guest's vsock
//! memory         giving freed pages back
//! ```
//!
//! What rustix or nix offer safely is called from where it is needed, not from here.

pub mod abort;
pub mod bound;
mod bpf;
#[cfg(feature = "wasmtime")]
pub mod compiled;
pub mod counter;
pub mod device_filter;
pub mod fork;
pub mod holder;
pub mod keyring;
pub mod kvm;
#[cfg(feature = "library")]
pub mod library;
pub mod listener;
pub mod loopback;
pub mod memory;
pub mod namespace;
pub mod notification;
pub mod process;
pub mod readiness;
pub mod sealed;
pub mod tap;
pub mod vsock;
