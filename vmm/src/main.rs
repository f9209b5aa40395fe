// SPDX-License-Identifier: Apache-2.0
//! magnetar-vmm: pods that are virtual machines.
#![allow(dead_code, reason = "being built")]
mod forward;
mod hypervisor;
mod spec;
fn main() {}
