// SPDX-License-Identifier: Apache-2.0
//! The pod's configuration, which the kubelet sends to containerd, and containerd to us.
//!
//! It comes as a protobuf `Any` with the CRI's `runtime.v1.PodSandboxConfig`, and is checked once,
//! here. The hostname, DNS entries, id maps and sysctls of a [`PodConfig`] can be written to the
//! kernel without further checks.
//!
//! ```text
//! wire      the protobuf messages, as published
//! decode    wire -> PodConfig, or the error in it
//! sysctl    the file of a sysctl, and the namespace to which its effect is limited
//! ```

mod decode;
mod sysctl;
mod wire;

pub use sysctl::SysctlScope;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// The CRI's name of the message that [`PodConfig::decode`] reads.
const MESSAGE: &str = "runtime.v1.PodSandboxConfig";

/// The largest configuration in bytes. Kubernetes allows 256 KiB of annotations, and the rest is
/// small.
const MAX_BYTES: usize = 1 << 20;

/// A pod's configuration (`PodSandboxConfig`, CRI v1), checked.
///
/// The default is for a sandbox without a configuration, as `ctr` makes it: no name, and namespaces
/// of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodConfig {
    /// The pod's name (`metadata.name`), at most 1024 bytes, without control characters.
    pub name: String,
    /// The pod's uid, likewise.
    pub uid: String,
    /// The pod's Kubernetes namespace, likewise.
    pub namespace: String,
    /// How often this pod's sandbox was made before.
    pub attempt: u32,
    /// At most 64 bytes of letters, digits, `-`, `_` and `.`; empty for the host's name.
    pub hostname: String,
    /// The directory of the containers' logs: an absolute path without `..`.
    pub log_directory: Option<PathBuf>,
    /// The content of resolv.conf. `None` means a copy of the host's, as opposed to an empty file.
    pub dns: Option<Dns>,
    /// Labels, as given.
    pub labels: BTreeMap<String, String>,
    /// Annotations, as given.
    pub annotations: BTreeMap<String, String>,
    /// Ports of the pod that are reachable on the host. CNI sets them up.
    pub port_mappings: Vec<PortMapping>,
    /// The cgroup above the pod's cgroups: a cgroupfs path or a systemd slice, without `..`.
    pub cgroup_parent: Option<String>,
    /// The pod's network namespace: its own or the host's.
    pub network: NamespaceMode,
    /// The containers' PID namespace: the pod's, their own, or the host's.
    pub pid: NamespaceMode,
    /// The pod's IPC namespace: its own or the host's.
    pub ipc: NamespaceMode,
    /// The pod's user namespace; `None` is the host's.
    pub userns: Option<UserNs>,
    /// Sysctls for the pod: names as in sysctl(8), values of one line.
    pub sysctls: BTreeMap<String, String>,
    /// The resources of the sandbox itself, beyond those of its containers (RuntimeClass
    /// `overhead`).
    pub overhead: Option<Resources>,
    /// The sum of the containers' resources.
    pub resources: Option<Resources>,
    /// Whether the pod may hold privileged containers.
    pub privileged: bool,
    /// Whether the sandbox's root filesystem is read-only.
    pub readonly_rootfs: bool,
    /// The SELinux context for the pod's processes.
    pub selinux: Option<Selinux>,
    /// The user that the sandbox's own processes run as.
    pub run_as_user: Option<u32>,
    /// The group that they run as; only ever with [`run_as_user`](Self::run_as_user).
    pub run_as_group: Option<u32>,
    /// Further groups of the containers' first processes.
    pub supplemental_groups: Vec<u32>,
    /// The seccomp profile for the sandbox.
    pub seccomp: Option<SecurityProfile>,
    /// The AppArmor profile for the sandbox.
    pub apparmor: Option<SecurityProfile>,
}

impl PodConfig {
    /// Decodes and checks the configuration in containerd's `Any`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, naming the field, if `type_url` is not that of `PodSandboxConfig`, if
    /// `value` is longer than 1 MiB or is not such a message, or if a field has an invalid value.
    pub fn decode(type_url: &str, value: &[u8]) -> Result<PodConfig> {
        let message = type_url.rsplit('/').next().unwrap_or_default();
        if message != MESSAGE {
            return Err(Error::invalid(format!("pod configuration: expected {MESSAGE}, got {type_url:?}")));
        }
        if value.len() > MAX_BYTES {
            return Err(Error::invalid(format!("pod configuration: {} bytes, more than {MAX_BYTES}", value.len())));
        }
        decode::decode(value)
    }

    /// The pod's name and namespace in Kubernetes, `NAMESPACE/NAME`; `None` for a sandbox without a
    /// name.
    pub fn full_name(&self) -> Option<String> {
        (!self.name.is_empty()).then(|| format!("{}/{}", self.namespace, self.name))
    }

    /// Sets the pod's sysctls.
    ///
    /// # Errors
    /// `InvalidArgument` for an invalid name or value.
    pub fn set_sysctls(&mut self, sysctls: BTreeMap<String, String>) -> Result<()> {
        self.sysctls = decode::sysctls(sysctls)?;
        Ok(())
    }
}

/// The content of resolv.conf(5). No entry is empty or contains whitespace or control characters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// A port of the pod on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port in the pod; 0 if unspecified.
    pub container_port: u16,
    /// The port on the host; 0 if unspecified.
    pub host_port: u16,
    /// The host's address; `None` for all of them.
    pub host_ip: Option<IpAddr>,
}

/// A transport protocol (`enum Protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Which containers share a namespace (`enum NamespaceMode`). `TARGET` is only for ephemeral
/// containers, never for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// All containers of the pod share one.
    #[default]
    Pod,
    /// Each container has its own.
    Container,
    /// It is the host's.
    Node,
}

/// The id maps of a user namespace.
///
/// Each list has between 1 and 340 ranges (the kernel's limit), and no two of them overlap, neither
/// inside nor on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNs {
    /// User ids.
    pub uids: Vec<IdMap>,
    /// Group ids.
    pub gids: Vec<IdMap>,
}

/// A range of ids (`message IDMapping`): at least one id, none of them beyond the 32 bits that ids
/// have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The first id inside the namespace.
    pub container_id: u32,
    /// The first id on the host.
    pub host_id: u32,
    /// How many ids.
    pub length: u32,
}

/// The period of a CPU quota if none is given, in microseconds
/// (Documentation/scheduler/sched-bwc.rst).
pub const CPU_PERIOD: u64 = 100_000;

/// Limits (`message LinuxContainerResources`). `None`, or an empty string or map, is "not
/// specified".
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CFS period, in microseconds.
    pub cpu_period: Option<u64>,
    /// CFS quota per period, in microseconds; negative is unlimited.
    pub cpu_quota: Option<i64>,
    /// Relative CPU weight; 1024 is one share.
    pub cpu_shares: Option<u64>,
    /// Memory, in bytes; negative is unlimited.
    pub memory_limit: Option<i64>,
    /// Memory and swap together, in bytes; negative is unlimited.
    pub memory_swap_limit: Option<i64>,
    /// From -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// CPUs, such as `0-2,7`.
    pub cpuset_cpus: String,
    /// Memory nodes, likewise.
    pub cpuset_mems: String,
    /// Huge pages: bytes by page size (`2MB`).
    pub hugepage_limits: BTreeMap<String, u64>,
    /// cgroup v2 files and what to write there. Names hold no `/`, values no line breaks.
    pub unified: BTreeMap<String, String>,
}

/// An SELinux context (`message SELinuxOption`). The policy chooses empty parts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selinux {
    /// The user part.
    pub user: String,
    /// The role part.
    pub role: String,
    /// The type part.
    #[serde(rename = "type")]
    pub kind: String,
    /// The level part.
    pub level: String,
}

/// A seccomp or AppArmor profile (`message SecurityProfile`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecurityProfile {
    /// The runtime's default.
    RuntimeDefault,
    /// None at all.
    Unconfined,
    /// One on the node: for seccomp the path of a file, for AppArmor a name.
    Localhost(String),
}

#[cfg(test)]
mod tests;
