// SPDX-License-Identifier: Apache-2.0
//! UpdateSandbox of the Sandbox API: new resources for a pod that runs.
//!
//! ```text
//!   kubelet ──cgroup of the pod, then UpdatePodSandboxResources──> containerd ──Update──> serve ─┐
//!                                                                      └──(2.4, as a shim)───────┴─UpdateSandbox─> this
//! ```
//!
//! containerd 2.4 calls it (`api/runtime/sandbox/v1/sandbox.proto`). The crate with containerd's
//! protocols does not have it yet, so the few fields that count are declared here.

use super::{Pod, info};
use crate::error::{Code, Error, Result};
use crate::ids::SandboxId;
use crate::pod_config::Resources;
use crate::record::PodDir;
use async_trait::async_trait;
use prost::Message;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use tracing::debug;
use ttrpc::asynchronous::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::ResponseInit;

/// The Sandbox API's name.
pub const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// The call's name.
pub const METHOD: &str = "UpdateSandbox";

/// The sandbox extension in which containerd puts a resized pod's resources (`UpdatedResourcesKey`
/// in its internal/cri/server/podsandbox).
const RESIZED: &str = "updated-resources";

/// The parts of a sandbox that may change while it runs. Its labels are containerd's own.
const UPDATABLE: [&str; 2] = ["extensions", "labels"];

/// The largest size, in bytes, of a pod's new resources. They are two short lists of numbers.
const MAX_RESIZED: usize = 64 * 1024;

/// `message UpdateSandboxRequest`.
#[derive(Clone, PartialEq, Message)]
struct UpdateSandboxRequest {
    #[prost(string, tag = "1")]
    sandbox_id: String,
    #[prost(message, optional, tag = "4")]
    sandbox: Option<Sandbox>,
    #[prost(string, repeated, tag = "5")]
    fields: Vec<String>,
}

/// `message containerd.types.Sandbox`.
#[derive(Clone, PartialEq, Message)]
struct Sandbox {
    #[prost(map = "string, message", tag = "7")]
    extensions: HashMap<String, Any>,
}

/// `message google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Encodes a request: the fields of a sandbox that have changed, and its extensions, whose values
/// are in protobuf's `Any`.
pub fn request(sandbox: &SandboxId, extensions: impl IntoIterator<Item = (String, (String, Vec<u8>))>, fields: Vec<String>) -> Vec<u8> {
    let any = |(type_url, value)| Any { type_url, value };
    let extensions = extensions.into_iter().map(|(name, value)| (name, any(value))).collect();
    UpdateSandboxRequest { sandbox_id: sandbox.to_string(), sandbox: Some(Sandbox { extensions }), fields }.encode_to_vec()
}

/// Serves the call beside those of [`SandboxService`](super::SandboxService).
pub(super) struct Update {
    pub(super) id: SandboxId,
    pub(super) dir: PodDir,
    pub(super) pod: Pod,
}

impl Update {
    /// Adds the call to the services of a server.
    pub(super) fn register(self, services: &mut HashMap<String, Service>) {
        if let Some(service) = services.get_mut(SERVICE) {
            service.methods.insert(METHOD.to_owned(), Box::new(self));
        }
    }

    async fn update(&self, payload: &[u8]) -> Result<()> {
        let request = UpdateSandboxRequest::decode(payload).map_err(|e| Error::invalid(format!("the update does not parse: {e}")))?;
        if request.sandbox_id != self.id.as_str() {
            return Err(Error::not_found(format!("this process serves sandbox {}, not {:?}", self.id, request.sandbox_id)));
        }
        debug!(fields = ?request.fields, "UpdateSandbox");
        updatable(&request.fields)?;
        let Some(resources) = request.sandbox.and_then(|mut sandbox| sandbox.extensions.remove(RESIZED)) else { return Ok(()) };
        let resized = Resized::parse(&resources.value)?;
        let limits = resized.limits()?;
        self.pod.resize(limits).await.map_err(|error| {
            // As in `updatable`.
            let code = if error.code() == Code::Unimplemented { Code::FailedPrecondition } else { error.code() };
            Error::new(code, format!("pod {} cannot be resized: {error}", self.id))
        })?;
        info::keep_resized(&self.dir, &resized.shown())
    }
}

#[async_trait]
impl MethodHandler for Update {
    async fn handler(&self, _ctx: TtrpcContext, request: ttrpc::Request) -> ttrpc::Result<ttrpc::Response> {
        // An error that is returned would lose its code.
        match self.update(&request.payload).await.map_err(ttrpc::Error::from) {
            Ok(()) => Ok(ttrpc::Response::init_status(ttrpc::get_status(ttrpc::Code::OK, ""))),
            Err(ttrpc::Error::RpcStatus(status)) => Ok(ttrpc::Response::init_status(status)),
            Err(other) => Err(other),
        }
    }
}

/// Checks that these field paths of a sandbox can change while it runs. The error is not
/// Unimplemented, which containerd takes for an update that is done.
fn updatable(fields: &[String]) -> Result<()> {
    let these = UPDATABLE.join(" and ");
    if fields.is_empty() {
        return Err(Error::precondition(format!("name the fields to update: only {these} of a running sandbox can change")));
    }
    match fields.iter().find(|field| !UPDATABLE.contains(&field.split('.').next().unwrap_or_default())) {
        Some(field) => Err(Error::precondition(format!("field {field:?} of a running sandbox cannot change, only {these}"))),
        None => Ok(()),
    }
}

/// The new resources of a resized pod (`UpdatedResources` in containerd's
/// internal/cri/server/podsandbox): the CRI's `LinuxContainerResources`, for the pod's sandbox and
/// for its containers.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Resized {
    overhead: Option<Map<String, Value>>,
    resources: Option<Map<String, Value>>,
}

/// The part of the CRI's `LinuxContainerResources` that a pod can follow. Zero is "not specified".
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Limits {
    cpu_period: u64,
    cpu_quota: i64,
    memory_limit_in_bytes: i64,
    hugepage_limits: Vec<HugepageLimit>,
}

/// `HugepageLimit` of the CRI.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HugepageLimit {
    page_size: String,
    limit: u64,
}

impl Resized {
    fn parse(text: &[u8]) -> Result<Self> {
        let invalid = || Error::invalid(format!("the pod's new resources are no JSON object of at most {MAX_RESIZED} bytes"));
        if text.len() > MAX_RESIZED {
            return Err(invalid());
        }
        serde_json::from_slice(text).map_err(|_| invalid())
    }

    fn limits(&self) -> Result<Resources> {
        let given = Value::Object(self.resources.clone().unwrap_or_default());
        let limits: Limits = serde_json::from_value(given).map_err(|e| Error::invalid(format!("the pod's new resources: {e}")))?;
        Ok(Resources {
            cpu_period: Some(limits.cpu_period).filter(|period| *period != 0),
            cpu_quota: Some(limits.cpu_quota).filter(|quota| *quota != 0),
            memory_limit: Some(limits.memory_limit_in_bytes).filter(|bytes| *bytes != 0),
            hugepage_limits: limits.hugepage_limits.into_iter().map(|limit| (limit.page_size, limit.limit)).collect(),
            ..Resources::default()
        })
    }

    /// As `crictl inspectp` shows it.
    fn shown(&self) -> Value {
        let of_linux = |limits: &Option<Map<String, Value>>| json!({ "linux": limits.clone().unwrap_or_default() });
        json!({ "overhead": of_linux(&self.overhead), "resources": of_linux(&self.resources) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_extensions_and_labels_can_be_updated() {
        let fields = |list: &[&str]| list.iter().map(|field| field.to_string()).collect::<Vec<_>>();
        assert!(updatable(&fields(&["extensions"])).is_ok());
        assert!(updatable(&fields(&["extensions.updated-resources", "labels.a.b"])).is_ok());
        for list in [&["spec"][..], &["extensions", "runtime.options"], &["extensionsx"], &[]] {
            assert_eq!(updatable(&fields(list)).unwrap_err().code(), Code::FailedPrecondition, "{list:?}");
        }
    }

    #[test]
    fn new_resources_are_read_as_containerd_writes_them() {
        let text = br#"{"Overhead": null, "Resources": {"cpu_period": 100000, "cpu_quota": 150000, "cpu_shares": 512,
            "memory_limit_in_bytes": 5, "hugepage_limits": [{"page_size": "2MB", "limit": 4194304}]}}"#;
        let resized = Resized::parse(text).unwrap();
        let limits = resized.limits().unwrap();
        assert_eq!((limits.cpu_period, limits.cpu_quota, limits.memory_limit), (Some(100_000), Some(150_000), Some(5)));
        assert_eq!(limits.hugepage_limits.get("2MB"), Some(&(4 << 20)));
        assert_eq!(resized.shown()["resources"]["linux"]["cpu_shares"], 512);
        assert_eq!(Resized::parse(b"{}").unwrap().limits().unwrap(), Resources::default());
        for bad in [&b"1"[..], b"", b"{\"Resources\": 1}", &[b' '; MAX_RESIZED + 1]] {
            assert_eq!(Resized::parse(bad).unwrap_err().code(), Code::InvalidArgument);
        }
        let odd = Resized::parse(br#"{"Resources": {"cpu_period": -1}}"#).unwrap();
        assert_eq!(odd.limits().unwrap_err().code(), Code::InvalidArgument);
    }
}
