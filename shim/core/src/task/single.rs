// SPDX-License-Identifier: Apache-2.0
//! The sandbox of a container without a pod. [`crate::sandbox::Single`] has the diagram.
//!
//! If the first request is for a container and not for a sandbox, this process makes the sandbox
//! itself. It stops the sandbox when the container has ended, and ends at Shutdown. In a pod, the
//! Sandbox API does all that, and nothing here does anything.

use super::{CreateRequest, Tasks, read_bundle};
use crate::error::{Error, Result};
use crate::ids::ContainerId;
use crate::sandbox::{Pod, PodPhase, PodRequest};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, warn};

/// The sandbox of a container without a pod, if this process has one.
#[derive(Debug)]
pub struct SingleSandbox {
    pod: Pod,
    background: TaskTracker,
    /// Whether the sandbox was made for a container without a pod.
    is_single: AtomicBool,
}

impl SingleSandbox {
    /// For `pod`, which has not been created. `background` owns the task that waits for the
    /// container's end.
    pub fn new(pod: Pod, background: TaskTracker) -> Self {
        Self { pod, background, is_single: AtomicBool::new(false) }
    }

    fn is_single(&self) -> bool {
        self.is_single.load(Ordering::Relaxed)
    }

    /// Makes the sandbox, unless there is a pod.
    ///
    /// # Errors
    /// If the bundle does not parse or the sandbox cannot be made.
    pub async fn before_create(&self, request: &CreateRequest) -> Result<()> {
        if self.pod.phase() != PodPhase::Empty {
            return Ok(());
        }
        let CreateRequest { container, bundle, .. } = request;
        let pod = PodRequest::of_single(container.clone(), bundle, &read_bundle(bundle)?)?;
        info!(%container, "a container without a pod gets a sandbox of its own");
        self.is_single.store(true, Ordering::Relaxed);
        self.pod.create(pod).await.map_err(|e| Error::new(e.code(), format!("cannot create container {container}: {e}")))
    }

    /// Stops a sandbox whose container could not be made.
    pub async fn after_failed_create(&self, tasks: &impl Tasks) {
        if self.is_single() && !tasks.has_containers() {
            stop(&self.pod).await;
        }
    }

    /// Starts the sandbox before its container. Stops it when the container has ended.
    ///
    /// # Errors
    /// If the sandbox cannot be started.
    pub async fn before_start(&self, tasks: &impl Tasks, container: &ContainerId) -> Result<()> {
        if !self.is_single() || self.pod.phase() != PodPhase::Created {
            return Ok(());
        }
        self.pod.start().await.map_err(|e| Error::new(e.code(), format!("cannot start container {container}: {e}")))?;
        let (tasks, pod, container) = (tasks.clone(), self.pod.clone(), container.clone());
        let stop = async move {
            tasks.ended(&container).await;
            stop(&pod).await;
        };
        self.background.spawn(stop.in_current_span());
        Ok(())
    }

    /// Ends the process, unless it serves a pod: then ShutdownSandbox ends it. containerd sends
    /// Shutdown after it deleted the container, or could not create it.
    ///
    /// # Errors
    /// If the sandbox cannot be stopped.
    pub async fn shut_down(&self, tasks: &impl Tasks) -> Result<()> {
        let is_unused = self.is_single() || self.pod.phase() == PodPhase::Empty;
        if is_unused && !tasks.has_containers() {
            self.pod.shut_down().await?;
        }
        Ok(())
    }
}

/// Stops a sandbox that is not needed any more. If it fails, Shutdown repeats it.
async fn stop(pod: &Pod) {
    if let Err(error) = pod.stop().await {
        warn!(%error, "cannot stop the sandbox of a container that has ended");
    }
}
