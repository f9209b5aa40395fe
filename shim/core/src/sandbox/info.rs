// SPDX-License-Identifier: Apache-2.0
//! The data that `crictl inspectp` shows under `info`, for people and scripts. CNI agents and
//! debuggers read `.info.pid` and `.info.runtimeSpec.linux.namespaces`, as they do for containerd's
//! own sandboxes (`SandboxInfo` of internal/cri/types).
//!
//! It is written to the pod's directory when the pod is created, and completed on request. No
//! process keeps it in memory.

use super::PodRequest;
use crate::error::{Context, Result};
use crate::ids::SandboxId;
use crate::pod_config::{Dns, NamespaceMode, PodConfig};
use crate::record::PodDir;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::PathBuf;

/// The kinds of namespaces that a pod's process may hold for its containers, with their names in
/// the OCI specification and in /proc.
const NAMESPACES: [(&str, &str); 4] = [("ipc", "ipc"), ("uts", "uts"), ("pid", "pid"), ("user", "user")];

/// The keys that only our sandboxes have.
const OURS: [&str; 3] = ["reason", "sandboxProcess", "version"];

/// The version of the OCI runtime specification that the fields follow.
const VERSION: &str = "1.2.0";

/// The path of the stored information.
fn info_file(dir: &PodDir) -> PathBuf {
    dir.path().join("info.json")
}

/// Stores the request that made the pod.
///
/// # Errors
/// If the file cannot be written.
pub fn save(dir: &PodDir, sandbox: &SandboxId, request: &PodRequest) -> Result<()> {
    let path = info_file(dir);
    std::fs::write(&path, of_request(sandbox, request).to_string()).context(|| format!("cannot write {}", path.display()))
}

/// The path of the stored new resources.
fn resized_file(dir: &PodDir) -> PathBuf {
    dir.path().join("resized.json")
}

/// Stores the new resources of a resized pod, as they are shown. containerd keeps them in memory,
/// and asks us after a restart.
///
/// # Errors
/// If the file cannot be written.
pub fn keep_resized(dir: &PodDir, resources: &Value) -> Result<()> {
    let path = resized_file(dir);
    std::fs::write(&path, resources.to_string()).context(|| format!("cannot write {}", path.display()))
}

/// The information of a pod. `pid` is the process that holds its namespaces, or 0 if there is none
/// (any more).
pub fn load(dir: &PodDir, pid: u32, reason: Option<&str>) -> Value {
    // A pod that was never created, or was created by an earlier version, has no file: it only has
    // the current facts.
    let kept = std::fs::read(info_file(dir)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let mut info: Value = kept.unwrap_or_else(|| json!({}));
    info["pid"] = pid.into();
    info["processStatus"] = if pid == 0 { "deleted" } else { "running" }.into();
    info["sandboxProcess"] = std::process::id().into();
    info["version"] = env!("CARGO_PKG_VERSION").into();
    if let Some(reason) = reason {
        info["reason"] = reason.into();
    }
    let resized = std::fs::read(resized_file(dir)).ok().and_then(|text| serde_json::from_slice::<Map<String, Value>>(&text).ok());
    if let Some(info) = info.as_object_mut() {
        info.extend(resized.unwrap_or_default());
    }
    info["netNamespaceClosed"] = is_closed(info.pointer("/runtimeSpec/linux/namespaces")).into();
    for namespace in info.pointer_mut("/runtimeSpec/linux/namespaces").and_then(Value::as_array_mut).into_iter().flatten() {
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        let held = NAMESPACES.iter().find(|(name, _)| *name == kind);
        if let Some((_, file)) = held.filter(|_| pid != 0) {
            namespace["path"] = format!("/proc/{pid}/ns/{file}").into();
        }
    }
    info
}

/// The map of JSON texts for containerd. Since 2.3 containerd drops unknown keys from `info`, so
/// our keys are also under `magnetar`.
pub fn shown(info: &Value) -> HashMap<String, String> {
    let ours: Value = OURS.iter().filter_map(|key| Some(((*key).to_owned(), info.get(key)?.clone()))).collect::<Map<_, _>>().into();
    HashMap::from([("info".to_owned(), info.to_string()), ("magnetar".to_owned(), ours.to_string())])
}

/// The OCI specification of the pod, as if it had a process, with the namespaces that `pid` holds.
pub fn spec_of(dir: &PodDir, pid: u32) -> Vec<u8> {
    let spec = load(dir, pid, None)["runtimeSpec"].take();
    let spec = if spec.is_null() { json!({ "ociVersion": VERSION }) } else { spec };
    spec.to_string().into_bytes()
}

/// Whether the pod's network namespace is gone: its file is missing or not a namespace any more.
fn is_closed(namespaces: Option<&Value>) -> bool {
    let network = namespaces.and_then(Value::as_array).into_iter().flatten().find(|namespace| namespace["type"] == "network");
    let path = network.and_then(|network| network["path"].as_str());
    path.is_some_and(|path| !rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == libc::NSFS_MAGIC))
}

fn of_request(sandbox: &SandboxId, request: &PodRequest) -> Value {
    let PodRequest { config, netns, single: _ } = request;
    let mut namespaces = Vec::new();
    if let Some(netns) = netns {
        namespaces.push(json!({ "type": "network", "path": netns }));
        namespaces.push(json!({ "type": "uts" }));
    }
    let own = [("ipc", config.ipc != NamespaceMode::Node), ("pid", config.pid == NamespaceMode::Pod), ("user", config.userns.is_some())];
    namespaces.extend(own.iter().filter(|(_, own)| *own).map(|(kind, _)| json!({ "type": kind })));
    json!({
        "runtimeType": "io.containerd.magnetar.v2",
        "config": config_of(config),
        "runtimeSpec": {
            "ociVersion": VERSION,
            "hostname": config.hostname,
            "annotations": { "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": sandbox.as_str() },
            "linux": { "cgroupsPath": config.cgroup_parent, "sysctl": config.sysctls, "namespaces": namespaces },
        },
    })
}

/// The pod's configuration with the CRI's names and numbers.
fn config_of(config: &PodConfig) -> Value {
    let mode = |mode| match mode {
        NamespaceMode::Pod => 0,
        NamespaceMode::Container => 1,
        NamespaceMode::Node => 2,
    };
    let dns = config
        .dns
        .as_ref()
        .map(|Dns { servers, searches, options }| json!({ "servers": servers, "searches": searches, "options": options }));
    let ports: Vec<Value> = config
        .port_mappings
        .iter()
        .map(|port| json!({ "protocol": port.protocol as u8, "container_port": port.container_port, "host_port": port.host_port, "host_ip": port.host_ip }))
        .collect();
    json!({
        "metadata": { "name": config.name, "uid": config.uid, "namespace": config.namespace, "attempt": config.attempt },
        "hostname": config.hostname,
        "log_directory": config.log_directory,
        "dns_config": dns,
        "port_mappings": ports,
        "labels": config.labels,
        "annotations": config.annotations,
        "linux": {
            "cgroup_parent": config.cgroup_parent,
            "sysctls": config.sysctls,
            "security_context": {
                "namespace_options": { "network": mode(config.network), "pid": mode(config.pid), "ipc": mode(config.ipc) },
                "readonly_rootfs": config.readonly_rootfs,
                "privileged": config.privileged,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_find_the_namespaces_and_the_configuration() {
        let state = tempfile::tempdir().unwrap();
        let dir = PodDir::existing(state.path().to_owned());
        let config = PodConfig { name: "web".into(), pid: NamespaceMode::Container, ..PodConfig::default() };
        let request = PodRequest { config, netns: Some("/run/netns/cni-1".into()), single: None };
        assert_eq!(load(&dir, 7, None)["pid"], 7, "a pod that was never created");
        save(&dir, &SandboxId::parse("p1").unwrap(), &request).unwrap();
        let info = load(&dir, 7, None);
        assert_eq!(info["netNamespaceClosed"], true, "there is no such namespace");
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap();
        let path =
            |kind: &str| namespaces.iter().find(|namespace| namespace["type"] == kind).map(|namespace| namespace["path"].as_str().unwrap());
        assert_eq!((path("network"), path("ipc"), path("pid")), (Some("/run/netns/cni-1"), Some("/proc/7/ns/ipc"), None));
        assert_eq!(info["config"]["metadata"]["name"], "web");
        assert_eq!(info["config"]["linux"]["security_context"]["namespace_options"]["pid"], 1);
        let ended = load(&dir, 0, Some("it was killed"));
        assert_eq!((ended["processStatus"].as_str(), ended["reason"].as_str()), (Some("deleted"), Some("it was killed")));
        keep_resized(&dir, &json!({"resources": {"linux": {"memory_limit_in_bytes": 5}}})).unwrap();
        assert_eq!(load(&dir, 7, None)["resources"]["linux"]["memory_limit_in_bytes"], 5);
        let shown = shown(&ended);
        let ours: Value = serde_json::from_str(&shown["magnetar"]).unwrap();
        assert_eq!((ours["reason"].as_str(), ours.get("config")), (Some("it was killed"), None));
        assert!(shown["info"].contains("processStatus"));
    }
}
