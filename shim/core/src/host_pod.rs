// SPDX-License-Identifier: Apache-2.0
//! A pod whose containers are processes of this host, with its namespaces, cgroup and files.
//!
//! The sandboxers of native programs and of Wasm modules use it; that of virtual machines has its
//! own.

mod namespaces;

use crate::cgroup::Cgroup;
use crate::cgroup::stats::{self, Metrics};
use crate::error::{Error, Result};
use crate::home::{self, Home};
use crate::pod_config::Resources;
use crate::reaper::{Exit, Reaper};
use crate::record::{PodDir, PodRecord};
use crate::runtime::Runtime;
use crate::sandbox::{Death, PodRequest, Sandboxer, reply};
use crate::sandbox_files::SandboxFiles;
use crate::task::Containers;
use namespaces::Plan;
use std::path::Path;
use tokio::sync::oneshot;
use tracing::debug;

/// The pod of this process.
#[derive(Debug)]
pub struct HostPod<R> {
    dir: PodDir,
    record: PodRecord,
    containers: Containers<R>,
    reaper: Reaper,
    /// Gets the exit of the process that holds the pod's namespaces, if there is one.
    holder: Option<oneshot::Receiver<Exit>>,
    /// The network namespace to return to when the pod is over.
    home: Option<Home>,
    files: Option<SandboxFiles>,
    /// Whether it is for a single container without a pod. That container has its own namespaces,
    /// and files from the client that made it.
    is_single: bool,
}

impl<R: Runtime> HostPod<R> {
    /// A pod for which nothing was made yet.
    pub fn new(dir: PodDir, record: PodRecord, containers: Containers<R>, reaper: Reaper) -> Self {
        Self { dir, record, containers, reaper, holder: None, home: None, files: None, is_single: false }
    }

    async fn stop_holder(&mut self) -> Result<()> {
        let Some(holder) = self.record.holder.take() else { return Ok(()) };
        // It fails only if the holder was reaped before.
        let killed = self.reaper.signal(holder, libc::SIGKILL as u32);
        if let Some(ended) = self.holder.take().filter(|_| killed.is_ok()) {
            let _ended = ended.await;
        }
        self.dir.write_pod(&self.record)
    }
}

impl<R: Runtime> Sandboxer for HostPod<R> {
    async fn create(&mut self, request: &PodRequest) -> Result<()> {
        if request.single.is_some() {
            self.is_single = true;
            self.containers.hold_until(Home::move_in(&self.record, Vec::new())?);
            return Ok(());
        }
        let config = &request.config;
        let plan = Plan::new(request)?;
        let files = SandboxFiles::new(&self.record.config.containerd, &self.record.sandbox, &self.dir);
        self.record.mounts = files.owned_mounts();
        self.record.parent.clone_from(&config.cgroup_parent);
        self.record.name = config.full_name();
        if config.cgroup_parent.is_none() {
            // The kubelet has made no cgroup that accounts for the pod.
            self.record.cgroup = Some(home::pod_cgroup(self.record.sandbox.as_str(), None));
        }
        self.dir.write_pod(&self.record)?;
        self.home = Some(Home::remember()?);
        if let Some(path) = &self.record.cgroup {
            Cgroup::at(path)?.create()?;
        }
        self.files = Some(files.clone());
        files.create(config, Path::new("/etc"))?;
        self.containers.keep_published(files);
        if plan.needs_holder() {
            let holder = plan.hold()?;
            debug!(holder, "namespaces are held by a process of their own");
            self.holder = Some(self.reaper.watch(holder));
            self.record.holder = Some(holder);
            self.dir.write_pod(&self.record)?;
        } else {
            plan.enter()?;
        }
        Ok(())
    }

    async fn start(&mut self) -> Result<u32> {
        if self.is_single {
            self.containers.start_sandbox().await?;
            return Ok(std::process::id());
        }
        // The pod is ready before this process has moved; its first container waits for the move.
        self.containers.hold_until(Home::move_in(&self.record, self.record.holder.into_iter().collect())?);
        self.containers.start_sandbox().await?;
        Ok(self.record.holder.unwrap_or_else(std::process::id))
    }

    async fn stop(&mut self) -> Result<()> {
        self.containers.kill_all().await?;
        self.containers.stop_sandbox().await?;
        self.stop_holder().await?;
        if let Some(files) = &self.files {
            files.remove()?;
        }
        if let Some(home) = &self.home {
            home.leave_network()?;
        }
        home::remove_pod_cgroup(&self.record).await?;
        // Only now, because a stop that failed is tried again.
        (self.files, self.home) = (None, None);
        Ok(())
    }

    /// Namespaces do not end by themselves, but the holder can be killed.
    async fn died(&mut self) -> Death {
        let Some(holder) = &mut self.holder else { return self.containers.sandbox_died().await };
        let exit = tokio::select! {
            exit = holder => exit.unwrap_or_else(|_| Exit::killed()),
            death = self.containers.sandbox_died() => return death,
        };
        self.holder = None;
        Death { exit, reason: format!("the process that held the pod's namespaces has ended with code {}", exit.code).into() }
    }

    fn metrics(&self) -> Result<Metrics> {
        let cgroup = home::accounted(&self.record)?;
        stats::metrics(&cgroup.ok_or_else(|| Error::precondition("the sandbox has no cgroup: it was not created"))?)
    }

    /// Its containers are in the pod's cgroup, which was changed before: there is nothing to do.
    fn resize(&mut self, resources: Resources, outcome: oneshot::Sender<Result<()>>) {
        reply(outcome, home::check_parent(&self.record, &resources));
    }
}
