// SPDX-License-Identifier: Apache-2.0
//! QEMU: runs on every node, with or without KVM, and has every device.
//!
//! The machine is a q35 or a microvm with only the devices that a pod needs (`machine`). The kernel
//! is entered directly (PVH). The guest's console is a serial port, which works from the first
//! message to a panic. It is QEMU's standard output. QEMU inherits two listening sockets for its
//! own protocol: `qmp.sock` for this program, and `debug.sock` for people who debug a machine.
//!
//! After a panic the guest reboots at once. QEMU ends on a reboot and on a power-off, so it never
//! runs without its guest.

mod clock;
mod disks;
#[cfg(test)]
mod double;
mod machine;
pub mod qmp;
mod size;
mod snapshots;

pub use machine::{MachineKind, QemuConfig};

use super::snapshots::{Save, Snapshots};
use super::{Control, Disk, DiskId, HotPlug, Hypervisor, MachineState, Promise, Resize, Sharing, Traits, Verdict};
use crate::host::vsock::{VsockAttachment, VsockSupport};
use crate::machine::size::Size;
use crate::machine::spec::{Acceleration, VmSpec};
use clock::Clock;
use magnetar_core::confined::confinement::{Calls, Confinement, Files, Pids};
use magnetar_core::confined::program::Invocation;
use magnetar_core::error::{Context, Error, Result};
use magnetar_core::program::Program;
use magnetar_core::reaper::Exit;
use magnetar_sys::bound::CapabilitySet;
use magnetar_vm_agent_api::SHARE_TAG;
use magnetar_vm_agent_api::network::Mac;
use qmp::Qmp;
use serde::Deserialize;
use size::Growth;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// The program.
const PROGRAM: Program =
    Program { name: "qemu-system-x86_64", places: &["/usr/libexec", "/usr/lib/qemu"], remedy: "install Debian's package qemu-system-x86" };

/// The socket for this program's commands, in [`VmSpec::dir`].
const CONTROL: &str = "qmp.sock";

/// The socket for people who debug.
const DEBUG: &str = "debug.sock";

/// QEMU, as installed on this node.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    machine: MachineKind,
    /// The measurement of the clock rate, which emulated guests get as a kernel parameter.
    clock: Option<Clock>,
}

impl Qemu {
    /// QEMU with a handler's configuration. Starts to measure the clock rate for emulated guests.
    ///
    /// # Errors
    /// `NotFound` if the program is not installed.
    pub fn configured(config: &QemuConfig) -> Result<Self> {
        let program = PROGRAM.find(config.program.as_deref().unwrap_or_default())?;
        Ok(Self { program, machine: config.machine, clock: Clock::begin() })
    }
}

#[cfg(test)]
impl Qemu {
    /// QEMU at this path, for this kind of machine, without measuring the clock.
    fn new(program: PathBuf, machine: MachineKind) -> Self {
        Self { program, machine, clock: None }
    }

    fn measuring(self) -> Self {
        Self { clock: Clock::begin(), ..self }
    }
}

impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "QEMU"
    }

    fn traits(&self) -> Traits {
        Traits {
            emulates: true,
            sharing: Sharing::Virtiofs,
            vsocks: VsockSupport { kernel: true, user: true, own: false },
            guests: self.machine.guests(),
        }
    }

    fn plan<'a>(&self, spec: &'a VmSpec, vsock: VsockAttachment<'a>) -> Invocation<'a> {
        let mut invocation = self.confined(spec);
        let pages = if spec.huge_pages { ",hugetlb=on,hugetlbsize=2M" } else { "" };
        board(&mut invocation, spec, self.machine, ("memory-backend-memfd", pages));
        size::devices(&mut invocation, spec, self.machine);
        kernel(&mut invocation, spec, self, &[]);
        monitors(&mut invocation, spec);
        shared_files(&mut invocation, spec, self.machine);
        carry(&mut invocation, vsock, self.machine);
        invocation.arguments(["-device", &disks::controller(self.machine)]);
        for (number, nic) in spec.nics.iter().enumerate() {
            network(&mut invocation, number, (&nic.tap, nic.mac, nic.mtu), self.machine);
        }
        invocation
    }

    fn begin<'a>(&'a self, spec: &'a VmSpec) -> Promise<'a, Box<dyn Control>> {
        Box::pin(async {
            let (qmp, growth) = (connect(spec).await?, Growth::of(spec, self.machine));
            Ok(Box::new(QemuControl { qmp, growth }) as Box<dyn Control>)
        })
    }

    /// A microvm has no hot-plug, and so no vsock after a restore.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        (self.machine == MachineKind::Q35).then_some(self)
    }

    /// QEMU exits with 0 when its guest ended or panicked (`-no-reboot`).
    fn verdict(&self, exit: Exit) -> Verdict {
        if exit.code == 0 { Verdict::Guest } else { Verdict::Hypervisor }
    }
}

impl Qemu {
    /// The start of every command line.
    fn confined<'a>(&self, spec: &VmSpec) -> Invocation<'a> {
        let mut invocation = Invocation::new(&self.program);
        let own = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name"];
        invocation.arguments(own);
        invocation.arguments([spec.sandbox.as_str()]);
        confine(&mut invocation, spec);
        invocation
    }
}

async fn connect(spec: &VmSpec) -> Result<Qmp> {
    let socket = spec.dir.join(CONTROL);
    let stream = UnixStream::connect(&socket).await.context(|| format!("cannot connect to QEMU at {}", socket.display()))?;
    Qmp::begin(stream).await
}

/// The capabilities that QEMU needs until it has switched its user: CAP_SETGID, CAP_SETUID,
/// CAP_SYS_CHROOT (linux/capability.h).
const UNTIL_CONFINED: CapabilitySet = CapabilitySet::of(&[6, 7, 18]);

/// Confines QEMU to what it needs, in case its guest takes it over.
fn confine(invocation: &mut Invocation, spec: &VmSpec) {
    let mut own = vec![PathBuf::from("/dev/null"), spec.dir.clone()];
    if spec.acceleration == Acceleration::Kvm {
        own.push("/dev/kvm".into());
    }
    let read = vec![spec.kernel.clone(), spec.initramfs.clone(), "/dev/urandom".into(), "/sys/devices/system/cpu".into()];
    invocation.confinement = Confinement {
        // QEMU switches the user itself; see `-run-with` below.
        user: None,
        capabilities: UNTIL_CONFINED,
        pids: Pids::ItselfAndHolder,
        files: Some(Files { read, own }),
        calls: Calls::DenyList,
    };
    invocation.arguments([
        "-sandbox".into(),
        // Denies running programs, scheduling calls and obsolete system calls. set*uid cannot be
        // denied, because QEMU drops its privileges after this filter is in place. Without
        // privileges, and with the no_new_privs that comes with the filter, these calls gain
        // nothing.
        "on,obsolete=deny,elevateprivileges=allow,spawn=deny,resourcecontrol=deny".into(),
        "-run-with".into(),
        // After QEMU has opened what only root can open, it switches to a user who owns nothing, in
        // a directory that only root can enter.
        joined(&[&format!("user={0}:{0},chroot=", spec.users.hypervisor), &escaped(&spec.dir)]),
    ]);
}

/// The accelerator and the processor, by QEMU's names.
fn processor(spec: &VmSpec) -> (&'static str, &'static str) {
    match spec.acceleration {
        // Pods have no nested virtualisation.
        Acceleration::Kvm => ("kvm", "host,-vmx,-svm"),
        // All of QEMU's features, except those that recommend string instructions for copying:
        // emulation handles each byte as a step, and the kernel would boot a seventh slower. The
        // translation cache must not grow to QEMU's default limit of a gigabyte.
        Acceleration::Tcg => ("tcg,thread=multi,tb-size=128", "max,-svm,-erms,-fsrm,-fzrm,-fsrs,-fsrc"),
    }
}

/// Processor, memory, and devices of every machine. `backend` has the memory, with more options.
fn board(invocation: &mut Invocation, spec: &VmSpec, machine: MachineKind, (backend, more): (&str, &str)) {
    let (accelerator, processor) = processor(spec);
    let memory = spec.memory_mib;
    invocation.arguments(machine.options());
    invocation.arguments([
        "-accel",
        accelerator,
        "-cpu",
        processor,
        "-smp",
        &size::processors(spec, machine),
        "-m",
        &size::memory(spec, machine),
        // The vhost-user devices map the guest's memory too.
        "-object",
        &format!("{backend},id=ram,size={memory}M,share=on{more}"),
        "-device",
        &machine.device("virtio-rng"),
    ]);
}

/// The parameters that every guest's kernel gets. Its clock's rate is another one, which differs
/// between measurements.
fn fixed_parameters(spec: &VmSpec, machine: MachineKind) -> Vec<&'static str> {
    let own = [
        "console=ttyS0",
        // Each character costs an exit from the guest, so print only warnings and worse, and panics
        // in full.
        "quiet",
        // Reboot at once after a panic, by a triple fault, which is the fastest way. QEMU ends on
        // it.
        "panic=-1",
        "reboot=t",
    ];
    // Under KVM, Linux sets the first two by itself.
    let emulated: &[&str] = &[
        // The kernel counts the timer's interrupts for 40 ms and panics if there are too few, as on
        // a busy host.
        "no_timer_check",
        // For the same reason it would distrust the time stamp counter, which is the host's, and
        // read a slow device instead.
        "tsc=reliable",
        // Unpacking the keys for module signatures takes 0.15 s. Our modules come from the same
        // package as the kernel, which does not require signatures.
        "initcall_blacklist=load_system_certificate_list",
        // With one processor the kernel patches out ten thousand lock prefixes, one by one, in code
        // that is already translated. That takes a tenth of the boot, and the emulator ignores
        // these prefixes with one processor anyway.
        "noreplace-smp",
        // virtiofsd writes to the guest's memory directly. The emulator does not notice that it
        // overwrites translated code, and programs would run the page's old contents, such as the
        // kernel's init code. If the kernel clears a page on allocation, the emulator drops its
        // translations. (Distributions' kernels clear by default.)
        "init_on_alloc=1",
    ];
    let emulated = if spec.acceleration == Acceleration::Tcg { emulated } else { &[] };
    [&own, emulated, machine.parameters()].concat()
}

/// The kernel, the initramfs and the kernel's command line, which ends with `last`.
fn kernel(invocation: &mut Invocation, spec: &VmSpec, qemu: &Qemu, last: &[&str]) {
    let is_emulated = spec.acceleration == Acceleration::Tcg;
    let rate = qemu.clock.filter(|_| is_emulated).and_then(Clock::khz).map(|khz| format!("tsc_early_khz={khz}"));
    let growth = size::parameters(spec, qemu.machine);
    let fixed = fixed_parameters(spec, qemu.machine).into_iter().chain(rate.as_deref()).chain(growth.iter().map(String::as_str));
    let parameters: Vec<&str> = fixed.chain(spec.parameters.iter().map(String::as_str)).chain(last.iter().copied()).collect();
    invocation.arguments::<OsString>([
        "-kernel".into(),
        spec.kernel.clone().into(),
        "-initrd".into(),
        spec.initramfs.clone().into(),
        "-append".into(),
        parameters.join(" ").into(),
    ]);
}

/// The guest's console on standard output, and the sockets of QEMU's own protocol.
fn monitors(invocation: &mut Invocation, spec: &VmSpec) {
    invocation.arguments(["-chardev", "stdio,id=console,signal=off", "-device", "isa-serial,chardev=console"]);
    for name in [CONTROL, DEBUG] {
        let socket = invocation.listen(spec.dir.join(name));
        let id = name.trim_end_matches(".sock");
        invocation.arguments([
            "-chardev",
            &format!("socket,id={id},fd={socket},server=on,wait=off"),
            // Not -mon, which is deprecated, nor its successor, which exists only since QEMU 11.1.
            "-qmp",
            &format!("chardev:{id}"),
        ]);
    }
}

/// The length of the queue of requests for files. Each page that a request reads or writes takes
/// one entry. With QEMU's default of 128 a request has half a MiB at most, and with this 1 MiB,
/// which is FUSE's own limit (`fs.fuse.max_pages_limit`).
const SHARE_QUEUE: u32 = 1024;

/// The device for shared files.
fn shared_files(invocation: &mut Invocation, spec: &VmSpec, machine: MachineKind) {
    if let Some(share) = &spec.share {
        invocation.arguments([
            "-chardev".into(),
            joined(&[&"socket,id=share,path=", &escaped(&share.socket)]),
            "-device".into(),
            format!("{},tag={SHARE_TAG},chardev=share,queue-size={SHARE_QUEUE}", machine.device("vhost-user-fs")).into(),
        ]);
    }
}

/// The vsock of a machine that boots.
fn carry<'a>(invocation: &mut Invocation<'a>, vsock: VsockAttachment<'a>, machine: MachineKind) {
    match vsock {
        VsockAttachment::User(connection) => {
            let connection = invocation.open(connection);
            invocation.arguments([
                "-chardev",
                &format!("socket,id=vsock,fd={connection}"),
                "-device",
                &format!("{},chardev=vsock", machine.device("vhost-user-vsock")),
            ]);
        }
        // QEMU's traits rule this out.
        VsockAttachment::Own(_) => {}
        VsockAttachment::Kernel(cid) => {
            // QEMU sets the address once more. The kernel accepts that on the descriptor that has
            // the address.
            let device = invocation.open(cid.device.as_fd());
            invocation.arguments(["-device", &format!("{},vhostfd={device},guest-cid={}", machine.device("vhost-vsock"), cid.number)]);
        }
    }
}

fn network<'a>(invocation: &mut Invocation<'a>, number: usize, (tap, mac, mtu): (&'a OwnedFd, Mac, u32), machine: MachineKind) {
    let tap = invocation.open(tap.as_fd());
    invocation.arguments([
        "-netdev",
        &format!("tap,id=net{number},fd={tap}"),
        "-device",
        &format!("{},netdev=net{number},mac={mac},host_mtu={mtu}", machine.device("virtio-net")),
    ]);
}

/// A path inside a list of options. QEMU separates options with commas, and reads two commas as one
/// in a value.
fn escaped(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes().iter();
    OsString::from_vec(bytes.flat_map(|&byte| std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 })).collect())
}

fn joined(parts: &[&dyn AsRef<OsStr>]) -> OsString {
    parts.iter().map(|part| part.as_ref()).collect()
}

/// The control connection to a running QEMU.
#[derive(Debug)]
struct QemuControl {
    qmp: Qmp,
    /// How its size can change; `None` if it cannot.
    growth: Option<Growth>,
}

impl Control for QemuControl {
    fn state(&mut self) -> Promise<'_, MachineState> {
        #[derive(Deserialize)]
        struct Status {
            status: String,
        }
        Box::pin(async {
            let Status { status } = self.qmp.execute("query-status").await?;
            Ok(match status.as_str() {
                "running" => MachineState::Running,
                "paused" => MachineState::Paused,
                "guest-panicked" => MachineState::Panicked,
                _ => MachineState::Other,
            })
        })
    }

    fn disks(&mut self) -> Option<&mut dyn HotPlug> {
        Some(self)
    }

    fn size(&mut self) -> Option<&mut dyn Resize> {
        if self.growth.is_some() { Some(self) } else { None }
    }

    fn save(&mut self) -> Option<&mut dyn Save> {
        Some(self)
    }
}

impl Resize for QemuControl {
    fn resize(&mut self, wanted: Size) -> Promise<'_, Size> {
        Box::pin(async move {
            let Self { qmp, growth } = self;
            let growth = growth.as_mut().ok_or_else(|| Error::internal("this machine's size cannot change"))?;
            growth.resize(qmp, wanted).await
        })
    }
}

impl HotPlug for QemuControl {
    fn attach<'a>(&'a mut self, disk: &'a Disk) -> Promise<'a, ()> {
        Box::pin(disks::attach(&mut self.qmp, disk))
    }

    fn detach(&mut self, disk: DiskId) -> Promise<'_, ()> {
        Box::pin(disks::detach(&mut self.qmp, disk))
    }
}

#[cfg(test)]
mod tests;
