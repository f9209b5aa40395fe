// SPDX-License-Identifier: Apache-2.0
//! A machine: the hypervisor, its helpers and the guest's agent, from their start to their end.
//!
//! ```text
//! boot    the processes run ─> the hypervisor is told to begin ─> the agent answers ─> Machine
//! death   one task waits for whatever comes first: a process ends, the agent does not answer, it is switched off or condemned;
//!         then kills all, and tells why
//! ```

mod boot;
pub mod confinement;
mod death;
pub mod devices;
pub mod log_tail;
pub mod processes;
pub mod program;
pub mod spec;
pub mod vsock_directory;

use crate::hypervisor::connection::Connection;
use crate::relay::guest::Guest;
use magnetar_core::cgroup::Cgroup;
use magnetar_vm_agent_api::Request;
use magnetar_vm_agent_api::secret::Secret;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tracing::debug;

/// How long a guest may take to switch itself off.
const OFF: Duration = Duration::from_secs(5);

/// How long it may take where it has disks, to which it writes first what its containers have written.
const OFF_WITH_DISKS: Duration = Duration::from_secs(30);

/// The files of a machine, in [`VmSpec::dir`](spec::VmSpec::dir). Short: a socket's path has its limits.
pub mod files {
    /// virtiofsd's vhost-user socket.
    pub const SHARE: &str = "fs.sock";
    /// What the guest's console says.
    pub const CONSOLE: &str = "console.log";
}

/// A machine that runs. Cheap to clone.
#[derive(Clone)]
pub struct Machine {
    /// Its agent.
    pub guest: Guest,
    /// Its hypervisor.
    pub hypervisor: Connection,
    /// The hypervisor's process.
    pub pid: u32,
    /// Why it has ended, once it has.
    pub death: watch::Receiver<Option<Arc<str>>>,
    /// Whoever finds out that it is good for nothing ends it here, and says why.
    pub condemn: mpsc::Sender<String>,
    off: Arc<watch::Sender<bool>>,
}

/// What a machine is made with, beside its [`VmSpec`](spec::VmSpec).
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// What its agent knows us by, which it finds in the share.
    pub secret: Secret,
    /// The cgroup that its processes are in.
    pub cgroup: &'a Cgroup,
}

impl Machine {
    /// Switches it off, and returns when it has ended. Idempotent, and cancel-safe.
    pub async fn switch_off(&self) {
        if self.death.borrow().is_none() {
            if let Err(error) = self.guest.ask(Request::SwitchOff, off_within(&self.hypervisor)).await {
                debug!(%error, "the guest does not switch itself off");
            }
            self.off.send_replace(true);
        }
        let mut death = self.death.clone();
        // It fails where the task that had the machine is gone, and the machine with it.
        let _ended = death.wait_for(Option::is_some).await;
    }
}

fn off_within(hypervisor: &Connection) -> Duration {
    if hypervisor.has_disks() { OFF_WITH_DISKS } else { OFF }
}
