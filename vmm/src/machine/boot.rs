// SPDX-License-Identifier: Apache-2.0
//! How a machine is started. Each phase consumes the previous one. A failure kills all processes.
//!
//! ```text
//! Processes::run ──> connect: hypervisor and agent ──> Machine ──> the task that waits for its end (death)
//!                       │ fails
//!                       └──> Processes::kill
//! ```

use super::devices::{self, VsockServer};
use super::size::Size;
use super::spec::VmSpec;
use super::vsock_directory::VsockDirectory;
use super::{BootContext, Machine, death, files};
use crate::host::vsock::{Cid, Vsock, VsockAttachment};
use crate::hypervisor::connection::Connection;
use crate::hypervisor::disk_nodes::DiskNodes;
use crate::hypervisor::snapshots::{MemoryKeeper, SavedState, Snapshots};
use crate::hypervisor::{Control, Hypervisor};
use crate::relay::guest::{self, Dialer, Guest};
use crate::template::copy;
use crate::template::store::Template;
use magnetar_core::confined::log_tail::LogTail;
use magnetar_core::confined::process::{Common, Process};
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::server::Parts;
use magnetar_vm_agent_api::{Event, Purpose};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tracing::{Instrument, debug};

/// How long a guest may take to send its first message, in software emulation on a busy host. A
/// working guest needs seconds.
const HELLO_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a copy of a template may take for that. A working one needs less than a second. Ten
/// that began at once, on two processors that others kept busy, needed 25. For one that does not
/// work another machine is booted.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(45);

/// All processes of a machine.
pub struct Processes {
    pub(super) hypervisor: Process,
    pub(super) virtiofsd: Option<Process>,
    pub(super) vsock: VsockServer,
    pub(super) console: LogTail,
}

/// How a machine begins once its processes run.
enum Beginning<'a> {
    Boot,
    Restore {
        snapshots: &'a dyn Snapshots,
        template: &'a Template,
        /// The process that copies its memory, if not the hypervisor loads it.
        copy: Option<Process>,
        /// What the hypervisor gets for its vsock.
        vsock: OwnedAttachment,
    },
}

/// A [`VsockAttachment`] that is kept until the hypervisor has it.
enum OwnedAttachment {
    Kernel(Cid),
    User(OwnedFd),
    Own(PathBuf),
}

impl OwnedAttachment {
    fn as_attachment(&self) -> VsockAttachment<'_> {
        match self {
            Self::Kernel(cid) => VsockAttachment::Kernel(cid),
            Self::User(connection) => VsockAttachment::User(connection.as_fd()),
            Self::Own(host) => VsockAttachment::Own(host),
        }
    }
}

/// The connections to a machine that has booted.
struct Connected<F> {
    control: Box<dyn Control>,
    guest: Guest,
    /// The loop that sends requests to the agent.
    requests: F,
    events: guest::Connection,
    pulse: guest::Connection,
}

impl Machine {
    /// Starts a machine, and returns once its agent answers. Calls `on_event` for each event of the
    /// guest, and `on_end` once, when the machine has ended.
    ///
    /// # Errors
    /// If a process cannot be run or ends; `DeadlineExceeded` if the guest stays silent. Nothing of
    /// the machine is left then.
    pub async fn boot(
        hypervisor: Arc<dyn Hypervisor>,
        spec: VmSpec,
        context: &BootContext<'_>,
        parts: &Parts,
        on_event: impl Fn(Event) + Send + Sync + 'static,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let directory = spec.vsock_directory();
        let hello = directory.as_ref().map(VsockDirectory::make).transpose()?;
        let dialer = match (&spec.vsock, &directory) {
            (Vsock::Kernel(cid), _) => Dialer::kernel(cid, context.secret),
            (Vsock::User { .. } | Vsock::Own, Some(directory)) => Dialer::hybrid(directory.host(), directory.owner(), context.secret),
            (Vsock::User { .. } | Vsock::Own, None) => return Err(Error::internal("a vsock in user space has no directory")),
        };
        let (mut processes, beginning) = Processes::run(&*hypervisor, &spec, directory.as_ref(), context, parts).await?;
        let patience = context.template.map_or(HELLO_TIMEOUT, |_| RESTORE_TIMEOUT);
        let connected = tokio::select! {
            connected = tokio::time::timeout(patience, connect(&*hypervisor, &spec, beginning, &dialer, hello)) => {
                connected.unwrap_or_else(|_| Err(silent(&processes.console, patience)))
            }
            reason = processes.one_ended(&*hypervisor) => Err(ended_early(&reason)),
        };
        let Connected { mut control, guest, requests, events, pulse } = match connected {
            Ok(connected) => connected,
            Err(error) => {
                let error = processes.cause(&*hypervisor, error).await;
                processes.kill().await;
                return Err(error);
            }
        };
        let (death_sender, death) = watch::channel(None);
        let off = Arc::new(watch::Sender::new(false));
        let reported = control.events();
        let nodes = processes.hypervisor.devices.clone().map(|devices| DiskNodes::new(devices, context.exceptions.clone()));
        let (connection, serve) = Connection::new(control, nodes);
        let (condemn, condemned) = mpsc::channel(1);
        let (start, most) = (Size { memory_mib: spec.memory_mib, vcpus: spec.vcpus }, spec.most);
        let pid = processes.hypervisor.pid;
        let machine = Self { guest, hypervisor: connection.clone(), start, most, pid, death, condemn, off: off.clone() };
        let watch =
            death::MachineWatch { hypervisor, connection, serve, requests, events, reported, pulse, off: off.subscribe(), condemned };
        let until_end = async move {
            let reason = watch.run_until_end(&mut processes, on_event).await;
            // End all containers before publishing the death, so that whoever sees the death also
            // sees their ends.
            on_end();
            death_sender.send_replace(Some(reason.into()));
        };
        parts.tasks.spawn(until_end.in_current_span());
        Ok(machine)
    }
}

/// Lets the hypervisor begin, and connects to the agent once it listens.
async fn connect(
    hypervisor: &dyn Hypervisor,
    spec: &VmSpec,
    beginning: Beginning<'_>,
    dialer: &Dialer,
    hello: Option<UnixListener>,
) -> Result<Connected<impl Future<Output = ()> + Send + use<>>> {
    let control = match beginning {
        Beginning::Boot => hypervisor.begin(spec).await?,
        Beginning::Restore { snapshots, template, copy, vsock } => {
            if let Some(copy) = copy {
                copy::end(copy).await?;
            }
            let saved = SavedState { file: template.state.as_fd(), version: &template.version };
            snapshots.restore(spec, saved, vsock.as_attachment()).await?
        }
    };
    if let Some(hello) = hello {
        let (_hello, _from) = hello.accept().await.context(|| "cannot accept the guest's first connection".into())?;
        debug!("the guest has sent its first message");
    }
    let (guest, requests) = Guest::connect(dialer.clone()).await?;
    let events = dialer.dial(Purpose::Events).await?;
    let pulse = dialer.dial(Purpose::Control).await?;
    Ok(Connected { control, guest, requests, events, pulse })
}

fn ended_early(reason: &str) -> Error {
    Error::internal(format!("the virtual machine did not start: {reason}"))
}

fn silent(console: &LogTail, patience: Duration) -> Error {
    let said = console.last_line().map(|line| format!("; the last line on its console: {line}"));
    Error::new(Code::DeadlineExceeded, format!("the guest has not started within {patience:?}{}", said.unwrap_or_default()))
}

impl Processes {
    async fn run<'a>(
        hypervisor: &'a dyn Hypervisor,
        spec: &VmSpec,
        directory: Option<&VsockDirectory>,
        context: &BootContext<'a>,
        parts: &Parts,
    ) -> Result<(Self, Beginning<'a>)> {
        let common = Common { reaper: &parts.reaper, tasks: &parts.tasks, cgroup: context.cgroup };
        let copied = context.template.map(|template| {
            let snapshots = hypervisor.snapshots().ok_or_else(|| Error::internal("this hypervisor restores no machines"))?;
            let filled = match snapshots.memory() {
                MemoryKeeper::Program => {
                    let memory = copy::memory_file(spec.memory_mib)?;
                    Some((copy::begin(copy::Task::Unpack, template.memory.as_fd(), memory.as_fd(), common)?, memory))
                }
                MemoryKeeper::Hypervisor => None,
            };
            Ok::<_, Error>((snapshots, template, filled))
        });
        let copied = copied.transpose()?;
        let virtiofsd = spec.share.as_ref().map(|share| devices::run_virtiofsd(share, &[], common)).transpose()?;
        let (vsock, attachment) = match (&spec.vsock, directory) {
            (Vsock::Kernel(cid), _) => (VsockServer::Kernel(Some(cid.clone())), OwnedAttachment::Kernel(cid.clone())),
            (Vsock::User { program }, Some(directory)) => {
                let (process, connection) = devices::run_vsock(program, directory, common).await?;
                (VsockServer::User(process), OwnedAttachment::User(connection))
            }
            (Vsock::Own, Some(directory)) => (VsockServer::Hypervisor, OwnedAttachment::Own(directory.host())),
            (Vsock::User { .. } | Vsock::Own, None) => return Err(Error::internal("a vsock in user space has no directory")),
        };
        let console = LogTail::default();
        let log = Some((console.clone(), spec.dir.join(files::CONSOLE)));
        let invocation = match &copied {
            Some((snapshots, template, filled)) => {
                let memory = filled.as_ref().map_or(template.memory.as_fd(), |(_, memory)| memory.as_fd());
                snapshots.plan_copy(spec, memory)
            }
            None => hypervisor.plan(spec, attachment.as_attachment()),
        };
        let hypervisor = Process::run("the hypervisor", &invocation, log, common)?;
        drop(invocation);
        let beginning = match copied {
            Some((snapshots, template, filled)) => {
                Beginning::Restore { snapshots, template, copy: filled.map(|(copy, _)| copy), vsock: attachment }
            }
            None => Beginning::Boot,
        };
        Ok((Self { hypervisor, virtiofsd, vsock, console }, beginning))
    }

    /// The cause of a start's failure: whoever was talked to may have hung up because it ends.
    pub(super) async fn cause(&mut self, kind: &dyn Hypervisor, error: Error) -> Error {
        if error.code() != Code::Unavailable {
            return error;
        }
        let ended = tokio::time::timeout(death::CAUSE_TIMEOUT, self.one_ended(kind)).await;
        ended.map_or(error, |reason| ended_early(&reason))
    }

    pub(super) async fn kill(&mut self) {
        self.hypervisor.kill().await;
        self.vsock.kill().await;
        if let Some(virtiofsd) = &mut self.virtiofsd {
            virtiofsd.kill().await;
        }
    }
}
