// SPDX-License-Identifier: Apache-2.0
//! A virtual machine from its first process to its last.
//!
//! ```text
//! boot:  virtiofsd, vsock device ─> hypervisor ─> guest says hello, or answers ─> connections to its agent
//! watch: one task has all of it; it ends with the first of these
//!            a process that ends · an agent that does not answer · a connection that breaks · an order
//!        then every process is killed and reaped, and why is told
//! ```

use crate::devices::{self, VSOCK_HOST};
use crate::disks::Disks;
use crate::guest::{self, Connection, Dialer, Guest};
use crate::hypervisor::{Hypervisor, MachineState};
use crate::processes::{Common, Process, listens};
use crate::program::Invocation;
use crate::socket::NamedSocket;
use crate::spec::VmSpec;
use crate::vsock::{Carried, Cid, Vsock};
use crate::words::{Words, end_in, panic_in};
use magnetar_core::cgroup::Cgroup;
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::reaper::Exit;
use magnetar_core::server::Parts;
use magnetar_vm_agent_api::secret::Secret;
use magnetar_vm_agent_api::{Event, GIVES_UP, Purpose, READY_PORT, Request, frame};
use rustix::fs::{Mode, OFlags, Uid};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tracing::{Instrument, debug, info};

/// How long a guest may take to say hello, in software emulation on a busy host. One that works says it within seconds.
const HELLO: Duration = Duration::from_secs(120);

/// Between two questions whether the agent lives.
const PULSE: Duration = Duration::from_secs(1);

/// How long it may take to answer: with the time between and what is asked of the hypervisor then, less than five seconds.
const ANSWER: Duration = Duration::from_millis(3400);

/// Between two tries to ask.
const AGAIN: Duration = Duration::from_millis(100);

/// How long the hypervisor may take to say whether the machine runs.
const STATE: Duration = Duration::from_millis(500);

/// How long a guest may take to switch itself off.
const OFF: Duration = Duration::from_secs(5);

/// How long it may take where it has disks, to which it writes first what its containers have written.
const OFF_WITH_DISKS: Duration = Duration::from_secs(30);

/// How many events of a guest are heard at once. Further ones wait for the rest of [`EVENTS_WITHIN`].
const EVENTS: usize = 256;

/// As long as that takes at least.
const EVENTS_WITHIN: Duration = Duration::from_millis(250);

/// How long the reason for a broken connection, a process that ends, may be in coming.
const CAUSE: Duration = Duration::from_secs(2);

/// The files of a machine, in [`VmSpec::dir`]. Short: a socket's path has its limits.
pub mod files {
    /// virtiofsd's vhost-user socket.
    pub const SHARE: &str = "fs.sock";
    /// The vsock device's directory.
    pub const VSOCK: &str = "v";
    /// What the guest's console says.
    pub const CONSOLE: &str = "console.log";
}

/// A machine that runs. Cheap to clone.
#[derive(Clone)]
pub struct Machine {
    /// Its agent.
    pub guest: Guest,
    /// Its disks.
    pub disks: Disks,
    /// The hypervisor's process.
    pub pid: u32,
    /// Why it has ended, once it has.
    pub death: watch::Receiver<Option<Arc<str>>>,
    /// Whoever finds out that it is good for nothing ends it here, and says why.
    pub condemn: mpsc::Sender<String>,
    off: Arc<watch::Sender<bool>>,
}

/// What a machine is made with, beside its [`VmSpec`].
#[derive(Debug)]
pub struct Making<'a> {
    /// virtiofsd.
    pub virtiofsd: PathBuf,
    /// What the guest may see.
    pub share: &'a Path,
    /// What its agent knows us by, which it finds there.
    pub secret: Secret,
    /// The cgroup that its processes are in.
    pub cgroup: &'a Cgroup,
}

/// All processes of a machine.
struct Processes {
    hypervisor: Process,
    virtiofsd: Process,
    vsock: Carrier,
    console: Words,
}

/// What carries the guest's vsock, for as long as it has to.
enum Carrier {
    /// The kernel. The address is the guest's until this is dropped; then the kernel breaks the connections to it.
    Kernel(Option<Cid>),
    /// A process.
    User(Process),
}

impl Machine {
    /// Starts a machine, and returns when its agent can be talked to. `told` is called with whatever the guest tells, and
    /// `ended` once, when it has ended.
    ///
    /// # Errors
    /// Where a process cannot be run, or ends; `DeadlineExceeded` for a guest that says nothing. Then none of it is left.
    pub async fn boot<H: Hypervisor>(
        hypervisor: &H,
        spec: VmSpec,
        making: &Making<'_>,
        parts: &Parts,
        told: impl Fn(Event) + Send + Sync + 'static,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let (dialer, hello) = match &spec.vsock {
            Vsock::Kernel(cid) => (Dialer::kernel(cid, making.secret), None),
            Vsock::User { .. } => {
                (Dialer::hybrid(spec.dir.join(files::VSOCK).join(VSOCK_HOST), spec.users.vsock, making.secret), Some(door(&spec)?))
            }
        };
        let mut processes = Processes::run(hypervisor, &spec, making, parts).await?;
        let connected = async {
            let control = hypervisor.connect(&spec.dir).await?;
            if let Some(hello) = hello {
                let (_hello, _from) = hello.accept().await.context(|| "cannot hear the guest".into())?;
                debug!("the guest says hello");
            }
            let (guest, carry) = Guest::connect(dialer.clone()).await?;
            let events = dialer.dial(Purpose::Events).await?;
            let pulse = dialer.dial(Purpose::Control).await?;
            Ok((control, guest, carry, events, pulse))
        };
        let connected = tokio::select! {
            connected = tokio::time::timeout(HELLO, connected) => connected.unwrap_or_else(|_| {
                let said = processes.console.last_line().map(|line| format!("; the last line on its console: {line}"));
                let what = format!("the guest has not started within {HELLO:?}{}", said.unwrap_or_default());
                Err(Error::new(Code::DeadlineExceeded, what))
            }),
            reason = processes.one_ended() => Err(Error::internal(format!("the virtual machine did not start: {reason}"))),
        };
        let (control, guest, carry, mut events, asked) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                processes.kill().await;
                return Err(error);
            }
        };
        let (death_sender, death) = watch::channel(None);
        let off = Arc::new(watch::Sender::new(false));
        let (disks, serve_disks) = Disks::new(control);
        let (condemn, mut condemned) = mpsc::channel(1);
        let machine = Self { guest, disks: disks.clone(), pid: processes.hypervisor.pid, death, condemn, off: off.clone() };
        let watch = async move {
            let patience = disks.clone();
            let listen = async {
                // What a guest has to tell comes in small numbers. One that tells without end must not cost the host a processor.
                let mut pace = tokio::time::interval(EVENTS_WITHIN);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    pace.tick().await;
                    for _ in 0..EVENTS {
                        let Ok(event) = frame::read::<Event>(&mut events, frame::FROM_GUEST).await else { return };
                        told(event);
                    }
                }
            };
            let broken = async {
                tokio::select! {
                    () = listen => {}
                    () = carry => {}
                }
            };
            let mut off = off.subscribe();
            let ordered = async { drop(off.wait_for(|off| *off).await) };
            let reason = tokio::select! {
                reason = processes.one_ended() => reason,
                reason = pulse(asked, disks) => reason,
                // It serves as long as the pulse, at least, may ask.
                () = serve_disks => "nobody talks to the hypervisor any more".into(),
                () = broken => match tokio::time::timeout(CAUSE, processes.one_ended()).await {
                    Ok(reason) => reason,
                    Err(_) => "the agent in the guest has closed its connections".into(),
                },
                Some(reason) = condemned.recv() => reason,
                () = ordered => {
                    let _too_long = tokio::time::timeout(off_within(&patience), processes.hypervisor.ended()).await;
                    "it was stopped".into()
                }
            };
            processes.kill().await;
            info!(reason, "the virtual machine has ended");
            // Whoever sees the death sees the end of all that ran in it, too.
            ended();
            death_sender.send_replace(Some(reason.into()));
        };
        parts.tasks.spawn(watch.in_current_span());
        Ok(machine)
    }

    /// Switches it off, and returns when it has ended. Idempotent, and cancel-safe.
    pub async fn switch_off(&self) {
        if self.death.borrow().is_none() {
            if let Err(error) = self.guest.ask(Request::SwitchOff, off_within(&self.disks)).await {
                debug!(%error, "the guest does not switch itself off");
            }
            self.off.send_replace(true);
        }
        let mut death = self.death.clone();
        // It fails where the task that had the machine is gone, and the machine with it.
        let _ended = death.wait_for(Option::is_some).await;
    }
}

fn off_within(disks: &Disks) -> Duration {
    if disks.any() { OFF_WITH_DISKS } else { OFF }
}

impl Processes {
    async fn run<H: Hypervisor>(hypervisor: &H, spec: &VmSpec, making: &Making<'_>, parts: &Parts) -> Result<Self> {
        let common = Common { reaper: &parts.reaper, tasks: &parts.tasks, cgroup: making.cgroup };
        let virtiofsd = devices::virtiofsd(&making.virtiofsd, spec.dir.join(files::SHARE), making.share);
        let virtiofsd = Process::run("virtiofsd", &virtiofsd, None, common)?;
        let connection;
        let (vsock, carried) = match &spec.vsock {
            Vsock::Kernel(cid) => (Carrier::Kernel(Some(cid.clone())), Carried::Kernel(cid)),
            Vsock::User { program, socket } => {
                let process = run_vsock(program, socket, spec, common).await?;
                connection = NamedSocket::of(socket, spec.users.vsock)?.connect()?;
                (Carrier::User(process), Carried::User(connection.as_fd()))
            }
        };
        let console = Words::default();
        let hypervisor = run_hypervisor(&hypervisor.invocation(spec, carried), &console, spec, common)?;
        Ok(Self { hypervisor, virtiofsd, vsock, console })
    }

    /// Waits until one of them has ended, and says why. Cancel-safe.
    async fn one_ended(&mut self) -> String {
        let Self { hypervisor, virtiofsd, vsock, console } = self;
        let (device, reason) = tokio::select! {
            // The others end with the hypervisor.
            biased;
            exit = hypervisor.ended() => return of_hypervisor(hypervisor, exit, console),
            exit = virtiofsd.ended() => (exit, virtiofsd.describe(exit)),
            ended = vsock.ended() => ended,
        };
        // Whichever of them was seen first, where the hypervisor has ended that is why. A device ends well only because the
        // hypervisor has hung up, which it does some time before its own end, whatever that one will be.
        let hung_up = device.code == 0;
        match tokio::time::timeout(if hung_up { CAUSE } else { CAUSE / 5 }, hypervisor.ended()).await {
            Ok(exit) if hung_up || exit.code <= 128 => of_hypervisor(hypervisor, exit, console),
            Ok(_) | Err(_) => reason,
        }
    }

    async fn kill(&mut self) {
        self.hypervisor.kill().await;
        self.vsock.kill().await;
        self.virtiofsd.kill().await;
    }
}

impl Carrier {
    /// Waits until it has ended, and says how. Cancel-safe. The kernel does not end.
    async fn ended(&mut self) -> (Exit, String) {
        match self {
            Self::Kernel(_) => std::future::pending().await,
            Self::User(process) => {
                let exit = process.ended().await;
                (exit, process.describe(exit))
            }
        }
    }

    async fn kill(&mut self) {
        match self {
            Self::Kernel(cid) => drop(cid.take()),
            Self::User(process) => process.kill().await,
        }
    }
}

/// Waits at the port on which a guest says hello through a device in user space, which has a directory of its own for that.
fn door(spec: &VmSpec) -> Result<UnixListener> {
    let directory = spec.dir.join(files::VSOCK);
    std::fs::DirBuilder::new().mode(0o700).create(&directory).context(|| format!("cannot make {}", directory.display()))?;
    let ready = directory.join(devices::vsock_door(READY_PORT));
    let hello = UnixListener::bind(&ready).context(|| format!("cannot listen at {}", ready.display()))?;
    for path in [&directory, &ready] {
        rustix::fs::chown(path, Some(Uid::from_raw(spec.users.vsock)), None).context(|| format!("cannot give {} away", path.display()))?;
    }
    Ok(hello)
}

async fn run_vsock(program: &Path, socket: &Path, spec: &VmSpec, common: Common<'_>) -> Result<Process> {
    let directory = spec.dir.join(files::VSOCK);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&directory, flags, Mode::empty()).context(|| format!("cannot open {}", directory.display()))?;
    let mut vsock =
        Process::run("vhost-device-vsock", &devices::vsock(program, (&directory, opened.as_fd()), spec.users.vsock), None, common)?;
    tokio::select! {
        listens = listens(socket) => listens?,
        exit = vsock.ended() => return Err(Error::internal(format!("the virtual machine did not start: {}", vsock.describe(exit)))),
    }
    Ok(vsock)
}

fn run_hypervisor(invocation: &Invocation<'_>, console: &Words, spec: &VmSpec, common: Common<'_>) -> Result<Process> {
    Process::run("the hypervisor", invocation, Some((console.clone(), spec.dir.join(files::CONSOLE))), common)
}

/// A hypervisor that ends well does so because its guest has ended.
fn of_hypervisor(hypervisor: &Process, exit: Exit, console: &Words) -> String {
    let said = console.last();
    match (panic_in(&said), end_in(&said), exit.code) {
        (Some(panic), _, _) => format!("the guest's kernel has panicked: {panic}"),
        (None, Some(reason), 0) => format!("{GIVES_UP}: {reason}"),
        (None, None, 0) => match console.last_line() {
            Some(line) => format!("the guest has switched itself off; the last line on its console: {line}"),
            // A processor that stops at a fault restarts, and that is the end, too.
            None => "the guest has restarted or switched itself off, and its console is empty".into(),
        },
        (None, _, _) => hypervisor.describe(exit),
    }
}

/// Asks the agent whether it lives, for as long as it does. Says why not. On a connection of its own: a question that waited
/// behind a request would take what is slow for what is dead.
async fn pulse(mut agent: Connection, hypervisor: Disks) -> String {
    let mut unreached = None;
    loop {
        tokio::time::sleep(PULSE).await;
        match tokio::time::timeout(ANSWER, answered(&mut agent, &mut unreached)).await {
            Ok(()) => unreached = None,
            Err(_) => break,
        }
    }
    let why = unreached.map_or_else(String::new, |error| format!(": {error}"));
    let silent = format!("the agent in the guest has not answered within {ANSWER:?}{why}");
    match tokio::time::timeout(STATE, hypervisor.state()).await {
        Ok(Ok(MachineState::Paused)) => "the virtual machine was paused from outside".into(),
        Ok(Ok(MachineState::Panicked)) => "the guest's kernel has panicked".into(),
        Ok(Ok(MachineState::Running | MachineState::Other)) => format!("it hangs: {silent}"),
        Ok(Err(_)) | Err(_) => format!("the hypervisor hangs: {silent}, and neither has the hypervisor"),
    }
}

/// Asks the agent until it answers. Remembers why it could not be asked: where a process has ended or all connections are broken,
/// somebody else finds that out meanwhile; but Linux carries nothing to a machine that is paused, since 2026, and carries on when that
/// goes on.
async fn answered(agent: &mut Connection, unreached: &mut Option<std::io::Error>) {
    while let Err(error) = guest::ping(agent).await {
        *unreached = Some(error);
        tokio::time::sleep(AGAIN).await;
    }
}
