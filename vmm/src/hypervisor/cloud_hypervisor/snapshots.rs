// SPDX-License-Identifier: Apache-2.0
//! Saves a machine, and begins others as its copies (docs/snapshot_restore.md of Cloud Hypervisor).
//!
//! ```text
//! save      vm.pause ─> vm.snapshot: config.json, state.json and memory-ranges, in its directory
//! restore   the same three files ─> vm.restore, with the taps ─> vm.add-vsock ─> vm.resume
//! ```
//!
//! Its directory is the one that a machine has for its vsock. A saved machine has no vsock, and a
//! copy gets one when all else is restored: that is the agent's sign to go on.
//!
//! `config.json` names files by the numbers of inherited descriptors. A saved machine and its
//! copies inherit the same files in the same order (`CloudHypervisor::begun`), so it is right for
//! both.
//!
//! Cloud Hypervisor reads and writes the memory itself, without its holes. It reads all of it
//! before the guest goes on. It could also read each page when the guest first touches it
//! (`memory_restore_mode=ondemand`). But virtiofsd maps the same memory, and would find zeros where
//! nothing was read yet.

use super::api::{Api, Version};
use super::{CloudHypervisor, Directory, GUEST_CID, devices, network, nic_id, own_directory, size};
use crate::host::vsock::VsockAttachment;
use crate::hypervisor::disk_nodes::DISKS_DIR;
use crate::hypervisor::snapshots::{MemoryKeeper, SavedState, Snapshots, saved_mac};
use crate::hypervisor::{Control, Promise};
use crate::machine::spec::VmSpec;
use magnetar_core::confined::program::Invocation;
use magnetar_core::error::{Context, Error, Result};
use magnetar_vm_agent_api::TEMPLATE;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchown, openat, symlinkat, unlinkat};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The only version that was tried. 51 and older also save memory that the guest never touched.
const LEAST_CLOUD_HYPERVISOR: u32 = 53;

/// The files of a saved machine.
const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
const MEMORY: &str = "memory-ranges";

/// The longest text that is read, in bytes. Both together have some 70,000 for one processor.
const MAX_TEXT: u64 = 32 << 20;

/// A saved machine without its memory: the contents of its two other files.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Texts {
    config: String,
    state: String,
}

/// Whether this version saves machines.
pub fn are_supported(version: &Version) -> bool {
    version.major >= LEAST_CLOUD_HYPERVISOR
}

impl Snapshots for CloudHypervisor {
    fn programs(&self) -> Vec<PathBuf> {
        vec![self.program.clone()]
    }

    fn compatibility(&self, spec: &VmSpec) -> String {
        let VmSpec { vcpus, memory_mib, nics, parameters, .. } = spec;
        let (most, reserve, landlock) = (size::processors(spec), size::reserve(spec), self.landlock);
        let interfaces = nics.len();
        format!(
            "{vcpus} to {most} processors, {memory_mib} and {reserve} MiB, {interfaces} interfaces, Landlock: {landlock}, {parameters:?}"
        )
    }

    fn memory(&self) -> MemoryKeeper {
        MemoryKeeper::Hypervisor
    }

    fn plan_saved<'a>(&self, spec: &'a VmSpec, _memory: BorrowedFd<'a>) -> Invocation<'a> {
        let (mut invocation, reached) = self.begun(spec);
        if self.uses_landlock(spec) {
            let own = [Path::new(DISKS_DIR), &reached.directory].map(|path| format!("path={},access=rw", path.display()));
            invocation.arguments(["--landlock", "--landlock-rules"]);
            invocation.arguments(own);
        }
        devices(&mut invocation, spec, &reached, &[TEMPLATE]);
        network(&mut invocation, spec.nics.iter().enumerate().map(|(number, nic)| (&nic.tap, saved_mac(number))));
        invocation
    }

    fn plan_copy<'a>(&self, spec: &'a VmSpec, memory: BorrowedFd<'a>) -> Invocation<'a> {
        self.copy(spec, memory).0
    }

    fn restore<'a>(&'a self, spec: &'a VmSpec, saved: SavedState<'a>, vsock: VsockAttachment<'a>) -> Promise<'a, Box<dyn Control>> {
        Box::pin(async move {
            let VsockAttachment::Own(host) = vsock else { return Err(Error::internal("Cloud Hypervisor serves the vsock itself")) };
            let control = self.connect(spec).await?;
            let (now, then) = (&control.version.text, saved.version);
            if now != then {
                return Err(Error::precondition(format!("Cloud Hypervisor {now} cannot load what Cloud Hypervisor {then} has saved")));
            }
            // A plan is the same each time.
            let (_, directory, memory) = self.copy(spec, saved.file);
            lay_out(&own_directory(spec), &memory, saved.file)?;
            restore(&control.api, &directory, spec, host).await?;
            // They would take memory as long as the pod lives.
            clear_away(&own_directory(spec))?;
            Ok(Box::new(control) as Box<dyn Control>)
        })
    }
}

impl CloudHypervisor {
    /// A copy's process, and where it finds its directory and the template's memory.
    fn copy<'a>(&self, spec: &VmSpec, memory: BorrowedFd<'a>) -> (Invocation<'a>, PathBuf, PathBuf) {
        let (mut invocation, reached) = self.begun(spec);
        if let Some(files) = &mut invocation.confinement.files {
            files.read.push(descriptor(memory.as_raw_fd()));
        }
        let memory = descriptor(invocation.open(memory));
        (invocation, reached.directory, memory)
    }
}

async fn restore(api: &Api, directory: &Path, spec: &VmSpec, host: &Path) -> Result<()> {
    let socket = directory.join(host.file_name().unwrap_or_default());
    let taps: Vec<_> = spec.nics.iter().map(|nic| nic.tap.as_fd()).collect();
    let nics: Vec<_> = (0..taps.len()).map(|number| json!({ "id": nic_id(number), "num_fds": 1 })).collect();
    api.order_with("vm.restore", &json!({ "source_url": url(directory), "net_fds": nics }), &taps).await?;
    api.order("vm.add-vsock", &json!({ "cid": GUEST_CID, "socket": socket })).await?;
    api.order("vm.resume", &Value::Null).await
}

/// Pauses the machine and saves it: the memory in a file of its directory, which is returned, and
/// everything else in `state`.
///
/// # Errors
/// Errors of Cloud Hypervisor and of the kernel; `Internal` if what it has written is not what is
/// expected.
pub async fn save(api: &Api, directory: &Directory, state: BorrowedFd<'_>) -> Result<File> {
    api.order("vm.pause", &Value::Null).await?;
    api.order("vm.snapshot", &json!({ "destination_url": url(&directory.reached) })).await?;
    let directory = open_directory(&directory.path)?;
    let [config, text] = [CONFIG, STATE].map(|name| read_text(&directory, name));
    let texts = serde_json::to_vec(&Texts { config: config?, state: text? }).map_err(|error| Error::internal(error.to_string()))?;
    let what = || "cannot write a machine's state".to_string();
    File::from(state.try_clone_to_owned().context(what)?).write_all(&texts).context(what)?;
    let memory = open(&directory, MEMORY)?;
    // Whoever copies it is root without capabilities.
    fchown(&memory, Some(Uid::ROOT), Some(Gid::ROOT)).context(|| format!("cannot change the owner of {MEMORY}"))?;
    Ok(memory)
}

/// Puts a saved machine's files where its copy reads them.
fn lay_out(directory: &Path, memory: &Path, saved: BorrowedFd<'_>) -> Result<()> {
    let saved = File::from(saved.try_clone_to_owned().context(|| "cannot read a saved machine's state".into())?);
    let length = saved.metadata().context(|| "cannot inspect a saved machine's state".into())?.len();
    let mut bytes = vec![0; usize::try_from(length.min(MAX_TEXT)).unwrap_or(0)];
    saved.read_exact_at(&mut bytes, 0).context(|| "cannot read a saved machine's state".into())?;
    let damaged = |error| Error::precondition(format!("a saved machine's state is damaged: {error}"));
    let Texts { config, state } = serde_json::from_slice(&bytes).map_err(damaged)?;
    let directory = open_directory(directory)?;
    for (name, text) in [(CONFIG, config), (STATE, state)] {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let what = || format!("cannot make {name} for a machine that begins as a copy");
        // Only the directory's owner comes so far.
        let file = openat(&directory, name, flags, Mode::from_raw_mode(0o644)).context(what)?;
        File::from(file).write_all(text.as_bytes()).context(what)?;
    }
    symlinkat(memory, &directory, MEMORY).context(|| format!("cannot make {MEMORY} for a machine that begins as a copy"))
}

/// Removes what [`lay_out`] has made.
fn clear_away(directory: &Path) -> Result<()> {
    let directory = open_directory(directory)?;
    [CONFIG, STATE, MEMORY].into_iter().try_for_each(|name| {
        let what = || format!("cannot remove {name}, from which a machine has begun as a copy");
        unlinkat(&directory, name, AtFlags::empty()).context(what)
    })
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).context(|| format!("cannot open {}", path.display()))
}

fn open(directory: &OwnedFd, name: &str) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty()).map(File::from).context(|| format!("Cloud Hypervisor has not written {name}"))
}

fn read_text(directory: &OwnedFd, name: &str) -> Result<String> {
    let mut text = String::new();
    open(directory, name)?.take(MAX_TEXT).read_to_string(&mut text).context(|| format!("cannot read {name}"))?;
    Ok(text)
}

fn url(directory: &Path) -> String {
    format!("file://{}", directory.display())
}

fn descriptor(number: i32) -> PathBuf {
    format!("/proc/self/fd/{number}").into()
}

#[cfg(test)]
mod tests;
