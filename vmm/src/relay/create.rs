// SPDX-License-Identifier: Apache-2.0
//! How a container in a virtual machine is made: from its specification on the host to Create in
//! the guest.

use super::container::{Container, Process};
use super::memory::MemoryVolumes;
use super::{Relay, Running};
use crate::relay::streams::{StreamPaths, Streams};
use crate::relay::translate::{self, Translated};
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::ids::{ContainerId, ExecId};
use magnetar_core::logger::Logged;
use magnetar_core::record::ContainerRecord;
use magnetar_core::sandbox_files::SandboxFiles;
use magnetar_core::task::{CreateRequest, read_bundle};
use magnetar_vm_agent_api::{self as agent, Bundle, Memory, Request};
use serde_json::Value;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

/// How long the agent may take for a request that does not wait for anything.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

impl Relay {
    /// Records a container that is made later, at Start. Refuses it now if it could not be made
    /// then.
    pub(super) fn announce(&self, container: &Container, request: CreateRequest) -> Result<()> {
        self.record(container)?;
        let spec = specification(container)?;
        let memory = self.0.memory.used_by(&spec);
        self.translated(container, spec, &memory)?;
        container.defer_create(request);
        Ok(())
    }

    fn record(&self, container: &Container) -> Result<()> {
        let (id, bundle) = (container.id.clone(), container.bundle.clone());
        self.0.pod.write_container(&ContainerRecord::new(id, bundle, None, None))
    }

    pub(super) async fn make(&self, running: &Running, container: &Container, request: &CreateRequest) -> Result<()> {
        let id = &container.id;
        self.record(container)?;
        self.0.files.get().map_or(Ok(()), SandboxFiles::publish)?;
        let spec = specification(container)?;
        let memory = self.0.memory.used_by(&spec);
        // docker mounts it itself, and `ctr run --rootfs` has it anywhere. A relative path is
        // relative to the bundle.
        let root = container.bundle.join(spec["root"]["path"].as_str().unwrap_or("rootfs"));
        let Translated { spec, volumes, disks, huge_pages, shared_pid } = self.translated(container, spec, &memory)?;
        running.share.show(id, &root, &request.rootfs, &volumes)?;
        let memory = memory.into_iter().map(|(_, memory)| memory).collect();
        let _the_first_counts = container.huge_pages.set(huge_pages);
        let all = self.0.containers.all();
        let huge_pages = all.iter().filter_map(|(_, other)| other.huge_pages.get()).fold(0, |sum: u32, pages| sum.saturating_add(*pages));
        self.make_room(running, container, &spec).await?;
        let disks = running.attach(id, disks).await?;
        let submounts = running.share.submounts(id)?;
        let bundle = Bundle { container: id.to_string(), spec: spec.to_string(), memory, huge_pages, disks, submounts, shared_pid };
        let patience = REQUEST_TIMEOUT + agent::DISK_FOUND * u32::try_from(bundle.disks.len()).unwrap_or(u32::MAX);
        running.guest.ask(Request::Bundle(bundle), patience).await?;
        let paths = self.open_streams(running, id, None, &container.init).await?;
        running.call(running.guest.tasks().create(id, request.stdio.terminal, paths)).await
    }

    /// Opens the streams of a process. Returns their names in the guest.
    pub(super) async fn open_streams(
        &self,
        running: &Running,
        id: &ContainerId,
        exec: Option<&ExecId>,
        process: &Process,
    ) -> Result<StreamPaths> {
        let (namespace, _) = self.0.pod.names()?;
        let logged = Logged { id: exec.map_or(id.as_str(), ExecId::as_str), namespace: namespace.as_str(), reaper: &self.0.reaper };
        let logs = process.logging.run(&process.stdio, logged).await?;
        let (tasks, outputs) = (&self.0.tasks, &self.0.outputs);
        let (streams, paths) = Streams::open(&running.guest, id, exec, &process.stdio, tasks, outputs, logs).await?;
        process.attach(streams);
        Ok(paths)
    }

    /// Translates the container's specification for the guest.
    fn translated(&self, container: &Container, spec: Value, memory: &[(PathBuf, Memory)]) -> Result<Translated> {
        let context = translate::Context {
            sandbox_pid: std::process::id(),
            shm: &self.0.shm,
            memory: &|source| MemoryVolumes::number(memory, source),
            is_single: self.is_single(),
        };
        translate::translate(spec, &container.id, &context)
            .map_err(|error| if error.code() == Code::InvalidArgument { no_specification(container, &error) } else { error })
    }
}

/// Adds "cannot create container" to an error, unless the guest has done so.
pub fn cannot_create(id: &ContainerId, error: Error) -> Error {
    let subject = format!("cannot create container {id}: ");
    match error.to_string() {
        said if said.starts_with(&subject) => Error::new(error.code(), said),
        said => Error::new(error.code(), subject + &said),
    }
}

fn specification(container: &Container) -> Result<Value> {
    serde_json::from_slice(&read_bundle(&container.bundle)?).map_err(|e| no_specification(container, &e))
}

fn no_specification(container: &Container, why: &dyn Display) -> Error {
    Error::invalid(format!("{}/config.json is no OCI specification: {why}", container.bundle.display()))
}
