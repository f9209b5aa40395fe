// SPDX-License-Identifier: Apache-2.0
//! vm-agent: process 1 of a guest, and all that runs there beside the pod's containers.
//!
//! ```text
//!  boot     mounts, a root that containers can pivot from
//!  modules  the kernel's: those of the boot, and those that it asks for later, of this program in place of modprobe
//!  doors    takes the host's connections, each for one purpose
//!  pod      makes the guest the pod: name, sysctls, network, clock; bundles of containers
//!  block    disks that the host attaches later
//!  huge     pages of 2 MiB, set aside
//!  streams  a process's FIFOs, and their connections
//!  events   what the host is told unasked
//!           containers: the core's, with libcontainer, and this program as the maker
//! ```
//!
//! It has no settings of its own: what there is to know, the host tells. When it cannot go on it says why on the console and
//! ends, and the machine with it.
//!
//! Deliberately absent: a shell, a log file, and anything that reaches out to the host.

mod block;
mod boot;
mod doors;
mod events;
mod huge;
mod modules;
mod network;
mod pod;
mod streams;

use magnetar_core::config::{LogLevel, RuntimeConfig};
use magnetar_core::error::{Context, Error, Result};
use magnetar_core::events::Events;
use magnetar_core::idle::Idle;
use magnetar_core::ids::{Namespace, SandboxId};
use magnetar_core::logging;
use magnetar_core::reaper::Reaper;
use magnetar_core::record::PodDir;
use magnetar_core::runtime::libcontainer::{self, Libcontainer, Native};
use magnetar_core::server::Parts;
use magnetar_core::task::Containers;
use magnetar_vm_agent_api::GIVES_UP;
use rustix::system::RebootCommand;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio_util::task::TaskTracker;
use tracing::error;

/// This program, as long as there is a guest.
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
    // It returns only where it fails, and then the kernel panics because process 1 has ended.
    let _failed = rustix::system::reboot(way_out());
    ExitCode::FAILURE
}

/// The longest message that the kernel takes, in bytes, less what is around it (`PRINTKRB_RECORD_MAX` of its printk).
const LONGEST: usize = 900;

/// Says why the guest ends as the kernel does, to the end at once: what is written to the console waits for its interrupt, which
/// a machine that is not as its kernel thinks may not have.
fn say_to_kernel(error: &Error) -> std::io::Result<()> {
    let error = error.to_string();
    let error = error.lines().next().unwrap_or_default();
    // 3 is an error, which is shown even by a quiet kernel (KERN_ERR of linux/kern_levels.h).
    let line = format!("<3>{GIVES_UP} error={}", &error[..error.floor_char_boundary(LONGEST)]);
    std::fs::File::options().write(true).open("/dev/kmsg")?.write_all(line.as_bytes())
}

/// How this machine ends. Without ACPI nothing can switch it off: the kernel would stand still instead. Its hypervisor takes a
/// restart for the end, as of every machine that has no ACPI.
fn way_out() -> RebootCommand {
    let firmware = Path::new("/sys/firmware");
    if firmware.exists() && !firmware.join("acpi").exists() { RebootCommand::Restart } else { RebootCommand::PowerOff }
}

fn run() -> Result<()> {
    boot::prepare()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "cannot start the event loop".into())?;
    runtime.block_on(serve())
}

async fn serve() -> Result<()> {
    let (reaper, reap) = Reaper::start()?;
    let (events, told) = Events::queue();
    let (idle, give_back) = Idle::new();
    let tasks = TaskTracker::new();
    let parts = Parts { reaper: reaper.clone(), events, idle, tasks: tasks.clone() };
    // Nobody sees these names: a guest is one pod.
    let (namespace, sandbox) = (Namespace::parse("guest")?, SandboxId::parse("pod")?);
    let dir = PodDir::new(Path::new(STATE), &namespace, &sandbox)?;
    dir.make()?;
    let config = RuntimeConfig { name: libcontainer::NAME.into(), systemd_cgroup: false };
    let runtime = Libcontainer::new(&config, &dir, reaper, PathBuf::from(PROGRAM))?;
    let containers = Containers::new(runtime, dir, &parts);
    let doors = doors::Doors::open(sandbox, boot::secret()?, containers, told, tasks)?;
    if boot::host_waits()? {
        doors.announce().await?;
    }
    tokio::select! {
        ended = doors.serve() => ended,
        () = reap => Err(Error::internal("the loop that reaps has ended")),
        () = give_back => Err(Error::internal("the loop that gives memory back has ended")),
    }
}
