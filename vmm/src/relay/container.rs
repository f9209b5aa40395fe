// SPDX-License-Identifier: Apache-2.0
//! A container in the guest and its processes, as containerd sees them. Everything that State and
//! Wait need is here, so they never wait for the guest.

use crate::machine::size::Limits;
use crate::relay::streams::Streams;
use magnetar_core::error::Result;
use magnetar_core::ids::{ContainerId, ExecId};
use magnetar_core::logger::Logging;
use magnetar_core::process::{Life, Phase};
use magnetar_core::stdio::StdioSpec;
use magnetar_core::task::CreateRequest;
use magnetar_core::task::registry::Registry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The least time between two reports that a container ran out of memory.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

/// One container.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub id: ContainerId,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// Its first process.
    pub init: Arc<Process>,
    /// How many huge pages it may use; unset until its specification was translated.
    pub huge_pages: OnceLock<u32>,
    /// Its limits, which the machine's size follows; `None` until it is being made.
    limits: Mutex<Option<Limits>>,
    /// Its further processes.
    pub execs: Registry<ExecId, Process>,
    oom_reported: Mutex<Option<Instant>>,
    deferred: Mutex<Option<CreateRequest>>,
}

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Its streams on the host.
    pub stdio: StdioSpec,
    /// Its life. Its process id is the hypervisor's, because it has none of its own on the host.
    pub life: Life,
    /// `process` of the OCI specification, as JSON; empty for an init.
    pub process: Vec<u8>,
    streams: Mutex<Option<Streams>>,
    /// The logging program for its output, if there is one.
    pub logging: Logging,
}

impl Container {
    /// A container before it is made.
    pub fn new(id: ContainerId, bundle: PathBuf, stdio: StdioSpec) -> Self {
        let init = Arc::new(Process::new(stdio, Vec::new(), Phase::Creating));
        let execs = Registry::new("exec", format!("container {id}"));
        let (limits, oom_reported, deferred) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { id, bundle, init, huge_pages: OnceLock::new(), limits, execs, oom_reported, deferred }
    }

    /// Its limits; `None` before it is made, and once its first process has ended.
    pub fn limits(&self) -> Option<Limits> {
        let limits = *self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.filter(|_| self.init.life.phase().exit().is_none())
    }

    /// Sets its limits.
    pub fn set_limits(&self, limits: Option<Limits>) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Keeps the request to make it until it is started.
    pub fn defer_create(&self, request: CreateRequest) {
        *self.deferred.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
    }

    /// Takes the request that [`defer_create`](Self::defer_create) kept. Only the first caller gets
    /// it, and makes the container.
    pub fn take_deferred_create(&self) -> Option<CreateRequest> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Its init, or one of its execs.
    ///
    /// # Errors
    /// `NotFound` for an exec that was not announced or has been deleted.
    pub fn process(&self, exec: Option<&ExecId>) -> Result<Arc<Process>> {
        match exec {
            None => Ok(self.init.clone()),
            Some(exec) => self.execs.get(exec),
        }
    }

    /// Whether to report that the container ran out of memory. A guest may say it any number of
    /// times, so reports are limited to one per [`OOM_INTERVAL`].
    pub fn should_report_oom(&self) -> bool {
        let mut told = self.oom_reported.lock().unwrap_or_else(PoisonError::into_inner);
        let news = told.is_none_or(|told| told.elapsed() > OOM_INTERVAL);
        if news {
            *told = Some(Instant::now());
        }
        news
    }
}

impl Process {
    /// A process that does not run yet.
    pub fn new(stdio: StdioSpec, process: Vec<u8>, phase: Phase) -> Self {
        Self { stdio, life: Life::new(phase), process, streams: Mutex::default(), logging: Logging::default() }
    }

    /// Sets its streams.
    pub fn attach(&self, streams: Streams) {
        *self.streams() = Some(streams);
    }

    /// Ends its input.
    pub fn close_input(&self) {
        if let Some(streams) = self.streams().as_ref() {
            streams.close_input();
        }
    }

    /// Releases its streams, because it has ended.
    pub fn detach(&self) {
        if let Some(streams) = self.streams().take() {
            streams.process_ended();
        }
    }

    fn streams(&self) -> MutexGuard<'_, Option<Streams>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
