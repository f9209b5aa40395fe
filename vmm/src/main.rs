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
//! The folders: `host` (what this host gives a guest), `machine` (its processes, from their start to their end), `hypervisor` (what
//! one of them can do, and how it is told), `relay` (containers in the guest). What one hypervisor alone knows is in its file in
//! `hypervisor`. Deliberately absent: anything that the guest could have
//! the host do, and a cache of anything: a machine is made from what is on disk, and goes with its pod.

mod config;
// Nothing of ours calls it: tests/fuzz does.
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod host;
mod hypervisor;
mod machine;
mod pod;
mod relay;

use config::{HypervisorName, VmConfig};
use hypervisor::Hypervisor;
use hypervisor::qemu::Qemu;
use magnetar_core::sandbox_files::SandboxFiles;
use magnetar_core::server;
use pod::VmPod;
use relay::Relay;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    server::main("magnetar-vmm", |inherited| {
        inherited.serve(|dir, record, parts| {
            record.config.refuse_runtime()?;
            let config = VmConfig::parse(&record.config.vm)?;
            let files = SandboxFiles::new(&record.config.containerd, &record.sandbox, dir);
            let relay = Relay::new(dir.clone(), files.state_dir.join("shm"), parts);
            let hypervisor: Arc<dyn Hypervisor> = match config.hypervisor {
                HypervisorName::Qemu => Arc::new(Qemu::configured(&config.qemu)?),
            };
            Ok((VmPod::new(hypervisor, config, dir.clone(), record, relay.clone(), parts.clone()), relay))
        })
    })
}
