// SPDX-License-Identifier: Apache-2.0
//! A container without a pod, as ctr, nerdctl and docker make them. It gets a sandbox of its own,
//! derived from its specification.
//!
//! ```text
//!   containerd starts a shim ──> Create ──> make the sandbox for this container
//!                                Start  ──> start the sandbox; the container's network is set up by then
//!                                the container ends, or could not be made ──> stop the sandbox
//!                                Delete, Shutdown ──> end the process
//! ```

use super::PodRequest;
use crate::error::{Error, Result};
use crate::home::namespace;
use crate::hooks::{self, Hooks};
use crate::ids::ContainerId;
use crate::pod_config::{NamespaceMode, PodConfig, Resources};
use crate::reaper::Reaper;
use crate::task::read_bundle;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The part of a sandbox request that only a container without a pod has.
#[derive(Debug, Clone)]
pub struct Single {
    /// The container.
    pub container: ContainerId,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its cgroup, as in its specification.
    pub cgroups_path: Option<String>,
    /// Its hooks.
    pub hooks: Hooks,
    version: String,
    annotations: Map<String, Value>,
}

/// The fields of a specification that concern the sandbox.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    oci_version: String,
    hostname: String,
    annotations: Map<String, Value>,
    hooks: Option<Hooks>,
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    cgroups_path: String,
    namespaces: Vec<Namespace>,
    sysctl: Option<BTreeMap<String, String>>,
    resources: Option<Limits>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Limits {
    cpu: Option<Cpu>,
    memory: Option<Memory>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cpu {
    quota: Option<i64>,
    period: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    limit: Option<i64>,
}

impl PodRequest {
    /// The sandbox for a single container, from the text of its bundle's `config.json`.
    ///
    /// # Errors
    /// `InvalidArgument` for an invalid specification.
    pub fn of_single(container: ContainerId, bundle: &Path, specification: &[u8]) -> Result<Self> {
        let invalid =
            |why: &dyn std::fmt::Display| Error::invalid(format!("{}/config.json is no OCI specification: {why}", bundle.display()));
        let object: Map<String, Value> = serde_json::from_slice(specification).map_err(|e| invalid(&e))?;
        let spec: Spec = serde_json::from_value(Value::Object(object)).map_err(|e| invalid(&e))?;
        let namespace = |kind: &str| spec.linux.namespaces.iter().find(|namespace| namespace.kind == kind);
        let mode = |kind: &str| if namespace(kind).is_some() { NamespaceMode::Container } else { NamespaceMode::Node };
        let limits = spec.linux.resources.unwrap_or_default();
        let (cpu, memory) = (limits.cpu.unwrap_or_default(), limits.memory.unwrap_or_default());
        let mut config = PodConfig {
            name: container.to_string(),
            hostname: spec.hostname,
            network: mode("network"),
            pid: mode("pid"),
            ipc: mode("ipc"),
            resources: Some(Resources { cpu_quota: cpu.quota, cpu_period: cpu.period, memory_limit: memory.limit, ..Resources::default() }),
            ..PodConfig::default()
        };
        config.set_sysctls(spec.linux.sysctl.unwrap_or_default())?;
        let netns = namespace("network").map(|network| network.path.clone()).filter(|path| !path.as_os_str().is_empty());
        let cgroups_path = Some(spec.linux.cgroups_path).filter(|path| !path.is_empty());
        let (hooks, version, annotations) = (spec.hooks.unwrap_or_default(), spec.oci_version, spec.annotations);
        let single = Single { container, bundle: bundle.to_owned(), cgroups_path, hooks, version, annotations };
        Ok(Self { config, netns, single: Some(single) })
    }
}

/// Runs a container's last hooks, as its bundle lists them, where no OCI runtime does. Otherwise
/// things that earlier hooks made, such as a network, would stay forever.
///
/// # Errors
/// As [`hooks::run`], or if the bundle cannot be read.
pub async fn run_last_hooks(container: &ContainerId, bundle: &Path, reaper: &Reaper) -> Result<()> {
    let request = PodRequest::of_single(container.clone(), bundle, &read_bundle(bundle)?)?;
    let Some(single) = request.single.filter(|single| !single.hooks.poststop.is_empty()) else { return Ok(()) };
    let network = namespace(Path::new("/proc/self/ns/net"))?;
    hooks::run(&single.hooks.poststop, &single.state("stopped", 0), &network, reaper).await
}

impl Single {
    /// The container's state for its hooks (runtime-spec, runtime.md, "State"). `pid` is a process
    /// in its network namespace.
    pub fn state(&self, status: &str, pid: u32) -> Value {
        json!({
            "ociVersion": self.version,
            "id": self.container.as_str(),
            "status": status,
            "pid": pid,
            "bundle": self.bundle,
            "annotations": self.annotations,
        })
    }

    /// The path of the sandbox's cgroup. Its last component is the container's name. It is the
    /// container's own cgroup, or beside it.
    pub fn sandbox_cgroup(&self) -> String {
        let name = self.container.as_str();
        match self.cgroups_path.as_deref() {
            // The systemd driver's form: slice, prefix and name.
            Some(path) if path.contains(':') => match path.rsplit_once(':') {
                Some((place, _)) => format!("{place}:{name}"),
                None => path.to_owned(),
            },
            Some(path) => {
                let parent = path.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent);
                if parent.is_empty() { format!("/magnetar/{name}") } else { format!("/{}/{name}", parent.trim_matches('/')) }
            }
            None => format!("/magnetar/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn request(spec: Value) -> Result<PodRequest> {
        PodRequest::of_single(ContainerId::parse("web").unwrap(), Path::new("/b"), spec.to_string().as_bytes())
    }

    #[test]
    fn the_sandbox_follows_the_containers_specification() {
        let request = request(json!({
            "ociVersion": "1.1.0",
            "hostname": "inside",
            "annotations": { "a": "b" },
            "hooks": { "createRuntime": [{ "path": "/bin/net" }] },
            "linux": {
                "cgroupsPath": "/default/web",
                "sysctl": { "net.ipv4.ip_unprivileged_port_start": "0" },
                "resources": { "cpu": { "quota": 50000, "period": 100000 }, "memory": { "limit": 1048576 } },
                "namespaces": [{ "type": "network", "path": "/run/netns/x" }, { "type": "pid" }],
            },
        }))
        .unwrap();
        let PodRequest { config, netns, single } = request;
        let single = single.unwrap();
        assert_eq!((netns, config.hostname.as_str()), (Some("/run/netns/x".into()), "inside"));
        assert_eq!((config.network, config.pid, config.ipc), (NamespaceMode::Container, NamespaceMode::Container, NamespaceMode::Node));
        assert_eq!(config.resources.unwrap().memory_limit, Some(1 << 20));
        assert_eq!(config.sysctls.len(), 1);
        let state = single.state("creating", 7);
        assert_eq!((state["id"].as_str(), state["pid"].as_u64(), state["annotations"]["a"].as_str()), (Some("web"), Some(7), Some("b")));
    }

    #[test]
    fn an_invalid_specification_is_refused() {
        for wrong in [json!([]), json!({ "linux": 1 }), json!({ "linux": { "sysctl": { "../x": "1" } } })] {
            assert_eq!(request(wrong).unwrap_err().code(), Code::InvalidArgument);
        }
        let least = request(json!({})).unwrap();
        assert_eq!(least.config.network, NamespaceMode::Node, "no namespace of its own is the host's");
    }

    #[test]
    fn the_sandboxs_cgroup_has_the_containers_name() {
        for (path, own) in [
            (Some("/default/web"), "/default/web"),
            (Some("/default/other"), "/default/web"),
            (Some("docker/web"), "/docker/web"),
            (Some("/web"), "/magnetar/web"),
            (Some("system.slice:docker:web"), "system.slice:docker:web"),
            (None, "/magnetar/web"),
        ] {
            let spec = json!({ "linux": { "cgroupsPath": path.unwrap_or_default() } });
            assert_eq!(request(spec).unwrap().single.unwrap().sandbox_cgroup(), own, "{path:?}");
        }
    }
}
