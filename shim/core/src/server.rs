// SPDX-License-Identifier: Apache-2.0
//! Runs a sandbox process from its start to its end. Every sandboxer's `main` calls it.
//!
//! ```text
//! fds 3 and 4, --pod-dir ──> Inherited ──take the lock, write the pid──> serve both APIs ──ShutdownSandbox──> end
//! ```

pub mod connections;

use crate::cgroup::stats::Metrics;
use crate::error::{Context, Error, Result};
use crate::events::Events;
use crate::idle::{self, Idle};
use crate::logging;
use crate::pod_config::Resources;
use crate::reaper::Reaper;
use crate::record::{PodDir, PodLock, PodRecord};
use crate::sandbox::{Death, Pod, PodPhase, PodRequest, SandboxService, Sandboxer, reply};
use crate::task::{TaskService, Tasks};
use magnetar_sys::listener;
use magnetar_sys::notification::Notification;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error_span, warn};
use ttrpc::asynchronous::transport::Listener;

/// How long the last events may take to reach containerd when the process ends.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// How long the client that asked for the end may stay connected.
const HANG_UP: Duration = Duration::from_millis(500);

/// The most connections to a pod's socket. The shim has one, and containerd has one for the pod and
/// one for each container.
const CONNECTIONS: usize = 256;

/// How long a process without connections waits for its first request.
const UNUSED: Duration = Duration::from_secs(60);

/// A sandboxer's `main`: takes what the process inherits, and serves until the pod is over.
/// `program` is its name.
pub fn main(program: &str, serve: impl FnOnce(Inherited) -> Result<()>) -> ExitCode {
    magnetar_sys::memory::stay_small();
    let served = Inherited::take(std::env::args_os().skip(1)).and_then(|inherited| {
        logging::start(inherited.record.config.log_level);
        serve(inherited)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not have started; standard error may be closed.
            let _unheard = writeln!(std::io::stderr(), "{program}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a sandbox process inherits.
#[derive(Debug)]
pub struct Inherited {
    /// The pod's directory.
    pub dir: PodDir,
    /// The pod's record, with this process in it.
    pub record: PodRecord,
    listener: UnixListener,
    _lock: PodLock,
}

/// The shared parts from which a sandboxer is built.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Reaps child processes.
    pub reaper: Reaper,
    /// The queue of events.
    pub events: Events,
    /// Requests that freed memory is returned.
    pub idle: Idle,
    /// The owner of all background tasks.
    pub tasks: TaskTracker,
}

impl Inherited {
    /// Takes the listener from fd 3 and the pod named by `--pod-dir`, and reports on fd 4 whether
    /// that worked.
    ///
    /// # Errors
    /// When the program was not started by the shim, another process serves the pod, or the pod's
    /// record cannot be written.
    fn take(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Self> {
        let notification = Notification::inherit();
        let taken = Self::take_quietly(arguments);
        match &taken {
            Ok(_) => notification.ready(),
            Err(error) => notification.failed(&error.to_line()),
        }
        taken
    }

    fn take_quietly(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Self> {
        let usage =
            || Error::invalid("this program is started by containerd-shim-magnetar-v2: --pod-dir DIR, with the pod's socket on fd 3");
        let dir = match (arguments.next(), arguments.next(), arguments.next()) {
            (Some(flag), Some(dir), None) if flag == "--pod-dir" => PodDir::existing(PathBuf::from(dir)),
            _ => return Err(usage()),
        };
        let listener = listener::inherit().map_err(|e| Error::invalid(format!("{} ({e})", usage())))?;
        let Some(lock) = dir.try_lock()? else {
            return Err(Error::precondition(format!("{}: another process serves this pod", dir.path().display())));
        };
        let mut record = dir.pod()?;
        record.pid = std::process::id();
        dir.write_pod(&record)?;
        // Leave the shim's session, so that its signals do not reach this process.
        let _leads_already = rustix::process::setsid();
        Ok(Self { dir, record, listener, _lock: lock })
    }

    /// Serves the pod until ShutdownSandbox. `build` makes the sandboxer and its containers.
    ///
    /// # Errors
    /// When the process cannot begin to serve.
    pub fn serve<S, T>(self, build: impl FnOnce(&PodDir, PodRecord, &Parts) -> Result<(S, T)>) -> Result<()>
    where
        S: Sandboxer,
        T: Tasks,
    {
        let runtime = idle::event_loop().context(|| "cannot start the event loop".into())?;
        // Of the highest level, so that every log message names the pod.
        let span = error_span!("pod", sandbox = %self.record.sandbox);
        runtime.block_on(self.run(build).instrument(span))
    }

    async fn run<S, T>(self, build: impl FnOnce(&PodDir, PodRecord, &Parts) -> Result<(S, T)>) -> Result<()>
    where
        S: Sandboxer,
        T: Tasks,
    {
        let Self { dir, record, listener, _lock } = self;
        let background = TaskTracker::new();
        let (reaper, reap) = Reaper::start()?;
        let (events, forward) = Events::new(record.config.containerd.ttrpc_address.clone(), record.namespace.clone());
        let id = record.sandbox.clone();
        let (idle, give_back) = Idle::new();
        let parts = Parts { reaper, events, idle: idle.clone(), tasks: background.clone() };
        // On a failure, go on and answer requests with the error, so that the client learns the
        // reason and not just that a process has ended.
        let (sandboxer, tasks) = match build(&dir, record, &parts) {
            Ok((sandboxer, tasks)) => (SandboxerOrError(Ok(sandboxer)), Some(tasks)),
            Err(error) => (SandboxerOrError(Err(error)), None),
        };
        let (pod, own) = Pod::new(sandboxer);
        let listener = tokio::net::UnixListener::from_std(listener).context(|| "cannot use the inherited socket".into())?;
        let connections = TaskTracker::new();
        let listener = Listener::new(connections::bounded(listener, CONNECTIONS, &connections));
        let server = ttrpc::asynchronous::Server::new().add_listener(listener);
        let mut server = SandboxService::new(id.clone(), dir.clone(), pod.clone()).register(server);
        if let Some(tasks) = tasks {
            server = TaskService::of_pod(id, tasks, background, pod.clone()).register(server);
        }
        let mut forwarder = tokio::task::JoinSet::new();
        forwarder.spawn(forward);
        server.start().await?;
        idle.soon();
        let ending = async {
            pod.asked_to_shut_down().await;
            connections.close();
            // A client that stays connected has its answer by then.
            let _hung_up = tokio::time::timeout(HANG_UP, connections.wait()).await;
        };
        tokio::select! {
            () = own => {}
            () = reap => {}
            () = give_back => {}
            () = ending => {}
            () = unused(&pod, &connections) => warn!("no request for a sandbox or a container came: ending"),
        }
        // Then drop everything that could still send events.
        if let Err(error) = server.shutdown().await {
            warn!(%error, "the ttrpc server did not shut down cleanly");
        }
        drop((server, pod, parts));
        if tokio::time::timeout(LAST_EVENTS, forwarder.join_next()).await.is_err() {
            warn!("containerd did not take the last events in time: they are lost");
        }
        Ok(())
    }
}

/// Waits until this process is useless: it has no connections, and no sandbox was requested. Once a
/// sandbox was requested this never returns, because then the client or a clean-up ends the
/// process. Cancel-safe.
async fn unused(pod: &Pod, connections: &TaskTracker) {
    loop {
        tokio::time::sleep(UNUSED).await;
        match pod.phase() {
            PodPhase::Empty if connections.is_empty() => return,
            PodPhase::Empty => {}
            PodPhase::Created | PodPhase::Ready { .. } | PodPhase::Stopped { .. } => std::future::pending().await,
        }
    }
}

/// A sandboxer, or the error why there is none.
#[derive(Debug)]
struct SandboxerOrError<S>(Result<S>);

impl<S: Sandboxer> Sandboxer for SandboxerOrError<S> {
    async fn create(&mut self, request: &PodRequest) -> Result<()> {
        match &mut self.0 {
            Ok(sandboxer) => sandboxer.create(request).await,
            Err(error) => Err(error.clone()),
        }
    }

    async fn start(&mut self) -> Result<u32> {
        match &mut self.0 {
            Ok(sandboxer) => sandboxer.start().await,
            Err(error) => Err(error.clone()),
        }
    }

    async fn stop(&mut self) -> Result<()> {
        match &mut self.0 {
            Ok(sandboxer) => sandboxer.stop().await,
            // Nothing was made, so there is nothing to stop.
            Err(_) => Ok(()),
        }
    }

    fn metrics(&self) -> Result<Metrics> {
        match &self.0 {
            Ok(sandboxer) => sandboxer.metrics(),
            Err(error) => Err(error.clone()),
        }
    }

    fn resize(&mut self, resources: Resources, outcome: oneshot::Sender<Result<()>>) {
        match &mut self.0 {
            Ok(sandboxer) => sandboxer.resize(resources, outcome),
            Err(error) => reply(outcome, Err(error.clone())),
        }
    }

    async fn died(&mut self) -> Death {
        match &mut self.0 {
            Ok(sandboxer) => sandboxer.died().await,
            // It was never ready, so it cannot die.
            Err(_) => std::future::pending().await,
        }
    }
}
