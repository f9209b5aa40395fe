// SPDX-License-Identifier: Apache-2.0
//! A machine: the hypervisor, its helper processes and the guest's agent, from start to end.
//!
//! ```text
//! boot    run the processes ─> let the hypervisor begin, or restore ─> wait for the agent ─> Machine
//! saved   run the processes of a machine without a pod, to save it as a template
//! death   one task waits until a process ends, the agent stops answering, or the machine is switched
//!         off or condemned; then it kills all processes and publishes the reason
//! ```

mod boot;
pub mod console;
mod death;
pub mod devices;
mod processor_wait;
pub mod saved;
pub mod size;
pub mod spec;
pub mod vsock_directory;

use crate::hypervisor::connection::Connection;
use crate::relay::guest::Guest;
use crate::template::store::Template;
use magnetar_core::cgroup::Cgroup;
use magnetar_core::cgroup::devices::Exceptions;
use magnetar_vm_agent_api::Request;
use magnetar_vm_agent_api::secret::Secret;
use size::Size;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tracing::debug;

/// How long a guest may take to switch itself off.
const OFF_TIMEOUT: Duration = Duration::from_secs(5);

/// How long that may take for a guest with disks: it first writes back what its containers have
/// written.
const OFF_TIMEOUT_WITH_DISKS: Duration = Duration::from_secs(30);

/// File names in [`VmSpec::dir`](spec::VmSpec::dir). They are short because a socket's path is
/// limited.
pub mod files {
    /// virtiofsd's vhost-user socket.
    pub const SHARE: &str = "fs.sock";
    /// The output of the guest's console.
    pub const CONSOLE: &str = "console.log";
}

/// A running machine. Cheap to clone.
#[derive(Clone)]
pub struct Machine {
    /// Its agent.
    pub guest: Guest,
    /// Its hypervisor.
    pub hypervisor: Connection,
    /// The size that it was started with.
    pub start: Size,
    /// The size that it may grow to.
    pub most: Size,
    /// The hypervisor's process.
    pub pid: u32,
    /// Why it has ended; `None` while it runs.
    pub death: watch::Receiver<Option<Arc<str>>>,
    /// Takes the reason why the machine is unusable, and ends the machine.
    pub condemn: mpsc::Sender<String>,
    off: Arc<watch::Sender<bool>>,
}

/// What booting a machine needs in addition to its [`VmSpec`](spec::VmSpec).
#[derive(Debug)]
pub struct BootContext<'a> {
    /// The secret that authenticates us to the agent, which finds it in the share.
    pub secret: Secret,
    /// The cgroup for its processes.
    pub cgroup: &'a Cgroup,
    /// The block devices that this cgroup may use.
    pub exceptions: Arc<Exceptions>,
    /// The template of which it begins as a copy; `None` if it boots.
    pub template: Option<&'a Template>,
}

impl Machine {
    /// Switches it off, and returns when it has ended. Idempotent, and cancel-safe.
    pub async fn switch_off(&self) {
        if self.death.borrow().is_none() {
            if let Err(error) = self.guest.ask(Request::SwitchOff, off_timeout(&self.hypervisor)).await {
                debug!(%error, "the guest did not switch itself off");
            }
            self.off.send_replace(true);
        }
        let mut death = self.death.clone();
        // This fails only if the task that owned the machine is gone, and then so is the machine.
        let _ended = death.wait_for(Option::is_some).await;
    }
}

fn off_timeout(hypervisor: &Connection) -> Duration {
    if hypervisor.has_disks() { OFF_TIMEOUT_WITH_DISKS } else { OFF_TIMEOUT }
}
