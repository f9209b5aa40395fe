// SPDX-License-Identifier: Apache-2.0
//! `PodSandboxConfig` on the wire: the fields that we read, with the numbers of the published CRI.
//!
//! Source: kubernetes/cri-api, `pkg/apis/runtime/v1/api.proto`, package `runtime.v1` (checked
//! against the copy in the crate k8s-cri 0.11.0). Each struct names its message. Generated code for
//! the whole CRI would be thousands of lines for these few messages. The decoder skips fields that
//! are left out here.

use std::collections::BTreeMap;

/// `message PodSandboxConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub(super) hostname: String,
    #[prost(string, tag = "3")]
    pub(super) log_directory: String,
    #[prost(message, optional, tag = "4")]
    pub(super) dns_config: Option<DnsConfig>,
    #[prost(message, repeated, tag = "5")]
    pub(super) port_mappings: Vec<PortMapping>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(super) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "7")]
    pub(super) annotations: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<LinuxPodSandboxConfig>,
}

/// `message PodSandboxMetadata`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
    #[prost(uint32, tag = "4")]
    pub(super) attempt: u32,
}

/// `message DNSConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DnsConfig {
    #[prost(string, repeated, tag = "1")]
    pub(super) servers: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) searches: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub(super) options: Vec<String>,
}

/// `message PortMapping`; `protocol` is `enum Protocol`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PortMapping {
    #[prost(int32, tag = "1")]
    pub(super) protocol: i32,
    #[prost(int32, tag = "2")]
    pub(super) container_port: i32,
    #[prost(int32, tag = "3")]
    pub(super) host_port: i32,
    #[prost(string, tag = "4")]
    pub(super) host_ip: String,
}

/// `message LinuxPodSandboxConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    pub(super) cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub(super) security_context: Option<LinuxSandboxSecurityContext>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) sysctls: BTreeMap<String, String>,
    #[prost(message, optional, tag = "4")]
    pub(super) overhead: Option<LinuxContainerResources>,
    #[prost(message, optional, tag = "5")]
    pub(super) resources: Option<LinuxContainerResources>,
}

/// `message LinuxSandboxSecurityContext`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LinuxSandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    pub(super) namespace_options: Option<NamespaceOption>,
    #[prost(message, optional, tag = "2")]
    pub(super) selinux_options: Option<SeLinuxOption>,
    #[prost(message, optional, tag = "3")]
    pub(super) run_as_user: Option<Int64Value>,
    #[prost(bool, tag = "4")]
    pub(super) readonly_rootfs: bool,
    #[prost(int64, repeated, tag = "5")]
    pub(super) supplemental_groups: Vec<i64>,
    #[prost(bool, tag = "6")]
    pub(super) privileged: bool,
    #[prost(message, optional, tag = "8")]
    pub(super) run_as_group: Option<Int64Value>,
    #[prost(message, optional, tag = "9")]
    pub(super) seccomp: Option<SecurityProfile>,
    #[prost(message, optional, tag = "10")]
    pub(super) apparmor: Option<SecurityProfile>,
}

/// `message NamespaceOption`; the modes are `enum NamespaceMode`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NamespaceOption {
    #[prost(int32, tag = "1")]
    pub(super) network: i32,
    #[prost(int32, tag = "2")]
    pub(super) pid: i32,
    #[prost(int32, tag = "3")]
    pub(super) ipc: i32,
    #[prost(message, optional, tag = "5")]
    pub(super) userns_options: Option<UserNamespace>,
}

/// `message UserNamespace`; `mode` is `enum NamespaceMode`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UserNamespace {
    #[prost(int32, tag = "1")]
    pub(super) mode: i32,
    #[prost(message, repeated, tag = "2")]
    pub(super) uids: Vec<IdMapping>,
    #[prost(message, repeated, tag = "3")]
    pub(super) gids: Vec<IdMapping>,
}

/// `message IDMapping`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct IdMapping {
    #[prost(uint32, tag = "1")]
    pub(super) host_id: u32,
    #[prost(uint32, tag = "2")]
    pub(super) container_id: u32,
    #[prost(uint32, tag = "3")]
    pub(super) length: u32,
}

/// `message LinuxContainerResources`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LinuxContainerResources {
    #[prost(int64, tag = "1")]
    pub(super) cpu_period: i64,
    #[prost(int64, tag = "2")]
    pub(super) cpu_quota: i64,
    #[prost(int64, tag = "3")]
    pub(super) cpu_shares: i64,
    #[prost(int64, tag = "4")]
    pub(super) memory_limit_in_bytes: i64,
    #[prost(int64, tag = "5")]
    pub(super) oom_score_adj: i64,
    #[prost(string, tag = "6")]
    pub(super) cpuset_cpus: String,
    #[prost(string, tag = "7")]
    pub(super) cpuset_mems: String,
    #[prost(message, repeated, tag = "8")]
    pub(super) hugepage_limits: Vec<HugepageLimit>,
    #[prost(btree_map = "string, string", tag = "9")]
    pub(super) unified: BTreeMap<String, String>,
    #[prost(int64, tag = "10")]
    pub(super) memory_swap_limit_in_bytes: i64,
}

/// `message HugepageLimit`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HugepageLimit {
    #[prost(string, tag = "1")]
    pub(super) page_size: String,
    #[prost(uint64, tag = "2")]
    pub(super) limit: u64,
}

/// `message SELinuxOption`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SeLinuxOption {
    #[prost(string, tag = "1")]
    pub(super) user: String,
    #[prost(string, tag = "2")]
    pub(super) role: String,
    #[prost(string, tag = "3")]
    pub(super) r#type: String,
    #[prost(string, tag = "4")]
    pub(super) level: String,
}

/// `message SecurityProfile`; `profile_type` is `enum ProfileType`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SecurityProfile {
    #[prost(int32, tag = "1")]
    pub(super) profile_type: i32,
    #[prost(string, tag = "2")]
    pub(super) localhost_ref: String,
}

/// `message Int64Value`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Int64Value {
    #[prost(int64, tag = "1")]
    pub(super) value: i64,
}
