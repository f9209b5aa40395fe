// SPDX-License-Identifier: Apache-2.0
//! The graphics processors of a container, which the engine of its model may use.
//!
//! Whoever gives a container such a device, be it a device plugin, CDI or the pod's author, puts it
//! into the container's OCI configuration and allows it in the container's cgroup. The engine is in
//! that cgroup, so it can open what the container could.

use magnetar_core::confined::own_devices::Node;
use serde_json::Value;
use std::path::{Component, Path};

/// The names in /dev, and the beginnings of names, of devices that compute: of the kernel's
/// graphics and accelerators, NVIDIA's, AMD's, and Microsoft's.
const NAMES: [&str; 5] = ["dri", "accel", "nvidia", "kfd", "dxg"];

/// The most devices. A node with eight processors has about thirty.
const MAX_DEVICES: usize = 128;

/// What a driver reads about its devices, and where it is told which drivers there are.
pub const FILES: [&str; 5] = ["/sys", "/proc/driver/nvidia", "/etc/vulkan", "/etc/OpenCL", "/etc/glvnd"];

/// What else a driver expects to find in /dev.
pub const USUAL: &[&str] = &["null", "zero", "random", "urandom"];

/// The devices of a container (`linux.devices` of the OCI runtime specification) that compute.
pub fn in_spec(spec: &Value) -> Vec<Node> {
    let devices = spec["linux"]["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut nodes: Vec<Node> = Vec::new();
    for node in devices.iter().filter_map(node) {
        // Two that are chosen by different ways may be the same.
        if nodes.len() < MAX_DEVICES && nodes.iter().all(|other| other.path != node.path) {
            nodes.push(node);
        }
    }
    nodes
}

fn node(device: &Value) -> Option<Node> {
    // "u" is a character device without a buffer, which Linux does not tell from "c".
    if !matches!(device["type"].as_str(), Some("c" | "u")) {
        return None;
    }
    let number = |name: &str| device[name].as_u64().and_then(|number| u32::try_from(number).ok());
    let path = Path::new(device["path"].as_str()?).strip_prefix("/dev").ok()?;
    let has_names_only = path.components().all(|component| matches!(component, Component::Normal(_)));
    let first = path.components().next()?.as_os_str().to_str()?;
    let computes = NAMES.iter().any(|name| first.starts_with(name));
    (has_names_only && computes).then_some(Node { path: path.to_owned(), major: number("major")?, minor: number("minor")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_a_containers_devices_those_that_compute_are_the_engines() {
        let device = |kind: &str, path: &str| json!({"type": kind, "path": path, "major": 226, "minor": 128});
        let spec = json!({"linux": {"devices": [
            device("c", "/dev/dri/renderD128"),
            device("c", "/dev/nvidia0"),
            device("c", "/dev/nvidia0"),
            device("c", "/dev/nvidia-caps/nvidia-cap1"),
            device("c", "/dev/mem"),
            device("b", "/dev/nvidia-disk"),
            device("c", "/dev/dri/../mem"),
            device("c", "/elsewhere/dri/card0"),
            {"type": "c", "path": "/dev/kfd", "major": -1, "minor": 0},
        ]}});
        let found: Vec<_> = in_spec(&spec).into_iter().map(|node| node.path.display().to_string()).collect();
        assert_eq!(found, ["dri/renderD128", "nvidia0", "nvidia-caps/nvidia-cap1"]);
        assert_eq!(in_spec(&json!({})), []);
    }
}
