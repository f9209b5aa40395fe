// SPDX-License-Identifier: Apache-2.0
//! Makes a template, beside a pod that had to boot because there was none.
//!
//! The machine is one more child of this process and dies with it. It is in the cgroup of the
//! sandbox process, because it is no part of the pod and must not use up the pod's limits. Its tap
//! is in a network namespace of its own, where nothing else is. If the pod is over before the
//! template is complete, there is none, and the next pod tries again.

use super::copy::{self, Task};
use super::recipe::Recipe;
use super::store::{Making, Store};
use crate::host::vsock::Vsock;
use crate::hypervisor::Hypervisor;
use crate::hypervisor::snapshots::saved_mac;
use crate::machine::spec::{Nic, Users, Virtiofs, VmSpec};
use crate::machine::{files, saved};
use magnetar_core::cgroup::{Cgroup, OwnedCgroup};
use magnetar_core::confined::process::Common;
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::ids::SandboxId;
use magnetar_core::record::PodRecord;
use magnetar_core::server::Parts;
use nix::sched::{CloneFlags, unshare};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, warn};

/// The MTU of a template's interfaces, in bytes. No frame is ever sent on them.
const MTU: u32 = 1500;

/// A task that makes a template.
#[derive(Debug)]
pub struct Maker {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Maker {
    /// Begins to make the template, unless another process does, or has done so. `dir` is for the
    /// machine's sockets; it is removed in the end. A failure is logged.
    pub fn begin(hypervisor: Arc<dyn Hypervisor>, store: Store, recipe: Recipe, record: &PodRecord, dir: PathBuf, parts: &Parts) -> Self {
        let stop = CancellationToken::new();
        let (stopped, record, owned) = (stop.clone(), record.clone(), parts.clone());
        let work = async move {
            match make(&*hypervisor, &store, &recipe, &record, &dir, &owned, &stopped).await {
                Ok(()) => {}
                Err(error) if stopped.is_cancelled() => debug!(%error, "did not complete a template"),
                Err(error) => warn!(%error, "cannot make a template; pods go on booting"),
            }
            if let Err(error) = remove_dir(&dir) {
                warn!(%error, "something of a template's machine is left until the pod is removed");
            }
        };
        Self { stop, task: parts.tasks.spawn(work.in_current_span()) }
    }

    /// Gives up, unless the template is complete. On return nothing of its machine is left.
    pub async fn end(self) {
        self.stop.cancel();
        // The task fails only by a panic, which ends this process.
        let _ended = self.task.await;
    }
}

async fn make(
    hypervisor: &dyn Hypervisor,
    store: &Store,
    recipe: &Recipe,
    record: &PodRecord,
    dir: &Path,
    parts: &Parts,
    stop: &CancellationToken,
) -> Result<()> {
    let Some(making) = store.begin(recipe)? else { return Ok(()) };
    let Some(snapshots) = hypervisor.snapshots() else { return Ok(()) };
    let own = OwnedCgroup::of_sandbox(&record.namespace, &record.sandbox)?;
    own.create()?;
    let cgroup: &Cgroup = &own;
    let common = Common { reaper: &parts.reaper, tasks: &parts.tasks, cgroup };
    let memory = copy::memory_file(recipe.memory_mib)?;
    let state = making.state()?;
    let spec = spec(recipe, dir)?;
    let saved = saved::save(hypervisor, snapshots, &spec, (memory.as_fd(), &state), common, stop).await?;
    let memory = saved.memory.map_or(memory, OwnedFd::from);
    pack(&making, &memory, common, stop).await?;
    making.finish(saved.version, &state)
}

/// Stores the guest's memory.
async fn pack(making: &Making, memory: &OwnedFd, common: Common<'_>, stop: &CancellationToken) -> Result<()> {
    let file = making.memory()?;
    let packed = copy::begin(Task::Pack, memory.as_fd(), file.as_fd(), common)?;
    tokio::select! {
        packed = copy::end(packed) => packed,
        () = stop.cancelled() => Err(Error::new(Code::Unavailable, "the pod beside which it is made is over")),
    }
}

/// The machine, with its directory and taps.
fn spec(recipe: &Recipe, dir: &Path) -> Result<VmSpec> {
    let share = dir.join("share");
    for dir in [dir, &share] {
        std::fs::DirBuilder::new().mode(0o700).create(dir).context(|| format!("cannot make {}", dir.display()))?;
    }
    let nics = taps(recipe.interfaces)?.into_iter().enumerate().map(|(number, tap)| Nic { tap, mac: saved_mac(number), mtu: MTU });
    let share = |program: &PathBuf| Virtiofs {
        program: program.clone(),
        directory: share.clone(),
        socket: dir.join(files::SHARE),
        is_cached: recipe.key.caches_files,
    };
    Ok(VmSpec {
        sandbox: SandboxId::parse("template")?,
        kernel: recipe.kernel.clone(),
        initramfs: recipe.initramfs.clone(),
        parameters: recipe.parameters.clone(),
        memory_mib: recipe.memory_mib,
        huge_pages: false,
        vcpus: recipe.vcpus,
        most: recipe.most,
        acceleration: recipe.acceleration,
        share: recipe.virtiofsd.as_ref().map(share),
        // It has none.
        vsock: Vsock::Own,
        nics: nics.collect(),
        dir: dir.to_owned(),
        users: Users::of(std::process::id()).second(),
    })
}

/// Taps in a network namespace of their own, which lives as long as they do.
fn taps(number: usize) -> Result<Vec<OwnedFd>> {
    let make = move || {
        unshare(CloneFlags::CLONE_NEWNET).context(|| "cannot make a network namespace for a template".into())?;
        let tap = |number| {
            // A hypervisor asks for an interface's MTU by its name, in the pod's network namespace.
            // It must find none: the copies' interfaces have other MTUs.
            let name = CString::new(format!("magt{number}")).map_err(|_| Error::internal("a name with a zero"))?;
            magnetar_sys::tap::open(&name).context(|| "cannot make a tap device for a template".into())
        };
        (0..number).map(tap).collect()
    };
    // A thread of its own, because this one stays in the pod's namespace.
    std::thread::spawn(make).join().unwrap_or_else(|_| Err(Error::internal("the thread that makes taps has panicked")))
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(|| format!("cannot remove {}", dir.display())),
        Ok(()) | Err(_) => Ok(()),
    }
}
