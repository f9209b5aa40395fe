// SPDX-License-Identifier: Apache-2.0
//! Answers the host's requests on control connections: everything but the Task API.

use crate::streams::Streams;
use crate::{block, huge_pages, network, size};
use magnetar_core::error::{Context, Error, Result};
use magnetar_core::ids::{ContainerId, ExecId};
use magnetar_core::runtime::libcontainer::Libcontainer;
use magnetar_core::task::Containers;
use magnetar_sys::holder::{self, HolderError};
use magnetar_vm_agent_api::{self as api, Answer, Bundle, Memory, Request, Setup, frame};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::time::{ClockId, Timespec};
use std::ffi::CString;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tracing::info;

/// How far the clock may be from the host's. A request may take as long to arrive.
const WRONG: Duration = Duration::from_secs(1);

/// Answers requests, one after the other, until the host leaves or switches the guest off.
pub async fn answer(
    containers: &Containers<Libcontainer>,
    streams: &Streams,
    mut host: impl AsyncRead + AsyncWrite + Unpin,
    off: mpsc::Sender<()>,
) -> std::io::Result<()> {
    loop {
        let request = frame::read::<Request>(&mut host, frame::FROM_HOST).await?;
        let done = match request {
            Request::SetUp(setup) => set_up(&setup).await,
            Request::Bundle(bundle) => write_bundle(&bundle).await,
            Request::Forget { container, exec } => forget(streams, container, exec),
            Request::Release { serial } => block::release(&serial).await,
            Request::Resize { vcpus } => size::resize(vcpus).await,
            Request::Ping { now } => keep_clock(now),
            Request::SwitchOff => {
                let done = containers.kill_all().await;
                // It fails if the guest is ending already.
                let _ending = off.send(()).await;
                done
            }
        };
        let answer = done.map_or_else(|error| Answer::Failed(error.to_line()), |()| Answer::Done);
        frame::write(&mut host, &answer).await?;
    }
}

async fn set_up(setup: &Setup) -> Result<()> {
    set_clock(setup.now)?;
    if !setup.hostname.is_empty() {
        nix::unistd::sethostname(&setup.hostname).context(|| format!("cannot set the hostname {:?}", setup.hostname))?;
    }
    // First, while free memory is in one piece.
    huge_pages::set_aside(setup.huge_pages).await?;
    // Before sysctls, which may name an interface.
    network::configure(&setup.network).await?;
    for (name, value) in &setup.sysctls {
        if !name.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::invalid(format!("{} is not the path of a sysctl", name.display())));
        }
        std::fs::write(Path::new("/proc/sys").join(name), value)
            .context(|| format!("cannot set the sysctl {} = {value:?}", name.display()))?;
    }
    info!(sandbox = setup.sandbox, "ready");
    Ok(())
}

/// Makes the PID namespace that containers share, and a holder as its process 1.
fn hold_pid_namespace() -> Result<()> {
    if Path::new(api::PID_NAMESPACE).exists() {
        return Ok(());
    }
    let held = holder::spawn(true, || Ok(())).map_err(|error| match error {
        HolderError::Fork(error) => Error::internal(format!("cannot fork the process that holds the PID namespace: {error}")),
        HolderError::Prepare(message) => Error::internal(message),
    })?;
    let what = || "cannot keep the pod's PID namespace".to_string();
    std::fs::write(api::PID_NAMESPACE, "").context(what)?;
    mount_bind(format!("/proc/{held}/ns/pid"), api::PID_NAMESPACE).context(what)
}

/// Sets the clock if it is more than [`WRONG`] off, as after a pause. Smaller corrections would
/// make it jump back and forth.
fn keep_clock(now: u64) -> Result<()> {
    let here = rustix::time::clock_gettime(ClockId::Realtime);
    let here = Duration::new(here.tv_sec.max(0) as u64, here.tv_nsec as u32);
    if here.abs_diff(Duration::from_nanos(now)) < WRONG {
        return Ok(());
    }
    info!("the clock differed from the host's: set it");
    set_clock(now)
}

fn set_clock(now: u64) -> Result<()> {
    let time = Timespec { tv_sec: (now / 1_000_000_000) as i64, tv_nsec: (now % 1_000_000_000) as _ };
    rustix::time::clock_settime(ClockId::Realtime, time).context(|| "cannot set the clock".into())
}

async fn write_bundle(bundle: &Bundle) -> Result<()> {
    let container = ContainerId::parse(bundle.container.clone())?;
    huge_pages::set_aside(bundle.huge_pages).await?;
    for memory in &bundle.memory {
        make_memory(memory)?;
    }
    if bundle.shared_pid {
        hold_pid_namespace()?;
    }
    for submount in &bundle.submounts {
        enter_submount(submount)?;
    }
    let placed;
    let spec = if bundle.disks.is_empty() {
        &bundle.spec
    } else {
        placed = block::place(&bundle.spec, &bundle.disks).await?;
        &placed
    };
    let dir = bundle_dir(&container);
    std::fs::create_dir_all(&dir).context(|| format!("cannot make {}", dir.display()))?;
    std::fs::write(dir.join("config.json"), spec).context(|| format!("cannot write the specification of container {container}"))
}

/// Enters a mount point of the share. The kernel mounts its file system at the first access, with
/// the flags of the mount above it. So a writable file system below a read-only volume must be
/// entered before the volume is mounted.
fn enter_submount(submount: &str) -> Result<()> {
    let what = || format!("cannot enter {submount} of the share");
    let share = rustix::fs::open(api::SHARE, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(share, submount, flags, Mode::empty(), ResolveFlags::BENEATH).map(drop).context(what)
}

fn make_memory(memory: &Memory) -> Result<()> {
    let path = format!("{}/{}", api::MEMORY, memory.name);
    let what = || format!("cannot make the volume {path}");
    if Path::new(&path).exists() {
        return Ok(());
    }
    std::fs::create_dir(&path).context(what)?;
    let mut options = format!("mode={:o}", memory.mode & 0o7777);
    if let Some(size) = memory.size {
        options.push_str(&format!(",size={size}"));
    }
    let kind = if memory.huge { "hugetlbfs" } else { "tmpfs" };
    if memory.huge {
        options.push_str(",pagesize=2M");
    }
    let options = CString::new(options).map_err(|_| Error::internal(what()))?;
    mount(kind, &path, kind, MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str()).context(what)
}

/// Removes everything that [`write_bundle`] and the streams have made.
fn forget(streams: &Streams, container: String, exec: Option<String>) -> Result<()> {
    let container = ContainerId::parse(container)?;
    if let Some(exec) = exec {
        return streams.forget(&container, Some(&ExecId::parse(exec)?));
    }
    streams.forget(&container, None)?;
    leave_share(&container)?;
    let dir = bundle_dir(&container);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(|| format!("cannot remove {}", dir.display())),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Unmounts a container's part of the share, and drops this kernel's caches of its files, which
/// virtiofsd on the host keeps open for them.
fn leave_share(container: &ContainerId) -> Result<()> {
    for mounted in magnetar_core::mount::mounts_below(&Path::new(api::SHARE).join(container.as_str()))? {
        magnetar_core::mount::unmount(&mounted)?;
    }
    // 2: unused directory entries and inodes (proc(5)).
    std::fs::write("/proc/sys/vm/drop_caches", "2").context(|| "cannot drop the caches of files".into())
}

fn bundle_dir(container: &ContainerId) -> PathBuf {
    Path::new(api::BUNDLES).join(container.as_str())
}
