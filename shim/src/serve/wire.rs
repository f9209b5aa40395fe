// SPDX-License-Identifier: Apache-2.0
//! Converts between containerd's gRPC messages (prost) and the sandbox process's ttrpc messages
//! (rust-protobuf). Only the form changes here, never the meaning.

use super::lost::End;
use containerd_client::services::v1::sandbox as grpc;
use containerd_client::types;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::sandbox_api as ttrpc_api;
use containerd_shim_protos::types::mount::Mount;
use magnetar_core::error::{Code, Error};
use magnetar_core::sandbox::NOT_READY;
use std::collections::HashMap;
use std::path::Path;
use std::time::SystemTime;

/// The metadata key with which every client of containerd names its namespace.
pub const NAMESPACE: &str = "containerd-namespace";

/// The version of the Task API that a sandbox process serves.
const TASK_API_VERSION: u32 = containerd_shim_protos::TASK_API_VERSION as u32;

/// `ControllerStartResponse` with the field that containerd 2.3 added.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartResponse {
    /// The pod.
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    /// The process whose namespaces containers join.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// When it became ready.
    #[prost(message, optional, tag = "3")]
    pub created_at: Option<prost_types::Timestamp>,
    /// Labels of the sandbox.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
    /// The address of its Task API.
    #[prost(string, tag = "5")]
    pub address: String,
    /// The version of that Task API.
    #[prost(uint32, tag = "6")]
    pub version: u32,
    /// Its OCI specification. containerd 2.3 logs an error for a pod that has none.
    #[prost(message, optional, tag = "7")]
    pub spec: Option<prost_types::Any>,
}

/// The address of a Task API, in the form that containerd expects.
pub fn address(socket: &Path) -> String {
    format!("ttrpc+unix://{}", socket.display())
}

/// The Create request for the sandbox process.
pub fn create_request(request: grpc::ControllerCreateRequest) -> ttrpc_api::CreateSandboxRequest {
    ttrpc_api::CreateSandboxRequest {
        sandbox_id: request.sandbox_id,
        rootfs: request.rootfs.into_iter().map(mount).collect(),
        options: request.options.map(any).into(),
        netns_path: request.netns_path,
        annotations: request.annotations,
        ..Default::default()
    }
}

/// The answer to Start.
pub fn start_response(socket: &Path, id: &str, response: ttrpc_api::StartSandboxResponse) -> StartResponse {
    let spec = response.spec.into_option().filter(|spec| !spec.type_url.is_empty()).unwrap_or_else(|| Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
        value: br#"{"ociVersion":"1.2.0"}"#.to_vec(),
        ..Default::default()
    });
    StartResponse {
        sandbox_id: id.into(),
        pid: response.pid,
        created_at: Some(response.created_at.into_option().map_or_else(|| SystemTime::now().into(), timestamp)),
        labels: HashMap::new(),
        address: address(socket),
        version: TASK_API_VERSION,
        spec: Some(any_back(spec)),
    }
}

/// The answer to Status.
pub fn status_response(socket: &Path, response: ttrpc_api::SandboxStatusResponse) -> grpc::ControllerStatusResponse {
    grpc::ControllerStatusResponse {
        sandbox_id: response.sandbox_id,
        pid: response.pid,
        state: response.state,
        info: response.info,
        created_at: response.created_at.into_option().map(timestamp),
        exited_at: response.exited_at.into_option().map(timestamp),
        extra: response.extra.into_option().map(any_back),
        address: address(socket),
        version: TASK_API_VERSION,
    }
}

/// The answer to Status for a pod whose process was lost.
pub fn lost_response(socket: &Path, id: &str, end: &End) -> grpc::ControllerStatusResponse {
    let info = serde_json::json!({ "pid": 0, "reason": end.reason, "version": env!("CARGO_PKG_VERSION") });
    grpc::ControllerStatusResponse {
        sandbox_id: id.into(),
        pid: 0,
        state: NOT_READY.into(),
        // `crictl inspectp` shows this.
        info: magnetar_core::sandbox::shown(&info),
        created_at: Some(end.since.into()),
        exited_at: Some(end.at.into()),
        extra: None,
        address: address(socket),
        version: TASK_API_VERSION,
    }
}

/// The answer to Platform.
pub fn platform_response(response: ttrpc_api::PlatformResponse) -> grpc::ControllerPlatformResponse {
    let platform = response.platform.into_option().map(|platform| types::Platform {
        os: platform.os,
        architecture: platform.architecture,
        variant: platform.variant,
        ..Default::default()
    });
    grpc::ControllerPlatformResponse { platform }
}

/// The answer to Wait.
pub fn wait_response(response: ttrpc_api::WaitSandboxResponse) -> grpc::ControllerWaitResponse {
    let exited_at = response.exited_at.into_option().map_or_else(|| SystemTime::now().into(), timestamp);
    grpc::ControllerWaitResponse { exit_status: response.exit_status, exited_at: Some(exited_at) }
}

/// The answer to Wait for a pod whose process was killed.
pub fn killed() -> grpc::ControllerWaitResponse {
    grpc::ControllerWaitResponse { exit_status: 137, exited_at: Some(SystemTime::now().into()) }
}

/// The answer to Metrics.
pub fn metrics_response(response: ttrpc_api::SandboxMetricsResponse) -> grpc::ControllerMetricsResponse {
    let metrics = response.metrics.into_option().map(|metric| types::Metric {
        timestamp: metric.timestamp.into_option().map(timestamp),
        id: metric.id,
        data: metric.data.into_option().map(any_back),
    });
    grpc::ControllerMetricsResponse { metrics }
}

/// The gRPC status of an error.
pub fn status(error: &Error) -> tonic::Status {
    let code = match error.code() {
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::NotFound => tonic::Code::NotFound,
        Code::AlreadyExists => tonic::Code::AlreadyExists,
        Code::FailedPrecondition => tonic::Code::FailedPrecondition,
        Code::Unimplemented => tonic::Code::Unimplemented,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::ResourceExhausted => tonic::Code::ResourceExhausted,
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::Internal => tonic::Code::Internal,
    };
    tonic::Status::new(code, error.to_string())
}

fn mount(mount: types::Mount) -> Mount {
    Mount { type_: mount.r#type, source: mount.source, target: mount.target, options: mount.options, ..Default::default() }
}

fn any(any: prost_types::Any) -> Any {
    Any { type_url: any.type_url, value: any.value, ..Default::default() }
}

fn any_back(any: Any) -> prost_types::Any {
    prost_types::Any { type_url: any.type_url, value: any.value }
}

fn timestamp(timestamp: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: timestamp.seconds, nanos: timestamp.nanos }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn every_code_keeps_its_number() {
        for code in [
            Code::InvalidArgument,
            Code::NotFound,
            Code::AlreadyExists,
            Code::FailedPrecondition,
            Code::Unimplemented,
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::ResourceExhausted,
            Code::PermissionDenied,
            Code::Internal,
        ] {
            let error = Error::new(code, "subject: why");
            let status = status(&error);
            // Both protocols take their numbers from google/rpc/code.proto.
            let ttrpc::Error::RpcStatus(over_ttrpc) = ttrpc::Error::from(error) else { panic!("{code:?}") };
            assert_eq!(status.code() as i32, over_ttrpc.code.value(), "{code:?}");
            assert_eq!(status.message(), "subject: why");
        }
    }

    #[test]
    fn a_pod_s_configuration_passes_unchanged() {
        let options = prost_types::Any { type_url: "x/PodSandboxConfig".into(), value: vec![1, 2, 3] };
        let request = create_request(grpc::ControllerCreateRequest {
            sandbox_id: "s".into(),
            options: Some(options),
            netns_path: "/run/netns/x".into(),
            annotations: HashMap::from([("a".to_string(), "b".to_string())]),
            rootfs: vec![types::Mount { r#type: "overlay".into(), options: vec!["ro".into()], ..Default::default() }],
            ..Default::default()
        });
        assert_eq!((request.options.type_url.as_str(), request.options.value.as_slice()), ("x/PodSandboxConfig", &[1u8, 2, 3][..]));
        assert_eq!((request.netns_path.as_str(), request.annotations["a"].as_str()), ("/run/netns/x", "b"));
        assert_eq!((request.rootfs[0].type_.as_str(), request.rootfs[0].options[0].as_str()), ("overlay", "ro"));
        assert!(create_request(grpc::ControllerCreateRequest::default()).options.is_none());
    }

    #[test]
    fn an_older_containerd_reads_our_start_response() {
        let ours =
            start_response(Path::new("/run/magnetar/n/s/task.sock"), "s", ttrpc_api::StartSandboxResponse { pid: 7, ..Default::default() });
        let theirs = grpc::ControllerStartResponse::decode(ours.encode_to_vec().as_slice()).unwrap();
        assert_eq!((theirs.sandbox_id.as_str(), theirs.pid, theirs.version), ("s", 7, 3));
        assert_eq!(theirs.address, "ttrpc+unix:///run/magnetar/n/s/task.sock");
        assert!(theirs.created_at.is_some() && ours.spec.is_some());
    }
}
