// SPDX-License-Identifier: Apache-2.0
//! The interface to the kernel: all unsafe code of the project, and nothing else.
//!
//! ```text
//! abort          makes a process that aborts say why
//! bound          runs programs that die with their parent, with few privileges
//! compiled       loads compiled code into a Wasm engine (feature `wasmtime`)
//! library        loads a shared library when it is needed (feature `library`)
//! listener       the listening socket that a sandbox process inherits
//! notification   the pipe on which a sandbox process says whether it can serve
//! counter        the processor's time stamp counter
//! device_filter  decides which devices a cgroup may use
//! overflow       makes a process that exhausts its stack say why (feature `library`)
//! loopback       steers connections to a loopback to one listener
//! fork           forks a process that has one thread
//! holder         a process that only holds namespaces
//! namespace      user namespaces, and mounts with mapped ids
//! process        sends signals by number
//! signal         signals that wake the event loop
//! keyring        session keyrings
//! kvm            asks KVM for its version
//! random         gives the kernel's random number generator fresh bytes
//! readiness      watches descriptors in the event loop
//! sealed         opens a program so that its users cannot write to it
//! tap            tap devices
//! vsock          the kernel's vhost-vsock device
//! memory         returns freed pages to the kernel
//! ```
//!
//! Calls for which rustix or nix have a safe function are made where they are needed, not here.

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
#[cfg(feature = "library")]
pub mod overflow;
pub mod process;
pub mod random;
pub mod readiness;
pub mod sealed;
pub mod signal;
pub mod tap;
pub mod vsock;
