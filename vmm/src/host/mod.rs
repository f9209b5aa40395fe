// SPDX-License-Identifier: Apache-2.0
//! The host's side of a machine: the files, network, devices and memory that it gives a guest, and
//! checks of what the host supports.

pub mod acceleration;
pub mod block;
pub mod capacity;
pub mod forward;
pub mod huge_pages;
pub mod network;
pub mod share;
pub mod vsock;
