// SPDX-License-Identifier: Apache-2.0
//! magnetar-vmm: pods that are virtual machines, each with a kernel of its own.
//!
//! ```text
//! containerd ──ttrpc──> this process, one per pod
//!                        │  pod      cgroup, network, files of the pod; the Sandbox API's side
//!                        │  relay    the Task API: book-keeping here, containers in the guest
//!                        │  machine  ├── the hypervisor ──── the guest: vm-agent is its init
//!                        │           │                       by way of disks, once it runs
//!                        │           ├── virtiofsd           files, by way of share
//!                        │           └── vhost-device-vsock  connections to the agent, by way of guest;
//!                        │                               the kernel's vhost-vsock in its place, where there is one
//!                        └─ forward  connections to the pod's loopback, carried into the guest
//! ```
//!
//! What one hypervisor alone knows is in its file in `hypervisor`. Deliberately absent: anything that the guest could have
//! the host do, and a cache of anything: a machine is made from what is on disk, and goes with its pod.

mod acceleration;
mod block;
mod config;
mod confinement;
mod devices;
mod disks;
mod forward;
// Nothing of ours calls it: tests/fuzz does.
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guest;
mod huge;
mod hypervisor;
mod machine;
mod network;
mod pod;
mod processes;
mod program;
mod random;
mod relay;
mod share;
mod socket;
mod spec;
mod streams;
mod translate;
mod vsock;
mod words;

use config::{HypervisorName, VmConfig};
use hypervisor::qemu::{PROGRAM, Qemu};
use magnetar_core::sandbox_files::SandboxFiles;
use magnetar_core::server;
use pod::VmPod;
use relay::Relay;
use std::process::ExitCode;

fn main() -> ExitCode {
    server::main("magnetar-vmm", |inherited| {
        inherited.serve(|dir, record, parts| {
            let config = VmConfig::parse(&record.config.vm)?;
            let files = SandboxFiles::new(&record.config.containerd, &record.sandbox, dir);
            let relay = Relay::new(record.sandbox.clone(), dir.clone(), files.state_dir.join("shm"), parts);
            let hypervisor = match config.hypervisor {
                HypervisorName::Qemu => Qemu::new(PROGRAM.find(config.program.as_deref().unwrap_or_default())?, config.machine).measuring(),
            };
            Ok((VmPod::new(hypervisor, config, dir.clone(), record, relay.clone(), parts.clone()), relay))
        })
    })
}
