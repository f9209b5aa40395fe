// SPDX-License-Identifier: Apache-2.0
//! The processes of a machine without a pod: a guest that boots until its agent waits, and is
//! saved.

use super::boot::Processes;
use super::devices::{self, VsockServer};
use super::files;
use super::spec::VmSpec;
use crate::hypervisor::Hypervisor;
use crate::hypervisor::snapshots::{MemoryKeeper, Saved, Snapshots};
use magnetar_core::confined::log_tail::LogTail;
use magnetar_core::confined::process::{Common, Process};
use magnetar_core::error::{Code, Error, Result};
use magnetar_vm_agent_api::TEMPLATE_READY;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the guest may take until it waits, in software emulation on a busy host.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// Boots the machine with this memory, and writes the hypervisor's part of it to `state`. All of
/// its processes have ended afterwards.
///
/// # Errors
/// If a process cannot be run or ends; `DeadlineExceeded` if the guest does not get as far;
/// `Unavailable` if `stop` is cancelled.
pub async fn save(
    hypervisor: &dyn Hypervisor,
    snapshots: &dyn Snapshots,
    spec: &VmSpec,
    (memory, state): (BorrowedFd<'_>, &File),
    common: Common<'_>,
    stop: &CancellationToken,
) -> Result<Saved> {
    if snapshots.memory() == MemoryKeeper::Hypervisor
        && let Some(directory) = spec.vsock_directory()
    {
        // Where the hypervisor writes the memory. There is no vsock, so nobody says hello in there.
        drop(directory.make()?);
    }
    let virtiofsd = spec.share.as_ref().map(|share| {
        // By now this process, which a pod's guest talks to, has given up this capability, and
        // virtiofsd does not start without one that it asks for. There are no files to serve.
        devices::run_virtiofsd(share, &["--modcaps=-setfcap"], common)
    });
    let virtiofsd = virtiofsd.transpose()?;
    let console = LogTail::default();
    let log = Some((console.clone(), spec.dir.join(files::CONSOLE)));
    let process = Process::run("the hypervisor", &snapshots.plan_saved(spec, memory), log, common)?;
    let mut processes = Processes { hypervisor: process, virtiofsd, vsock: VsockServer::Hypervisor, console: console.clone() };
    let saved = tokio::select! {
        saved = tokio::time::timeout(READY_TIMEOUT, boot_and_save(hypervisor, spec, &console, state)) => saved.unwrap_or_else(|_| {
            let said = console.last_line().map(|line| format!("; the last line on its console: {line}"));
            let what = format!("the guest does not wait for a pod within {READY_TIMEOUT:?}{}", said.unwrap_or_default());
            Err(Error::new(Code::DeadlineExceeded, what))
        }),
        reason = processes.one_ended(hypervisor) => Err(Error::internal(reason)),
        () = stop.cancelled() => Err(Error::new(Code::Unavailable, "the pod beside which it is made is over")),
    };
    let saved = match saved {
        Err(error) if !stop.is_cancelled() => Err(processes.cause(hypervisor, error).await),
        saved => saved,
    };
    processes.kill().await;
    saved
}

async fn boot_and_save(hypervisor: &dyn Hypervisor, spec: &VmSpec, console: &LogTail, state: &File) -> Result<Saved> {
    let mut control = hypervisor.begin(spec).await?;
    // Asked first: otherwise each pod would boot a guest in vain.
    let no = || Error::precondition("this version of the hypervisor saves no machines: install a newer one, or set template = false");
    let save = control.save().ok_or_else(no)?;
    console.wait_for(TEMPLATE_READY).await;
    save.save(state.as_fd()).await
}
