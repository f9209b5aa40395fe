// SPDX-License-Identifier: Apache-2.0
//! UpdatePodSandboxResources, which the crate with the CRI's messages does not have yet: the
//! messages are those of the CRI's `api.proto` since Kubernetes 1.33.

use k8s_cri::v1::LinuxContainerResources;
use tonic::{codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

const CALL: &str = "/runtime.v1.RuntimeService/UpdatePodSandboxResources";

/// `message UpdatePodSandboxResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(string, tag = "1")]
    pub(crate) pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) overhead: Option<LinuxContainerResources>,
    #[prost(message, optional, tag = "3")]
    pub(crate) resources: Option<LinuxContainerResources>,
}

/// `message UpdatePodSandboxResourcesResponse`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Response {}

pub(crate) async fn send(channel: Channel, request: tonic::Request<Request>) -> Result<tonic::Response<Response>, tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    client.unary(request, PathAndQuery::from_static(CALL), ProstCodec::default()).await
}
