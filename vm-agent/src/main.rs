// SPDX-License-Identifier: Apache-2.0
//! vm-agent: process 1 of a guest, and the only program there beside the pod's containers.
//!
//! ```text
//!  boot         mounts, and a root from which containers can pivot
//!  modules      kernel modules: those of the boot, and those that the kernel asks for later (this is its modprobe)
//!  template     in a guest that is saved to be copied: waits until it is a pod's
//!  connections  serves the host's connections, each for one purpose
//!  pod          sets up the pod: hostname, sysctls, network, clock; writes bundles of containers
//!  block        disks that the host attaches later
//!  huge_pages   sets huge pages aside
//!  size         takes in and gives back memory and processors
//!  uevents      waits for the kernel's messages about devices
//!  streams      a process's FIFOs, and their connections
//!  events       reports events to the host
//!               containers: the core makes them, with libcontainer, and this program is the maker
//! ```
//!
//! It has no settings of its own: the host sends them all. If it cannot go on, it writes the reason
//! to the console and ends, and the machine ends with it.
//!
//! Deliberately absent: a shell, a log file, and anything that connects to the host by itself.

mod block;
mod boot;
mod connections;
mod events;
mod huge_pages;
mod modules;
mod network;
mod pod;
mod size;
mod streams;
mod template;
mod uevents;

use connections::Connections;
use magnetar_core::config::{LogLevel, RuntimeConfig};
use magnetar_core::error::{Context, Error, Result};
use magnetar_core::events::Events;
use magnetar_core::idle::{self, Idle};
use magnetar_core::ids::{Namespace, SandboxId};
use magnetar_core::logging;
use magnetar_core::reaper::Reaper;
use magnetar_core::record::PodDir;
use magnetar_core::runtime::libcontainer::{self, Libcontainer, Native};
use magnetar_core::server::Parts;
use magnetar_core::task::Containers;
use magnetar_vm_agent_api::{GIVES_UP, HELLO};
use rustix::system::RebootCommand;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio_util::task::TaskTracker;
use tracing::error;

/// The path of this program in the guest.
const PROGRAM: &str = "/init";

/// Where the containers' records are.
const STATE: &str = "/run/magnetar/state";

fn main() -> ExitCode {
    if let Some(code) = modules::run_if_asked() {
        return code;
    }
    if let Some(code) = libcontainer::run_if_asked(Native) {
        return code;
    }
    if std::process::id() != 1 {
        eprintln!("vm-agent: this program is process 1 of a guest that magnetar-vmm has made");
        return ExitCode::FAILURE;
    }
    logging::start(boot::log_level().unwrap_or(LogLevel::Info));
    if let Err(error) = run() {
        // The host shows the end of the console.
        if say_to_kernel(&error).is_err() {
            error!(%error, "{GIVES_UP}");
        }
    }
    rustix::fs::sync();
    // It returns only if it fails. Then the kernel panics, because process 1 ends.
    let _failed = rustix::system::reboot(way_out());
    ExitCode::FAILURE
}

/// The longest reason, in bytes: the kernel's longest message (`PRINTKRB_RECORD_MAX` of printk)
/// less the text around it.
const LONGEST: usize = 900;

/// Writes the reason why the guest ends to the kernel's log, which prints it at once. A write to
/// the console would wait for the console's interrupt, which never comes if the kernel does not fit
/// the machine.
fn say_to_kernel(error: &Error) -> std::io::Result<()> {
    let error = error.to_string();
    let error = error.lines().next().unwrap_or_default();
    // 3 is an error, which is shown even by a quiet kernel (KERN_ERR of linux/kern_levels.h).
    let line = format!("<3>{GIVES_UP} error={}", &error[..error.floor_char_boundary(LONGEST)]);
    std::fs::File::options().write(true).open("/dev/kmsg")?.write_all(line.as_bytes())
}

/// How to end this machine. Without ACPI it cannot be switched off: the kernel would halt instead.
/// The hypervisor ends a machine without ACPI when it restarts.
fn way_out() -> RebootCommand {
    let firmware = Path::new("/sys/firmware");
    if firmware.exists() && !firmware.join("acpi").exists() { RebootCommand::Restart } else { RebootCommand::PowerOff }
}

fn run() -> Result<()> {
    boot::prepare()?;
    size::set_policy()?;
    template::wait_if_template()?;
    let runtime = idle::event_loop().context(|| "cannot start the event loop".into())?;
    runtime.block_on(serve())
}

async fn serve() -> Result<()> {
    let (reaper, reap) = Reaper::start()?;
    let (events, told) = Events::queue();
    let (idle, give_back) = Idle::new();
    let tasks = TaskTracker::new();
    let parts = Parts { reaper: reaper.clone(), events, idle, tasks: tasks.clone() };
    // These names are not visible outside: a guest is one pod.
    let (namespace, sandbox) = (Namespace::parse("guest")?, SandboxId::parse("pod")?);
    let dir = PodDir::new(Path::new(STATE), &namespace, &sandbox)?;
    dir.make()?;
    let config = RuntimeConfig { name: libcontainer::NAME.into(), ..RuntimeConfig::default() };
    let runtime = Libcontainer::new(&config, &dir, reaper, PathBuf::from(PROGRAM))?;
    let containers = Containers::new(runtime, dir, &parts);
    let connections = Connections::open(sandbox, boot::secret()?, containers, told, tasks)?;
    if boot::has_word(HELLO)? {
        connections.announce().await?;
    }
    tokio::select! {
        ended = connections.serve() => ended,
        never = size::report_free_memory() => match never {},
        () = reap => Err(Error::internal("the loop that reaps processes has ended")),
        () = give_back => Err(Error::internal("the loop that returns memory has ended")),
    }
}
