// SPDX-License-Identifier: Apache-2.0
//! A container in the guest and its processes, as containerd sees them. What State and Wait ask for is known here: neither
//! waits for the guest.

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

/// Between two reports that a container is out of memory.
const OOM_AGAIN: Duration = Duration::from_secs(1);

/// One container.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub id: ContainerId,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// Its first process.
    pub init: Arc<Process>,
    /// How many huge pages it may use, once that is known.
    pub huge_pages: OnceLock<u32>,
    /// Its further processes.
    pub execs: Registry<ExecId, Process>,
    oom_told: Mutex<Option<Instant>>,
    later: Mutex<Option<CreateRequest>>,
}

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Where its streams lead on the host.
    pub stdio: StdioSpec,
    /// Its life. Its process id is the virtual machine's: on the host it has no other.
    pub life: Life,
    /// `process` of the OCI specification, as JSON; empty for an init.
    pub process: Vec<u8>,
    streams: Mutex<Option<Streams>>,
    /// The program that takes its outputs, if they go to one.
    pub logging: Logging,
}

impl Container {
    /// A container that is about to be made.
    pub fn new(id: ContainerId, bundle: PathBuf, stdio: StdioSpec) -> Self {
        let init = Arc::new(Process::new(stdio, Vec::new(), Phase::Creating));
        let execs = Registry::new("exec", format!("container {id}"));
        Self { id, bundle, init, huge_pages: OnceLock::new(), execs, oom_told: Mutex::default(), later: Mutex::default() }
    }

    /// Keeps what it is to be made from until it is started.
    pub fn make_later(&self, request: CreateRequest) {
        *self.later.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
    }

    /// What it is to be made from, if that was not done when it was created. Only the first who asks makes it.
    pub fn is_to_be_made(&self) -> Option<CreateRequest> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner).take()
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

    /// Whether containerd is to be told that the guest is out of memory: it is told once in a while, however often a guest says it.
    pub fn oom_is_news(&self) -> bool {
        let mut told = self.oom_told.lock().unwrap_or_else(PoisonError::into_inner);
        let news = told.is_none_or(|told| told.elapsed() > OOM_AGAIN);
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

    /// Remembers its streams.
    pub fn attach(&self, streams: Streams) {
        *self.streams() = Some(streams);
    }

    /// Lets its input end.
    pub fn close_input(&self) {
        if let Some(streams) = self.streams().as_ref() {
            streams.close_input();
        }
    }

    /// Lets go of its streams: it has ended.
    pub fn detach(&self) {
        if let Some(streams) = self.streams().take() {
            streams.process_ended();
        }
    }

    fn streams(&self) -> MutexGuard<'_, Option<Streams>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
