// SPDX-License-Identifier: Apache-2.0
//! Cloud Hypervisor: needs KVM, and has only the devices that a virtual machine in a cloud needs.
//!
//! The whole machine is on its command line, so it boots at once. It serves the guest's vsock
//! itself, on a Unix socket. The guest's console is a serial port and goes to standard output. It
//! inherits a listening socket for its API (`api`) and a FIFO for its events (`events`).
//!
//! It cannot switch its user, so it is started as the pod's own. That user reaches what belongs to
//! root through inherited descriptors, and KVM in a /dev of its own.
//!
//! On a reboot it would run the guest once more, in place. Its events tell, and the machine is
//! ended (`MachineEvent::Restarted`).
//!
//! Written for Cloud Hypervisor 53, the only version that was tried. [`LEAST_CLOUD_HYPERVISOR`] is
//! the oldest whose source has all of the options.

mod api;
mod carrier;
mod disks;
mod events;
mod size;
mod snapshots;

use super::snapshots::{Save, Saved, Snapshots};
use super::{Control, Disk, DiskId, EventWatch, HotPlug, Hypervisor, MachineState, Promise, Resize, Sharing, Traits, Verdict};
use crate::host::vsock::{VsockAttachment, VsockSupport};
use crate::hypervisor::disk_nodes::{self, DISKS_DIR};
use crate::machine::size::Size;
use crate::machine::spec::{Acceleration, VmSpec};
use api::{Api, Version};
use disks::Disks;
use magnetar_core::config::LEAST_CLOUD_HYPERVISOR;
use magnetar_core::confined::confinement::{Calls, Confinement, Files, Pids, has_landlock};
use magnetar_core::confined::own_devices::Contents;
use magnetar_core::confined::program::Invocation;
use magnetar_core::error::{Error, Result};
use magnetar_core::program::Program;
use magnetar_core::reaper::Exit;
use magnetar_sys::bound::CapabilitySet;
use magnetar_vm_agent_api::SHARE_TAG;
use magnetar_vm_agent_api::network::Mac;
use serde::Deserialize;
use size::Growth;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// The program.
const PROGRAM: Program = Program {
    name: "cloud-hypervisor",
    places: &["/usr/libexec", "/opt/kata/bin"],
    remedy: "install version 50 or newer of Cloud Hypervisor, of which Debian has no package",
};

/// The socket of its API, in [`VmSpec::dir`].
const CONTROL: &str = "api.sock";

/// The FIFO of its events, in [`VmSpec::dir`].
const EVENTS: &str = "events";

/// The guest's vsock address. Each guest has its own device, so all guests can have the same one.
const GUEST_CID: u32 = 3;

/// The devices that it opens, KVM first. The random numbers are for the guest.
const DEVICES: &[&str] = &["kvm", "null", "urandom"];

/// The handler's table `vm.cloud-hypervisor`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CloudHypervisorConfig {
    /// The program: a name to find in `PATH`, or an absolute path. The default is
    /// `cloud-hypervisor`.
    pub program: Option<String>,
    /// Whether the program emulates the processor where there is no KVM. Cloud Hypervisor does not;
    /// the program that stands in for it in this project's tests does.
    pub emulates: bool,
}

/// Cloud Hypervisor, as installed on this node.
#[derive(Debug, Clone)]
pub struct CloudHypervisor {
    program: PathBuf,
    emulates: bool,
    /// Whether this node has Landlock. Without it, Cloud Hypervisor's own use of it fails.
    landlock: bool,
}

impl CloudHypervisor {
    /// Cloud Hypervisor with a handler's configuration.
    ///
    /// # Errors
    /// `NotFound` if the program is not installed.
    pub fn configured(config: &CloudHypervisorConfig) -> Result<Self> {
        let program = PROGRAM.find(config.program.as_deref().unwrap_or_default())?;
        Ok(Self { program, emulates: config.emulates, landlock: has_landlock() })
    }
}

impl Hypervisor for CloudHypervisor {
    fn name(&self) -> &'static str {
        "Cloud Hypervisor"
    }

    fn traits(&self) -> Traits {
        Traits {
            emulates: self.emulates,
            sharing: Sharing::Virtiofs,
            vsocks: VsockSupport { kernel: false, user: false, own: true },
            guests: &["guest"],
        }
    }

    fn plan<'a>(&self, spec: &'a VmSpec, vsock: VsockAttachment<'a>) -> Invocation<'a> {
        let (mut invocation, reached) = self.begun(spec);
        if self.uses_landlock(spec) {
            invocation.arguments(["--landlock".into(), format!("--landlock-rules=path={DISKS_DIR},access=rw")]);
        }
        devices(&mut invocation, spec, &reached, &[]);
        match vsock {
            VsockAttachment::Own(host) => {
                let socket = reached.directory.join(host.file_name().unwrap_or_default());
                invocation.arguments([format!("--vsock=cid={GUEST_CID},socket={}", socket.display())]);
            }
            // Its traits rule these out.
            VsockAttachment::Kernel(_) | VsockAttachment::User(_) => {}
        }
        network(&mut invocation, spec.nics.iter().map(|nic| (&nic.tap, nic.mac)));
        invocation
    }

    fn begin<'a>(&'a self, spec: &'a VmSpec) -> Promise<'a, Box<dyn Control>> {
        Box::pin(async { Ok(Box::new(self.connect(spec).await?) as Box<dyn Control>) })
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        // What emulates in its place saves no machines.
        (!self.emulates).then_some(self)
    }

    /// It exits with 0 when its guest has switched itself off.
    fn verdict(&self, exit: Exit) -> Verdict {
        if exit.code == 0 { Verdict::Guest } else { Verdict::Hypervisor }
    }

    /// It exits with 0 as well when it cannot go on with a processor (its cpu.rs), and logs why:
    /// `cloud-hypervisor:  53.1s: <vcpu1> ERROR:vmm/src/cpu.rs:1460 -- VCPU generated error: …`.
    fn is_failure(&self, line: &str) -> bool {
        line.starts_with("cloud-hypervisor: ") && line.contains(" ERROR:vmm/src/cpu.rs")
    }
}

/// Files that only root can reach by their paths, as the process reaches them.
struct Reached {
    /// The directory of its own: for the vsock, and for what it saves.
    directory: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    /// The socket of virtiofsd.
    share: PathBuf,
}

impl CloudHypervisor {
    /// The process without a machine. It inherits the same files in the same order whatever the
    /// machine begins with, because a saved machine knows them by their numbers.
    fn begun<'a>(&self, spec: &VmSpec) -> (Invocation<'a>, Reached) {
        let mut invocation = Invocation::new(&self.program);
        confine(&mut invocation, spec);
        let api = invocation.listen(spec.dir.join(CONTROL));
        let events = invocation.fifo(spec.dir.join(EVENTS));
        let reached = Reached {
            directory: invocation.reach(own_directory(spec)),
            kernel: invocation.reach(spec.kernel.clone()),
            initramfs: invocation.reach(spec.initramfs.clone()),
            share: spec.share.as_ref().map(|share| invocation.reach(share.socket.clone())).unwrap_or_default(),
        };
        invocation.arguments([format!("--api-socket=fd={api}"), format!("--event-monitor=fd={events}"), "--seccomp=true".into()]);
        (invocation, reached)
    }

    /// Whether it confines itself by Landlock.
    fn uses_landlock(&self, spec: &VmSpec) -> bool {
        self.landlock && spec.acceleration == Acceleration::Kvm
    }

    async fn connect(&self, spec: &VmSpec) -> Result<CloudHypervisorControl> {
        let (events, api) = (events::watch(&spec.dir.join(EVENTS))?, Api::new(spec.dir.join(CONTROL)));
        let version = api.version().await?;
        if version.major < LEAST_CLOUD_HYPERVISOR {
            return Err(Error::precondition(format!(
                "{} is version {} of Cloud Hypervisor: install {LEAST_CLOUD_HYPERVISOR} or a newer one",
                self.program.display(),
                version.major
            )));
        }
        let (growth, disks) = (Growth::of(spec), (version.major >= disks::LEAST_CLOUD_HYPERVISOR).then(Disks::default));
        let directory = Directory { path: own_directory(spec), reached: self.begun(spec).1.directory };
        Ok(CloudHypervisorControl { api, version, events: Some(events), growth, disks, directory })
    }
}

/// The directory that belongs to the process's user.
fn own_directory(spec: &VmSpec) -> PathBuf {
    spec.vsock_directory().map_or_else(|| spec.dir.clone(), |directory| directory.path().to_owned())
}

/// Confines it to what it needs, in case its guest takes it over. Its own filter and its own
/// Landlock rules come on top.
fn confine(invocation: &mut Invocation, spec: &VmSpec) {
    let is_itself = spec.acceleration == Acceleration::Kvm;
    let read = vec![spec.kernel.clone(), spec.initramfs.clone(), "/sys/devices/system/cpu".into()];
    invocation.confinement = Confinement {
        user: Some(spec.users.hypervisor),
        capabilities: CapabilitySet::NONE,
        pids: Pids::Itself,
        // What emulates in its place runs other programs.
        files: is_itself.then(|| Files { read, own: vec![own_directory(spec)] }),
        calls: Calls::DenyList,
    };
    let devices = if is_itself { DEVICES } else { &DEVICES[1..] };
    invocation.devices = Some(Contents { devices, folders: &[disk_nodes::FOLDER], nodes: Vec::new() });
}

/// All of a machine but its vsock and network, with these words for its kernel.
fn devices(invocation: &mut Invocation<'_>, spec: &VmSpec, reached: &Reached, words: &[&str]) {
    let mut memory = format!("size={}M,shared=on", spec.memory_mib);
    let reserve = size::reserve(spec);
    if reserve > 0 {
        memory.push_str(&format!(",hotplug_method=virtio-mem,hotplug_size={reserve}M"));
    }
    if spec.huge_pages {
        memory.push_str(",hugepages=on,hugepage_size=2M");
    }
    let own = [
        "console=ttyS0",
        // Each character costs an exit from the guest, so print only warnings and worse, and panics
        // in full.
        "quiet",
        // Reboot at once after a panic, by a triple fault, which is the fastest way.
        "panic=-1",
        "reboot=t",
    ];
    // Memory that may come later lies above 4 GiB. For devices that reach only below, the kernel
    // would set 64 MiB aside. There are none: virtio devices reach all memory.
    let growth = (reserve > 0).then_some("swiotlb=noforce");
    let parameters = own.into_iter().chain(growth).chain(spec.parameters.iter().map(String::as_str)).chain(words.iter().copied());
    let parameters: Vec<&str> = parameters.collect();
    // Pods have no nested virtualisation.
    invocation.arguments([format!("--cpus=boot={},max={},nested=off", spec.vcpus, size::processors(spec)), format!("--memory={memory}")]);
    invocation.arguments([
        "--kernel".into(),
        reached.kernel.as_os_str().to_owned(),
        "--initramfs".into(),
        reached.initramfs.as_os_str().to_owned(),
        "--cmdline".into(),
        parameters.join(" ").into(),
    ]);
    invocation.arguments(["--serial=tty", "--console=off", "--rng=src=/dev/urandom"]);
    // Memory from the host's huge pages is the pod's until its end.
    if !spec.huge_pages {
        invocation.arguments(["--balloon=size=0,free_page_reporting=on"]);
    }
    if spec.share.is_some() {
        invocation.arguments([format!("--fs=tag={SHARE_TAG},socket={},num_queues=1,queue_size=1024", reached.share.display())]);
    }
}

/// The network interfaces. A tap has its MTU already, and Cloud Hypervisor tells the guest.
fn network<'a>(invocation: &mut Invocation<'a>, nics: impl ExactSizeIterator<Item = (&'a OwnedFd, Mac)>) {
    if nics.len() > 0 {
        // One option with a value for each of them.
        invocation.arguments(["--net"]);
    }
    for (number, (tap, mac)) in nics.enumerate() {
        let tap = invocation.open(tap.as_fd());
        invocation.arguments([format!("fd=[{tap}],mac={mac},num_queues=2,id={}", nic_id(number))]);
    }
}

/// The name of a network interface.
fn nic_id(number: usize) -> String {
    format!("nic-{number}")
}

/// The control connection to a running Cloud Hypervisor.
struct CloudHypervisorControl {
    api: Api,
    version: Version,
    events: Option<EventWatch>,
    growth: Option<Growth>,
    disks: Option<Disks>,
    directory: Directory,
}

/// The process's own directory.
struct Directory {
    path: PathBuf,
    /// As the process reaches it.
    reached: PathBuf,
}

impl Control for CloudHypervisorControl {
    fn state(&mut self) -> Promise<'_, MachineState> {
        Box::pin(async {
            Ok(match self.api.state().await?.as_str() {
                "Running" => MachineState::Running,
                "Paused" | "BreakPoint" => MachineState::Paused,
                _ => MachineState::Other,
            })
        })
    }

    fn events(&mut self) -> Option<EventWatch> {
        self.events.take()
    }

    fn disks(&mut self) -> Option<&mut dyn HotPlug> {
        if self.disks.is_some() { Some(self) } else { None }
    }

    fn save(&mut self) -> Option<&mut dyn Save> {
        if snapshots::are_supported(&self.version) { Some(self) } else { None }
    }

    fn size(&mut self) -> Option<&mut dyn Resize> {
        if self.growth.is_some() { Some(self) } else { None }
    }
}

impl HotPlug for CloudHypervisorControl {
    fn attach<'a>(&'a mut self, disk: &'a Disk) -> Promise<'a, ()> {
        Box::pin(disks::attach(&self.api, disk))
    }

    fn detach(&mut self, disk: DiskId) -> Promise<'_, ()> {
        Box::pin(async move {
            let disks = self.disks.as_mut().ok_or_else(|| Error::internal("this machine has no disks"))?;
            disks.detach(&self.api, disk).await
        })
    }
}

impl Resize for CloudHypervisorControl {
    fn resize(&mut self, wanted: Size) -> Promise<'_, Size> {
        Box::pin(async move {
            let growth = self.growth.as_mut().ok_or_else(|| Error::internal("this machine's size cannot change"))?;
            growth.resize(&self.api, wanted).await
        })
    }
}

impl Save for CloudHypervisorControl {
    fn save<'a>(&'a mut self, state: BorrowedFd<'a>) -> Promise<'a, Saved> {
        Box::pin(async move {
            let memory = snapshots::save(&self.api, &self.directory, state).await?;
            Ok(Saved { version: self.version.text.clone(), memory: Some(memory) })
        })
    }
}

#[cfg(test)]
mod tests;
