// SPDX-License-Identifier: Apache-2.0
//! magnetar-vmm: pods that are virtual machines.
#![allow(dead_code, reason = "being built")]
mod acceleration;
mod devices;
mod hypervisor;
mod program;
mod spec;
fn main() {}
