// SPDX-License-Identifier: Apache-2.0
//! Serves containerd's sandbox Controller over gRPC. gRPC's types and metadata are not used beyond
//! this module.

#![allow(clippy::result_large_err, reason = "tonic's Status is large, and its generated trait names it in every signature")]

use super::pod::Pod;
use super::pods::Pods;
use super::wire::NAMESPACE;
use super::wire::{self, StartResponse};
use crate::options;
use containerd_client::services::v1::sandbox::*;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::SandboxClient;
use magnetar_core::config::HandlerConfig;
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::sandbox::update;
use std::path::{Path, PathBuf};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, async_trait};
use tracing::{debug, warn};
use ttrpc::context::Context;

/// The server's skeleton, which build.rs generates.
mod generated {
    #![allow(missing_docs, clippy::all, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/containerd.services.sandbox.v1.Controller.rs"));
}

use generated::controller_server::Controller;
pub use generated::controller_server::ControllerServer;

/// Serves the Controller.
#[derive(Debug)]
pub struct Front {
    pods: Pods,
    config_dir: PathBuf,
}

impl Front {
    /// Serves these pods; `config_dir` has the options of handlers.
    pub fn new(pods: Pods, config_dir: PathBuf) -> Self {
        Self { pods, config_dir }
    }

    fn pod(&self, metadata: &MetadataMap, id: &str) -> Result<Pod> {
        let namespace = metadata.get(NAMESPACE).ok_or_else(|| Error::invalid(format!("the request has no {NAMESPACE} in its metadata")))?;
        let namespace = namespace.to_str().map_err(|_| Error::invalid(format!("{NAMESPACE} is not a name")))?;
        self.pods.pod(namespace, id)
    }
}

/// Turns an outcome into the answer to a call. Failed calls are logged here and nowhere else.
fn answer<T>(call: &'static str, id: &str, outcome: Result<T>) -> Result<Response<T>, Status> {
    match outcome {
        Ok(response) => {
            debug!(sandbox = id, call, "done");
            Ok(Response::new(response))
        }
        Err(error) => {
            match error.code() {
                // containerd routinely asks for pods that are gone.
                Code::NotFound => debug!(sandbox = id, call, %error, "refused"),
                code => warn!(sandbox = id, call, ?code, %error, "failed"),
            }
            Err(wire::status(&error))
        }
    }
}

#[async_trait]
impl Controller for Front {
    async fn create(&self, request: Request<ControllerCreateRequest>) -> Result<Response<ControllerCreateResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let id = request.sandbox_id.clone();
        let outcome = async {
            let pod = self.pod(&metadata, &id)?;
            let config = config(&self.config_dir, &request)?;
            self.pods.create(&pod, config, wire::create_request(request)).await?;
            Ok(ControllerCreateResponse { sandbox_id: id.clone() })
        };
        answer("Create", &id, outcome.await)
    }

    async fn start(&self, request: Request<ControllerStartRequest>) -> Result<Response<StartResponse>, Status> {
        let (metadata, _, ControllerStartRequest { sandbox_id: id, .. }) = request.into_parts();
        let outcome = async {
            let pod = self.pod(&metadata, &id)?;
            let response = self.pods.start(&pod).await?;
            Ok(wire::start_response(&pod.dir.socket(), &id, response))
        };
        answer("Start", &id, outcome.await)
    }

    async fn platform(&self, request: Request<ControllerPlatformRequest>) -> Result<Response<ControllerPlatformResponse>, Status> {
        let (metadata, _, ControllerPlatformRequest { sandbox_id: id, .. }) = request.into_parts();
        let outcome = async {
            let asked = api::PlatformRequest { sandbox_id: id.clone(), ..Default::default() };
            let pod = self.pod(&metadata, &id)?;
            self.pods
                .ask(&pod, async |client: SandboxClient| client.platform(Context::default(), &asked).await)
                .await
                .map(wire::platform_response)
        };
        answer("Platform", &id, outcome.await)
    }

    async fn stop(&self, request: Request<ControllerStopRequest>) -> Result<Response<ControllerStopResponse>, Status> {
        let (metadata, _, ControllerStopRequest { sandbox_id: id, timeout_secs, .. }) = request.into_parts();
        let outcome = async {
            let asked = api::StopSandboxRequest { sandbox_id: id.clone(), timeout_secs, ..Default::default() };
            let pod = self.pod(&metadata, &id)?;
            self.pods.ask(&pod, async |client: SandboxClient| client.stop_sandbox(Context::default(), &asked).await).await?;
            Ok(ControllerStopResponse {})
        };
        answer("Stop", &id, outcome.await)
    }

    async fn wait(&self, request: Request<ControllerWaitRequest>) -> Result<Response<ControllerWaitResponse>, Status> {
        let (metadata, _, ControllerWaitRequest { sandbox_id: id, .. }) = request.into_parts();
        let outcome = async {
            let pod = self.pod(&metadata, &id)?;
            Ok(self.pods.wait(&pod).await?.map_or_else(wire::killed, wire::wait_response))
        };
        answer("Wait", &id, outcome.await)
    }

    /// On `NotFound`, the CRI plugin shows the pod as not ready, without a reason. If the pod's
    /// process was lost, the reason is known here, so it is answered instead.
    async fn status(&self, request: Request<ControllerStatusRequest>) -> Result<Response<ControllerStatusResponse>, Status> {
        let (metadata, _, ControllerStatusRequest { sandbox_id: id, verbose, .. }) = request.into_parts();
        let outcome = async {
            let asked = api::SandboxStatusRequest { sandbox_id: id.clone(), verbose, ..Default::default() };
            let pod = self.pod(&metadata, &id)?;
            let response = self.pods.ask(&pod, async |client: SandboxClient| client.sandbox_status(Context::default(), &asked).await).await;
            match response {
                Ok(response) => Ok(wire::status_response(&pod.dir.socket(), response)),
                Err(error) if error.code() == Code::NotFound => {
                    self.pods.end_of(&pod).map(|end| wire::lost_response(&pod.dir.socket(), &id, &end)).ok_or(error)
                }
                Err(error) => Err(error),
            }
        };
        answer("Status", &id, outcome.await)
    }

    async fn shutdown(&self, request: Request<ControllerShutdownRequest>) -> Result<Response<ControllerShutdownResponse>, Status> {
        let (metadata, _, ControllerShutdownRequest { sandbox_id: id, .. }) = request.into_parts();
        let outcome = async {
            let pod = self.pod(&metadata, &id)?;
            self.pods.shut_down(&pod).await?;
            Ok(ControllerShutdownResponse {})
        };
        answer("Shutdown", &id, outcome.await)
    }

    async fn metrics(&self, request: Request<ControllerMetricsRequest>) -> Result<Response<ControllerMetricsResponse>, Status> {
        let (metadata, _, ControllerMetricsRequest { sandbox_id: id, .. }) = request.into_parts();
        let outcome = async {
            let asked = api::SandboxMetricsRequest { sandbox_id: id.clone(), ..Default::default() };
            let pod = self.pod(&metadata, &id)?;
            self.pods
                .ask(&pod, async |client: SandboxClient| client.sandbox_metrics(Context::default(), &asked).await)
                .await
                .map(wire::metrics_response)
        };
        answer("Metrics", &id, outcome.await)
    }

    /// containerd passes pod-level resizes here, after the kubelet has changed the pod's cgroup.
    async fn update(&self, request: Request<ControllerUpdateRequest>) -> Result<Response<ControllerUpdateResponse>, Status> {
        let (metadata, _, ControllerUpdateRequest { sandbox_id: id, fields, sandbox, .. }) = request.into_parts();
        let outcome = async {
            let pod = self.pod(&metadata, &id)?;
            let extensions = sandbox.unwrap_or_default().extensions.into_iter().map(|(name, any)| (name, (any.type_url, any.value)));
            self.pods.update(&pod, update::request(&pod.id, extensions, fields)).await?;
            Ok(ControllerUpdateResponse {})
        };
        answer("Update", &id, outcome.await)
    }
}

/// The options of a new sandbox's handler.
fn config(config_dir: &Path, request: &ControllerCreateRequest) -> Result<HandlerConfig> {
    let runtime = request.sandbox.as_ref().and_then(|sandbox| sandbox.runtime.as_ref());
    let options = runtime.and_then(|runtime| runtime.options.as_ref());
    if let Some(config) = options.map_or(Ok(None), |any| options::decode(&any.type_url, &any.value))? {
        return Ok(config);
    }
    let named = options::kind_of_sandboxer(&request.sandboxer)?;
    let kind = named.or_else(|| runtime.and_then(|runtime| options::kind_of_runtime(&runtime.name)));
    options::of_kind(config_dir, kind.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Places;
    use crate::serve::unwanted::Rhythm;
    use containerd_client::types::Sandbox;
    use containerd_client::types::sandbox::Runtime;

    #[test]
    fn options_override_the_sandboxer_s_name_which_overrides_the_runtime_s() {
        let folder = tempfile::tempdir().unwrap();
        let asked = |options: Option<&[u8]>, sandboxer: &str| {
            let any = |value: &[u8]| prost_types::Any { type_url: "runtimeoptions.v1.Options".into(), value: value.into() };
            let runtime = Runtime { name: "io.containerd.magnetar-third.v2".into(), options: options.map(any) };
            let sandbox = Some(Sandbox { runtime: Some(runtime), ..Default::default() });
            let request = ControllerCreateRequest { sandbox, sandboxer: sandboxer.into(), ..Default::default() };
            config(folder.path(), &request).map(|config| config.sandboxer)
        };
        let body = b"\x1a\x13sandboxer = \"first\"";
        assert_eq!(asked(Some(body), "magnetar-second").unwrap(), "first");
        assert_eq!(asked(Some(b""), "magnetar-second").unwrap(), "second");
        assert_eq!(asked(None, "magnetar").unwrap(), "third");
        assert_eq!(asked(None, "other").unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(config(folder.path(), &ControllerCreateRequest::default()).unwrap(), HandlerConfig::default());
    }

    #[test]
    fn a_request_must_name_a_namespace_and_a_pod() {
        let front = Front::new(Pods::new("/nonexistent".into(), Places::new(None), Rhythm::default()), "/nonexistent".into());
        let mut metadata = MetadataMap::new();
        assert!(front.pod(&metadata, "a").unwrap_err().to_string().contains(NAMESPACE));
        metadata.insert(NAMESPACE, "../x".parse().unwrap());
        assert_eq!(front.pod(&metadata, "a").unwrap_err().code(), Code::InvalidArgument);
        metadata.insert(NAMESPACE, "k8s.io".parse().unwrap());
        assert_eq!(front.pod(&metadata, "a/b").unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(front.pod(&metadata, "a").unwrap().dir.path(), std::path::Path::new("/nonexistent/k8s.io/a"));
    }
}
