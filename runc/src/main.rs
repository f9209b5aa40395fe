// SPDX-License-Identifier: Apache-2.0
//! magnetar-runc: the sandbox process of a pod whose containers run in plain namespaces.
//!
//! ```text
//!   this process ── is in the pod's network, IPC and UTS namespace (so there is no pause process)
//!    ├── holder      only if the pod shares its PID namespace or has a user namespace
//!    └── containers  made by an OCI runtime or magnetar-maker, which ends when it has made them
//! ```
//!
//! Deliberately absent: anything that outlives the pod, and a second thread.

mod runtime;

use magnetar_core::host_pod::HostPod;
use magnetar_core::server;
use magnetar_core::task::Containers;
use runtime::PodRuntime;
use std::process::ExitCode;

fn main() -> ExitCode {
    server::main("magnetar-runc", |inherited| {
        inherited.serve(|dir, record, parts| {
            record.config.refuse_vm()?;
            let runtime = PodRuntime::new(&record.config.runtime, dir, parts.reaper.clone())?;
            let containers = Containers::new(runtime, dir.clone(), parts);
            Ok((HostPod::new(dir.clone(), record, containers.clone(), parts.reaper.clone()), containers))
        })
    })
}
