// SPDX-License-Identifier: Apache-2.0
//! The Task API of a sandbox process whose container may have no pod: [`crate::sandbox::Single`] has the picture.
//!
//! A process that is asked for a container before it is asked for a sandbox makes the sandbox itself, stops it when the container
//! has ended, and ends when containerd says Shutdown. In a pod, where all of that is the Sandbox API's, requests pass through.

use super::{not_created, read_bundle};
use crate::error::{Error, Result};
use crate::ids::ContainerId;
use crate::sandbox::{Pod, PodPhase, PodRequest};
use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::Task;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, warn};
use ttrpc::Result as Answer;
use ttrpc::asynchronous::TtrpcContext;

/// What serves the Task API, and knows what becomes of its containers.
pub trait Tasks: Task + Send + Sync + 'static {
    /// Whether there is a container.
    fn has_containers(&self) -> bool;

    /// Waits until a container's first process has ended, and what it has written has been passed on. Cancel-safe. Does not wait
    /// for a container that is not there.
    fn ended(&self, container: &ContainerId) -> impl Future<Output = ()> + Send;
}

/// The Task API of one sandbox process.
#[derive(Debug)]
pub struct SingleTasks<T> {
    tasks: Arc<T>,
    pod: Pod,
    background: TaskTracker,
    /// Whether the sandbox was made for a container without a pod.
    is_single: AtomicBool,
}

impl<T: Tasks> SingleTasks<T> {
    /// Serves `tasks` for `pod`, which nobody has asked for yet. What waits for a container's end is one of `background`.
    pub fn new(tasks: T, pod: Pod, background: TaskTracker) -> Self {
        Self { tasks: Arc::new(tasks), pod, background, is_single: AtomicBool::new(false) }
    }

    fn is_single(&self) -> bool {
        self.is_single.load(Ordering::Relaxed)
    }

    async fn make_sandbox(&self, req: &api::CreateTaskRequest) -> Result<()> {
        let container = ContainerId::parse(req.id.clone())?;
        let bundle = Path::new(&req.bundle);
        let request = PodRequest::of_single(container, bundle, &read_bundle(bundle)?)?;
        info!(container = req.id, "a container without a pod gets a sandbox of its own");
        self.is_single.store(true, Ordering::Relaxed);
        self.pod.create(request).await.map_err(|e| Error::new(e.code(), format!("cannot create container {}: {e}", req.id)))
    }

    async fn start_sandbox(&self, container: String) -> Result<()> {
        let container = ContainerId::parse(container)?;
        self.pod.start().await.map_err(|e| Error::new(e.code(), format!("cannot start container {container}: {e}")))?;
        let (tasks, pod) = (self.tasks.clone(), self.pod.clone());
        let stop = async move {
            tasks.ended(&container).await;
            stop(&pod).await;
        };
        self.background.spawn(stop.in_current_span());
        Ok(())
    }
}

/// Stops a sandbox that nobody needs any more. What fails is tried again at Shutdown.
async fn stop(pod: &Pod) {
    if let Err(error) = pod.stop().await {
        warn!(%error, "cannot stop the sandbox of a container that has ended");
    }
}

#[async_trait]
impl<T: Tasks> Task for SingleTasks<T> {
    async fn create(&self, ctx: &TtrpcContext, req: api::CreateTaskRequest) -> Answer<api::CreateTaskResponse> {
        if self.pod.phase() == PodPhase::Empty {
            self.make_sandbox(&req).await.map_err(not_created)?;
        }
        let created = self.tasks.create(ctx, req).await;
        if created.is_err() && self.is_single() && !self.tasks.has_containers() {
            stop(&self.pod).await;
        }
        created
    }

    async fn start(&self, ctx: &TtrpcContext, req: api::StartRequest) -> Answer<api::StartResponse> {
        if self.is_single() && req.exec_id.is_empty() && self.pod.phase() == PodPhase::Created {
            self.start_sandbox(req.id.clone()).await?;
        }
        self.tasks.start(ctx, req).await
    }

    /// In a pod, ShutdownSandbox ends the process. A process without one ends with its container: containerd asks for it when it
    /// has deleted the container, or could not create it.
    async fn shutdown(&self, ctx: &TtrpcContext, req: api::ShutdownRequest) -> Answer<api::Empty> {
        let is_unused = self.is_single() || self.pod.phase() == PodPhase::Empty;
        if is_unused && !self.tasks.has_containers() {
            self.pod.shut_down().await?;
        }
        self.tasks.shutdown(ctx, req).await
    }

    async fn state(&self, ctx: &TtrpcContext, req: api::StateRequest) -> Answer<api::StateResponse> {
        self.tasks.state(ctx, req).await
    }

    async fn delete(&self, ctx: &TtrpcContext, req: api::DeleteRequest) -> Answer<api::DeleteResponse> {
        self.tasks.delete(ctx, req).await
    }

    async fn pids(&self, ctx: &TtrpcContext, req: api::PidsRequest) -> Answer<api::PidsResponse> {
        self.tasks.pids(ctx, req).await
    }

    async fn pause(&self, ctx: &TtrpcContext, req: api::PauseRequest) -> Answer<api::Empty> {
        self.tasks.pause(ctx, req).await
    }

    async fn resume(&self, ctx: &TtrpcContext, req: api::ResumeRequest) -> Answer<api::Empty> {
        self.tasks.resume(ctx, req).await
    }

    async fn checkpoint(&self, ctx: &TtrpcContext, req: api::CheckpointTaskRequest) -> Answer<api::Empty> {
        self.tasks.checkpoint(ctx, req).await
    }

    async fn kill(&self, ctx: &TtrpcContext, req: api::KillRequest) -> Answer<api::Empty> {
        self.tasks.kill(ctx, req).await
    }

    async fn exec(&self, ctx: &TtrpcContext, req: api::ExecProcessRequest) -> Answer<api::Empty> {
        self.tasks.exec(ctx, req).await
    }

    async fn resize_pty(&self, ctx: &TtrpcContext, req: api::ResizePtyRequest) -> Answer<api::Empty> {
        self.tasks.resize_pty(ctx, req).await
    }

    async fn close_io(&self, ctx: &TtrpcContext, req: api::CloseIORequest) -> Answer<api::Empty> {
        self.tasks.close_io(ctx, req).await
    }

    async fn update(&self, ctx: &TtrpcContext, req: api::UpdateTaskRequest) -> Answer<api::Empty> {
        self.tasks.update(ctx, req).await
    }

    async fn wait(&self, ctx: &TtrpcContext, req: api::WaitRequest) -> Answer<api::WaitResponse> {
        self.tasks.wait(ctx, req).await
    }

    async fn stats(&self, ctx: &TtrpcContext, req: api::StatsRequest) -> Answer<api::StatsResponse> {
        self.tasks.stats(ctx, req).await
    }

    async fn connect(&self, ctx: &TtrpcContext, req: api::ConnectRequest) -> Answer<api::ConnectResponse> {
        self.tasks.connect(ctx, req).await
    }
}
