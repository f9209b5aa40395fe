// SPDX-License-Identifier: Apache-2.0
//! How a machine is started. Each phase consumes the previous one. A failure kills all processes.
//!
//! ```text
//! Processes::run ──> connect: hypervisor and agent ──> Booted ──> the task that waits for its end (death)
//!                       │ fails
//!                       └──> Processes::kill
//! ```

use super::devices::{self, VsockServer};
use super::log_tail::LogTail;
use super::processes::{Common, Process};
use super::size::Size;
use super::spec::VmSpec;
use super::vsock_directory::VsockDirectory;
use super::{BootContext, Machine, death, files};
use crate::host::vsock::{Vsock, VsockAttachment};
use crate::hypervisor::connection::Connection;
use crate::hypervisor::{Control, Hypervisor};
use crate::relay::guest::{self, Dialer, Guest};
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::server::Parts;
use magnetar_vm_agent_api::{Event, Purpose};
use rustix::fs::{Mode, chmod};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tracing::{Instrument, debug};

/// How long a guest may take to send its first message, in software emulation on a busy host. A
/// working guest needs seconds.
const HELLO_TIMEOUT: Duration = Duration::from_secs(120);

/// All processes of a machine.
pub struct Processes {
    pub(super) hypervisor: Process,
    pub(super) virtiofsd: Option<Process>,
    pub(super) vsock: VsockServer,
    pub(super) console: LogTail,
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
        let mut processes = Processes::run(&*hypervisor, &spec, directory.as_ref(), context, parts).await?;
        let connected = tokio::select! {
            connected = tokio::time::timeout(HELLO_TIMEOUT, connect(&*hypervisor, &spec, &dialer, hello)) => {
                connected.unwrap_or_else(|_| Err(silent(&processes.console)))
            }
            reason = processes.one_ended(&*hypervisor) => Err(ended_early(&reason)),
        };
        let connected = match connected {
            // Whoever was talked to may have hung up because it ends; then that is the cause.
            Err(error) if error.code() == Code::Unavailable => {
                let ended = tokio::time::timeout(death::CAUSE_TIMEOUT, processes.one_ended(&*hypervisor)).await;
                Err(ended.map_or(error, |reason| ended_early(&reason)))
            }
            connected => connected,
        };
        let Connected { mut control, guest, requests, events, pulse } = match connected {
            Ok(connected) => connected,
            Err(error) => {
                processes.kill().await;
                return Err(error);
            }
        };
        let (death_sender, death) = watch::channel(None);
        let off = Arc::new(watch::Sender::new(false));
        let reported = control.events();
        let (connection, serve) = Connection::new(control);
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
    dialer: &Dialer,
    hello: Option<UnixListener>,
) -> Result<Connected<impl Future<Output = ()> + Send + use<>>> {
    let control = hypervisor.begin(spec).await?;
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

fn silent(console: &LogTail) -> Error {
    let said = console.last_line().map(|line| format!("; the last line on its console: {line}"));
    Error::new(Code::DeadlineExceeded, format!("the guest has not started within {HELLO_TIMEOUT:?}{}", said.unwrap_or_default()))
}

impl Processes {
    async fn run(
        hypervisor: &dyn Hypervisor,
        spec: &VmSpec,
        directory: Option<&VsockDirectory>,
        context: &BootContext<'_>,
        parts: &Parts,
    ) -> Result<Self> {
        let common = Common { reaper: &parts.reaper, tasks: &parts.tasks, cgroup: context.cgroup };
        let virtiofsd = spec.share.as_ref().map(|share| Process::run("virtiofsd", &devices::virtiofsd(share), None, common)).transpose()?;
        if let Some(share) = &spec.share {
            // Only root can enter its directory. A hypervisor that runs as another user reaches it
            // through a descriptor.
            let what = || format!("cannot open {} for the hypervisor", share.socket.display());
            chmod(&share.socket, Mode::from_raw_mode(0o666)).context(what)?;
        }
        let (connection, host);
        let (vsock, carried) = match (&spec.vsock, directory) {
            (Vsock::Kernel(cid), _) => (VsockServer::Kernel(Some(cid.clone())), VsockAttachment::Kernel(cid)),
            (Vsock::User { program }, Some(directory)) => {
                let process;
                (process, connection) = devices::run_vsock(program, directory, common).await?;
                (VsockServer::User(process), VsockAttachment::User(connection.as_fd()))
            }
            (Vsock::Own, Some(directory)) => {
                host = directory.host();
                (VsockServer::Hypervisor, VsockAttachment::Own(&host))
            }
            (Vsock::User { .. } | Vsock::Own, None) => return Err(Error::internal("a vsock in user space has no directory")),
        };
        let console = LogTail::default();
        let log = Some((console.clone(), spec.dir.join(files::CONSOLE)));
        let hypervisor = Process::run("the hypervisor", &hypervisor.plan(spec, carried), log, common)?;
        Ok(Self { hypervisor, virtiofsd, vsock, console })
    }

    pub(super) async fn kill(&mut self) {
        self.hypervisor.kill().await;
        self.vsock.kill().await;
        if let Some(virtiofsd) = &mut self.virtiofsd {
            virtiofsd.kill().await;
        }
    }
}
