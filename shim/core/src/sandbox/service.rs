// SPDX-License-Identifier: Apache-2.0
//! The Sandbox API (`containerd.runtime.sandbox.v1`) over ttrpc. Wire types stop here.

use super::update::Update;
use super::{Pod, PodPhase, PodRequest, info};
use crate::error::{Error, Result};
use crate::ids::SandboxId;
use crate::pod_config::PodConfig;
use crate::record::PodDir;
use crate::task::metrics_message;
use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tracing::debug;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// containerd's name for the state of a ready pod, which is the CRI's.
const READY: &str = "SANDBOX_READY";

/// The name for every other state.
pub const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The type of an OCI specification. containerd expects one for every sandbox, logs an error
/// without it, and shows its namespaces to NRI plugins. A pod has no process of its own, so ours
/// only has what its containers will share.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Serves the Sandbox API for one pod.
#[derive(Debug)]
pub struct SandboxService {
    id: SandboxId,
    dir: PodDir,
    pod: Pod,
}

impl SandboxService {
    /// Serves `pod` under its name; `dir` is the pod's own.
    pub fn new(id: SandboxId, dir: PodDir, pod: Pod) -> Self {
        Self { id, dir, pod }
    }

    /// Adds this service to a server.
    pub fn register(self, server: Server) -> Server {
        let update = Update { id: self.id.clone(), dir: self.dir.clone(), pod: self.pod.clone() };
        let mut services = create_sandbox(Arc::new(self));
        update.register(&mut services);
        server.register_service(services)
    }

    /// Refuses a request for another pod.
    fn check(&self, id: &str) -> Result<()> {
        if id == self.id.as_str() {
            return Ok(());
        }
        Err(Error::not_found(format!("this process serves sandbox {}, not {id:?}", self.id)))
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(&self, _ctx: &TtrpcContext, req: api::CreateSandboxRequest) -> ttrpc::Result<api::CreateSandboxResponse> {
        self.check(&req.sandbox_id)?;
        debug!(netns = req.netns_path, "CreateSandbox");
        let config = match req.options.as_ref() {
            Some(any) if !any.type_url.is_empty() => PodConfig::decode(&any.type_url, &any.value)?,
            _ => PodConfig::default(),
        };
        let netns = (!req.netns_path.is_empty()).then(|| PathBuf::from(&req.netns_path));
        let request = PodRequest { config, netns, single: None };
        info::save(&self.dir, &self.id, &request)?;
        self.pod.create(request).await?;
        Ok(api::CreateSandboxResponse::new())
    }

    async fn start_sandbox(&self, _ctx: &TtrpcContext, req: api::StartSandboxRequest) -> ttrpc::Result<api::StartSandboxResponse> {
        self.check(&req.sandbox_id)?;
        let pid = self.pod.start().await?;
        let since = match self.pod.phase() {
            PodPhase::Ready { since, .. } => since,
            PodPhase::Empty | PodPhase::Created | PodPhase::Stopped { .. } => SystemTime::now(),
        };
        let spec = Any { type_url: SPEC.into(), value: info::spec_of(&self.dir, pid), ..Default::default() };
        Ok(api::StartSandboxResponse {
            pid,
            created_at: MessageField::some(since.into()),
            spec: MessageField::some(spec),
            ..Default::default()
        })
    }

    async fn platform(&self, _ctx: &TtrpcContext, req: api::PlatformRequest) -> ttrpc::Result<api::PlatformResponse> {
        self.check(&req.sandbox_id)?;
        let mut response = api::PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".into();
        // The names of Go's GOARCH, which the OCI image specification uses.
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .into();
        Ok(response)
    }

    async fn stop_sandbox(&self, _ctx: &TtrpcContext, req: api::StopSandboxRequest) -> ttrpc::Result<api::StopSandboxResponse> {
        self.check(&req.sandbox_id)?;
        debug!("StopSandbox");
        self.pod.stop().await?;
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(&self, _ctx: &TtrpcContext, req: api::WaitSandboxRequest) -> ttrpc::Result<api::WaitSandboxResponse> {
        self.check(&req.sandbox_id)?;
        let exit = self.pod.exit().await;
        Ok(api::WaitSandboxResponse { exit_status: exit.code, exited_at: MessageField::some(exit.at.into()), ..Default::default() })
    }

    async fn sandbox_status(&self, _ctx: &TtrpcContext, req: api::SandboxStatusRequest) -> ttrpc::Result<api::SandboxStatusResponse> {
        self.check(&req.sandbox_id)?;
        let mut response = api::SandboxStatusResponse { sandbox_id: req.sandbox_id, state: NOT_READY.into(), ..Default::default() };
        match self.pod.phase() {
            PodPhase::Empty | PodPhase::Created => {}
            PodPhase::Ready { pid, since } => {
                response.pid = pid;
                response.state = READY.into();
                response.created_at = MessageField::some(since.into());
            }
            PodPhase::Stopped { since, exit } => {
                response.created_at = MessageField::some(since.into());
                response.exited_at = MessageField::some(exit.at.into());
            }
        }
        if req.verbose {
            response.info = self.info(response.pid);
        }
        Ok(response)
    }

    async fn ping_sandbox(&self, _ctx: &TtrpcContext, req: api::PingRequest) -> ttrpc::Result<api::PingResponse> {
        self.check(&req.sandbox_id)?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(&self, _ctx: &TtrpcContext, req: api::ShutdownSandboxRequest) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        self.check(&req.sandbox_id)?;
        debug!("ShutdownSandbox");
        self.pod.shut_down().await?;
        Ok(api::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(&self, _ctx: &TtrpcContext, req: api::SandboxMetricsRequest) -> ttrpc::Result<api::SandboxMetricsResponse> {
        self.check(&req.sandbox_id)?;
        let metrics = self.pod.metrics().await?;
        let mut response = api::SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = MessageField::some(SystemTime::now().into());
        metric.id = req.sandbox_id;
        metric.data = MessageField::some(metrics_message(metrics));
        Ok(response)
    }
}

impl SandboxService {
    /// The information that `crictl inspectp` shows.
    fn info(&self, pid: u32) -> HashMap<String, String> {
        info::shown(&info::load(&self.dir, pid, self.pod.reason().as_deref()))
    }
}
