// SPDX-License-Identifier: Apache-2.0
//! magnetar-vmm: runs each pod as a virtual machine with its own kernel.
//!
//! ```text
//! containerd ──ttrpc──> this process, one per pod
//!                        │  pod      the Sandbox API: cgroup, network and files of the pod
//!                        │  relay    the Task API: records here, containers in the guest
//!                        │  machine  ├── the hypervisor ──── the guest: vm-agent is its init
//!                        │           ├── virtiofsd           shares files (host/share)
//!                        │           └── vhost-device-vsock  connections to the agent (relay/guest);
//!                        │                               the kernel's vhost-vsock replaces it where available
//!                        └─ forward  passes connections to the pod's loopback on to the guest
//! ```
//!
//! The folders: `host` is what this host gives a guest. `machine` is the machine's processes, from
//! their start to their end. `hypervisor` is the interface to a hypervisor; each hypervisor has a
//! file there, which holds everything specific to it. `relay` is the containers in the guest.
//!
//! `template` is guests that were booted before, as copies of which machines may begin.
//!
//! Deliberately absent: anything that lets the guest make the host act. A machine is made from
//! files on disk and ends with its pod.

mod config;
// Nothing of ours calls it: tests/fuzz does.
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod host;
mod hypervisor;
mod machine;
mod pod;
mod relay;
mod template;

use config::{HypervisorName, VmConfig};
use hypervisor::Hypervisor;
use hypervisor::cloud_hypervisor::CloudHypervisor;
use hypervisor::qemu::Qemu;
use magnetar_core::sandbox_files::SandboxFiles;
use magnetar_core::server;
use pod::VmPod;
use relay::Relay;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    if let Some(code) = template::copy::run_if_asked() {
        return code;
    }
    server::main("magnetar-vmm", |inherited| {
        inherited.serve(|dir, record, parts| {
            record.config.refuse_runtime()?;
            let config = VmConfig::parse(&record.config.vm)?;
            let files = SandboxFiles::new(&record.config.containerd, &record.sandbox, dir);
            let relay = Relay::new(dir.clone(), files.state_dir.join("shm"), parts);
            let hypervisor: Arc<dyn Hypervisor> = match config.hypervisor {
                HypervisorName::CloudHypervisor => Arc::new(CloudHypervisor::configured(&config.cloud_hypervisor)?),
                HypervisorName::Qemu => Arc::new(Qemu::configured(&config.qemu)?),
            };
            Ok((VmPod::new(hypervisor, config, dir.clone(), record, relay.clone(), parts.clone()), relay))
        })
    })
}
