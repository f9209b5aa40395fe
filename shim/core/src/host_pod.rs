// SPDX-License-Identifier: Apache-2.0
//! A pod whose containers are processes of this host: namespaces, cgroup and files, whatever the containers' payload is.
//!
//! Of the sandboxers of native programs and of Wasm modules; a virtual machine has another.

mod namespaces;

use crate::cgroup::{Cgroup, stats};
use crate::error::{Error, Result};
use crate::home::{self, Home};
use crate::reaper::Reaper;
use crate::record::{PodDir, PodRecord};
use crate::runtime::Runtime;
use crate::sandbox::{PodRequest, Sandboxer};
use crate::sandbox_files::SandboxFiles;
use crate::task::Containers;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use namespaces::Plan;
use std::path::Path;
use tracing::debug;

/// The one pod of this process.
#[derive(Debug)]
pub struct HostPod<R> {
    dir: PodDir,
    record: PodRecord,
    containers: Containers<R>,
    reaper: Reaper,
    /// Where this process came from, to go back to when the pod is over.
    home: Option<Home>,
    files: Option<SandboxFiles>,
}

impl<R: Runtime> HostPod<R> {
    /// A pod that nothing was made for yet.
    pub fn new(dir: PodDir, record: PodRecord, containers: Containers<R>, reaper: Reaper) -> Self {
        Self { dir, record, containers, reaper, home: None, files: None }
    }

    async fn stop_holder(&mut self) -> Result<()> {
        let Some(holder) = self.record.holder.take() else { return Ok(()) };
        let ended = self.reaper.watch(holder);
        // It fails only for one that was reaped before.
        if self.reaper.signal(holder, libc::SIGKILL as u32).is_ok() {
            let _ended = ended.await;
        }
        self.dir.write_pod(&self.record)
    }
}

impl<R: Runtime> Sandboxer for HostPod<R> {
    async fn create(&mut self, request: &PodRequest) -> Result<()> {
        let config = &request.config;
        let plan = Plan::new(request)?;
        let files = SandboxFiles::new(&self.record.config.containerd, &self.record.sandbox, &self.dir);
        self.record.mounts = files.owned_mounts();
        self.record.parent.clone_from(&config.cgroup_parent);
        if config.cgroup_parent.is_none() {
            // Nobody else has made one that could be asked what the pod uses.
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
            self.record.holder = Some(holder);
            self.dir.write_pod(&self.record)?;
        } else {
            plan.enter()?;
        }
        Ok(())
    }

    async fn start(&mut self) -> Result<u32> {
        // The pod is ready for containers before this process has moved; the first of them waits for it.
        self.containers.hold_until(Home::move_in(&self.record, self.record.holder.into_iter().collect())?);
        Ok(self.record.holder.unwrap_or_else(std::process::id))
    }

    async fn stop(&mut self) -> Result<()> {
        self.containers.kill_all().await?;
        self.stop_holder().await?;
        if let Some(files) = &self.files {
            files.remove()?;
        }
        if let Some(home) = &self.home {
            home.leave_network()?;
        }
        home::remove_pod_cgroup(&self.record).await?;
        // Not sooner: what has failed is tried again.
        (self.files, self.home) = (None, None);
        Ok(())
    }

    fn metrics(&self) -> Result<Any> {
        let cgroup = home::accounted(&self.record)?;
        stats::metrics(&cgroup.ok_or_else(|| Error::precondition("the sandbox has no cgroup: it was not created"))?)
    }
}
