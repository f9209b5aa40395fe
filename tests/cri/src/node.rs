// SPDX-License-Identifier: Apache-2.0
//! A connection to one node's containerd.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use k8s_cri::v1::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{Error, Pod, PodSpec, Result, resize};

/// ExecSync answers carry up to 16 MiB of each of stdout and stderr.
const LARGEST_ANSWER: usize = 34 << 20;

type Runtime = RuntimeServiceClient<Channel>;
type Images = ImageServiceClient<Channel>;

/// One node: containerd's runtime and image services. Clones share the connection and the
/// list of leftovers.
#[derive(Clone, Debug)]
pub struct Node {
    channel: Channel,
    deadline: Duration,
    open: Arc<Mutex<BTreeSet<String>>>,
}

impl Node {
    /// Connects to containerd's socket. No call waits longer than `deadline` for its answer.
    pub async fn connect(socket: impl Into<PathBuf>, deadline: Duration) -> Result<Self> {
        let path: PathBuf = socket.into();
        let target = path.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let target = target.clone();
            async move { UnixStream::connect(target).await.map(TokioIo::new) }
        });
        // The address is never resolved: the connector knows where to go.
        let channel = Endpoint::from_static("http://node")
            .connect_with_connector(connector)
            .await
            .map_err(|source| Error::Connect { path, source })?;
        Ok(Self { channel, deadline, open: Arc::default() })
    }

    /// How long a call waits for its answer.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// RunPodSandbox: the pod is ready when this returns.
    pub async fn run_pod(&self, spec: &PodSpec) -> Result<Pod> {
        let config = spec.config().clone();
        let logs = PathBuf::from(&config.log_directory);
        std::fs::create_dir_all(&logs).map_err(|source| Error::File { path: logs.clone(), source })?;
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: spec.handler().to_owned() };
        let answer = self.runtime("RunPodSandbox", request, async |mut c, r| c.run_pod_sandbox(r).await).await;
        match answer {
            Ok(answer) => {
                self.opened(&answer.pod_sandbox_id);
                Ok(Pod::new(self.clone(), answer.pod_sandbox_id, config))
            }
            Err(error) => {
                remove_logs(&logs)?;
                Err(error)
            }
        }
    }

    /// All pods that containerd knows, in any state.
    pub async fn pods(&self) -> Result<Vec<v1::PodSandbox>> {
        let request = v1::ListPodSandboxRequest::default();
        let answer = self.runtime("ListPodSandbox", request, async |mut c, r| c.list_pod_sandbox(r).await).await?;
        Ok(answer.items)
    }

    /// All containers that containerd knows, in any state.
    pub async fn containers(&self) -> Result<Vec<v1::Container>> {
        let request = v1::ListContainersRequest::default();
        let answer = self.runtime("ListContainers", request, async |mut c, r| c.list_containers(r).await).await?;
        Ok(answer.containers)
    }

    /// Metrics of every container that runs.
    pub async fn container_stats(&self) -> Result<Vec<v1::ContainerStats>> {
        let request = v1::ListContainerStatsRequest::default();
        let answer = self.runtime("ListContainerStats", request, async |mut c, r| c.list_container_stats(r).await).await?;
        Ok(answer.stats)
    }

    /// Metrics of every pod that containerd knows.
    pub async fn pod_stats(&self) -> Result<Vec<v1::PodSandboxStats>> {
        let request = v1::ListPodSandboxStatsRequest::default();
        let answer = self.runtime("ListPodSandboxStats", request, async |mut c, r| c.list_pod_sandbox_stats(r).await).await?;
        Ok(answer.stats)
    }

    /// The state of the runtime and the handlers it was configured with.
    pub async fn status(&self) -> Result<v1::StatusResponse> {
        let request = v1::StatusRequest { verbose: true };
        self.runtime("Status", request, async |mut c, r| c.status(r).await).await
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<v1::VersionResponse> {
        let request = v1::VersionRequest { version: "v1".to_owned() };
        self.runtime("Version", request, async |mut c, r| c.version(r).await).await
    }

    /// containerd's data about an image, `None` if it is not on the node.
    pub async fn image(&self, name: &str) -> Result<Option<v1::Image>> {
        let request =
            v1::ImageStatusRequest { image: Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() }), verbose: false };
        let answer = self.images("ImageStatus", request, async |mut c, r| c.image_status(r).await).await?;
        Ok(answer.image)
    }

    /// PullImage: the image is on the node, in its newest form, when this returns.
    pub async fn pull(&self, name: &str) -> Result<()> {
        let request =
            v1::PullImageRequest { image: Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() }), ..Default::default() };
        self.images("PullImage", request, async |mut c, r| c.pull_image(r).await).await?;
        Ok(())
    }

    /// containerd's stream of container events, from now on.
    pub async fn events(&self) -> Result<tonic::Streaming<v1::ContainerEventResponse>> {
        self.runtime("GetContainerEvents", v1::GetEventsRequest {}, async |mut c, r| c.get_container_events(r).await).await
    }

    /// The state of a pod by its id. Any client may have made it.
    pub async fn pod_state(&self, id: &str) -> Result<v1::PodSandboxState> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime("PodSandboxStatus", request, async |mut c, r| c.pod_sandbox_status(r).await).await?;
        let state = answer.status.and_then(|status| v1::PodSandboxState::try_from(status.state).ok());
        state.ok_or(Error::Incomplete { call: "PodSandboxStatus", what: "state" })
    }

    /// Removes a container by its id. Any client may have made it. An unknown id is no error.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime("RemoveContainer", request, async |mut c, r| c.remove_container(r).await).await?;
        Ok(())
    }

    /// Stops and removes a pod by its id. Any client may have made it. An unknown id is no error.
    pub async fn remove_pod(&self, id: &str) -> Result<()> {
        self.stop_pod(id).await?;
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime("RemovePodSandbox", request, async |mut c, r| c.remove_pod_sandbox(r).await).await?;
        self.closed(id);
        Ok(())
    }

    /// StopPodSandbox by id.
    pub(crate) async fn stop_pod(&self, id: &str) -> Result<()> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime("StopPodSandbox", request, async |mut c, r| c.stop_pod_sandbox(r).await).await?;
        Ok(())
    }

    /// Ids of the pods that were made through this connection and not removed yet.
    pub fn leftovers(&self) -> Vec<String> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn opened(&self, id: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
    }

    fn closed(&self, id: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Whether containerd has the call that resizes pods. No pod has this id.
    pub async fn can_resize_pods(&self) -> Result<bool> {
        let request = resize::Request { pod_sandbox_id: "none".to_owned(), ..Default::default() };
        let channel = self.channel();
        match self.runtime("UpdatePodSandboxResources", request, async |_, r| resize::send(channel, r).await).await {
            Err(error) if error.code() == Some(tonic::Code::Unimplemented) => Ok(false),
            Err(error) if error.code() == Some(tonic::Code::NotFound) => Ok(true),
            Err(error) => Err(error),
            Ok(_) => Ok(true),
        }
    }

    /// One call of the runtime service under this node's deadline.
    pub(crate) async fn runtime<Q, A>(
        &self,
        call: &'static str,
        message: Q,
        send: impl AsyncFnOnce(Runtime, tonic::Request<Q>) -> std::result::Result<tonic::Response<A>, tonic::Status>,
    ) -> Result<A> {
        self.runtime_within(self.deadline, call, message, send).await
    }

    /// One call of the runtime service under the caller's deadline.
    pub(crate) async fn runtime_within<Q, A>(
        &self,
        deadline: Duration,
        call: &'static str,
        message: Q,
        send: impl AsyncFnOnce(Runtime, tonic::Request<Q>) -> std::result::Result<tonic::Response<A>, tonic::Status>,
    ) -> Result<A> {
        let client = Runtime::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER).max_encoding_message_size(LARGEST_ANSWER);
        answered(deadline, call, send(client, tonic::Request::new(message))).await
    }

    async fn images<Q, A>(
        &self,
        call: &'static str,
        message: Q,
        send: impl AsyncFnOnce(Images, tonic::Request<Q>) -> std::result::Result<tonic::Response<A>, tonic::Status>,
    ) -> Result<A> {
        let client = Images::new(self.channel.clone());
        answered(self.deadline, call, send(client, tonic::Request::new(message))).await
    }
}

/// Removes a pod's folder of logs. It is no error if it is gone already.
pub(crate) fn remove_logs(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::File { path: path.to_owned(), source }),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn answered<A>(
    deadline: Duration,
    call: &'static str,
    answer: impl Future<Output = std::result::Result<tonic::Response<A>, tonic::Status>>,
) -> Result<A> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Error::Call { call, status: Box::new(status) }),
        Err(_) => Err(Error::Deadline { call, after: deadline }),
    }
}
