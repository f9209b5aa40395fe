// SPDX-License-Identifier: Apache-2.0
//! The host's side of a machine: what it gives a guest of its files, network, devices and memory, and what it can do at all.

pub mod acceleration;
pub mod block;
pub mod forward;
pub mod huge_pages;
pub mod network;
pub mod share;
pub mod socket;
pub mod vsock;
