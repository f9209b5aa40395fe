// SPDX-License-Identifier: Apache-2.0
//! Converts wire messages to a checked [`PodConfig`]. Every error is `InvalidArgument` with the
//! field's name.

use super::{Dns, IdMap, NamespaceMode, PodConfig, PortMapping, Protocol, Resources, SecurityProfile, Selinux, UserNs, sysctl, wire};
use crate::error::{Error, Result};
use prost::Message;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The longest hostname, in bytes: HOST_NAME_MAX of Linux, the limit of sethostname(2).
const HOSTNAME_MAX: usize = 64;

/// The longest name, uid and the like, in bytes. It is far beyond Kubernetes's limit (253), which
/// clients such as crictl need not keep.
const NAME_MAX: usize = 1024;

/// The longest path, or other text that is written to the kernel, in bytes.
const LINE_MAX: usize = 4096;

/// The most ranges in /proc/PID/uid_map (id_maps_of_user_namespaces_are_checked(7)).
const ID_RANGES_MAX: usize = 340;

pub(super) fn decode(value: &[u8]) -> Result<PodConfig> {
    let raw = wire::PodSandboxConfig::decode(value).map_err(|error| Error::invalid(format!("pod configuration: {error}")))?;
    let metadata = raw.metadata.unwrap_or_default();
    let linux = raw.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = security.namespace_options.unwrap_or_default();
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(wrong("run_as_group", "given without run_as_user"));
    }
    Ok(PodConfig {
        name: line("metadata.name", metadata.name, NAME_MAX)?,
        uid: line("metadata.uid", metadata.uid, NAME_MAX)?,
        namespace: line("metadata.namespace", metadata.namespace, NAME_MAX)?,
        attempt: metadata.attempt,
        hostname: hostname(raw.hostname)?,
        log_directory: log_directory(raw.log_directory)?,
        dns: raw.dns_config.map(dns).transpose()?,
        labels: raw.labels,
        annotations: raw.annotations,
        port_mappings: raw.port_mappings.into_iter().map(port_mapping).collect::<Result<_>>()?,
        cgroup_parent: cgroup_parent(linux.cgroup_parent)?,
        network: namespace_mode("network", namespaces.network)?,
        pid: namespace_mode("pid", namespaces.pid)?,
        ipc: namespace_mode("ipc", namespaces.ipc)?,
        userns: namespaces.userns_options.map(user_namespace).transpose()?.flatten(),
        sysctls: sysctls(linux.sysctls)?,
        overhead: linux.overhead.map(resources).transpose()?,
        resources: linux.resources.map(resources).transpose()?,
        privileged: security.privileged,
        readonly_rootfs: security.readonly_rootfs,
        selinux: security.selinux_options.map(selinux).transpose()?,
        run_as_user: security.run_as_user.map(|user| id("run_as_user", user.value)).transpose()?,
        run_as_group: security.run_as_group.map(|group| id("run_as_group", group.value)).transpose()?,
        supplemental_groups: security
            .supplemental_groups
            .into_iter()
            .map(|group| id("supplemental_groups", group))
            .collect::<Result<_>>()?,
        seccomp: security.seccomp.map(|profile| security_profile("seccomp", profile)).transpose()?,
        apparmor: security.apparmor.map(|profile| security_profile("apparmor", profile)).transpose()?,
    })
}

fn wrong(field: &str, what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("pod configuration: {field}: {what}"))
}

/// One line of text, of at most `max` bytes.
fn line(field: &str, text: String, max: usize) -> Result<String> {
    if text.len() > max {
        return Err(wrong(field, format_args!("{} bytes, more than {max}", text.len())));
    }
    match text.chars().any(char::is_control) {
        true => Err(wrong(field, "contains control characters")),
        false => Ok(text),
    }
}

/// One word: a line that is not empty and has no whitespace.
fn word(field: &str, text: String) -> Result<String> {
    match text.is_empty() || text.contains(char::is_whitespace) {
        true => Err(wrong(field, format_args!("{text:?} is not a single word"))),
        false => line(field, text, LINE_MAX),
    }
}

fn words(field: &str, list: Vec<String>) -> Result<Vec<String>> {
    list.into_iter().map(|text| word(field, text)).collect()
}

fn hostname(name: String) -> Result<String> {
    if name.len() > HOSTNAME_MAX {
        return Err(wrong("hostname", format_args!("{} bytes, more than {HOSTNAME_MAX}", name.len())));
    }
    match name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        true => Ok(name),
        false => Err(wrong("hostname", format_args!("{name:?} has characters other than letters, digits, '-', '_' and '.'"))),
    }
}

/// A path without `..`.
fn descending(field: &str, path: String) -> Result<String> {
    match Path::new(&path).components().any(|part| part == Component::ParentDir) {
        true => Err(wrong(field, format_args!("{path:?} contains '..'"))),
        false => line(field, path, LINE_MAX),
    }
}

fn log_directory(path: String) -> Result<Option<PathBuf>> {
    if path.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(descending("log_directory", path)?);
    match path.is_absolute() {
        true => Ok(Some(path)),
        false => Err(wrong("log_directory", format_args!("{} is not absolute", path.display()))),
    }
}

fn cgroup_parent(path: String) -> Result<Option<String>> {
    let path = descending("linux.cgroup_parent", path)?;
    Ok((!path.is_empty()).then_some(path))
}

fn dns(raw: wire::DnsConfig) -> Result<Dns> {
    Ok(Dns {
        servers: words("dns_config.servers", raw.servers)?,
        searches: words("dns_config.searches", raw.searches)?,
        options: words("dns_config.options", raw.options)?,
    })
}

fn port_mapping(raw: wire::PortMapping) -> Result<PortMapping> {
    let port = |number: i32| u16::try_from(number).map_err(|_| wrong("port_mappings", format_args!("{number} is no port")));
    Ok(PortMapping {
        protocol: match raw.protocol {
            0 => Protocol::Tcp,
            1 => Protocol::Udp,
            2 => Protocol::Sctp,
            other => return Err(wrong("port_mappings", format_args!("unknown protocol {other}"))),
        },
        container_port: port(raw.container_port)?,
        host_port: port(raw.host_port)?,
        host_ip: match raw.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| wrong("port_mappings", format_args!("{text:?} is no IP address")))?),
        },
    })
}

fn namespace_mode(field: &str, mode: i32) -> Result<NamespaceMode> {
    match mode {
        0 => Ok(NamespaceMode::Pod),
        1 => Ok(NamespaceMode::Container),
        2 => Ok(NamespaceMode::Node),
        3 => Err(wrong(field, "a pod has no other container's namespace to target")),
        other => Err(wrong(field, format_args!("unknown namespace mode {other}"))),
    }
}

fn user_namespace(raw: wire::UserNamespace) -> Result<Option<UserNs>> {
    match namespace_mode("userns_options", raw.mode)? {
        NamespaceMode::Node if raw.uids.is_empty() && raw.gids.is_empty() => Ok(None),
        NamespaceMode::Node => Err(wrong("userns_options", "the host's user namespace takes no id mappings")),
        NamespaceMode::Container => Err(wrong("userns_options", "a user namespace is the pod's or the host's")),
        NamespaceMode::Pod => {
            Ok(Some(UserNs { uids: id_maps("userns_options.uids", raw.uids)?, gids: id_maps("userns_options.gids", raw.gids)? }))
        }
    }
}

fn id_maps(field: &str, raw: Vec<wire::IdMapping>) -> Result<Vec<IdMap>> {
    if raw.is_empty() || raw.len() > ID_RANGES_MAX {
        return Err(wrong(field, format_args!("{} id mappings, not between 1 and {ID_RANGES_MAX}", raw.len())));
    }
    for first_of in [|map: &wire::IdMapping| map.container_id, |map: &wire::IdMapping| map.host_id] {
        let mut ranges: Vec<_> = raw.iter().map(|map| (u64::from(first_of(map)), u64::from(map.length))).collect();
        ranges.sort_unstable();
        // The last id of all, 2^32 - 1, means "none" to the kernel.
        if ranges.iter().any(|(first, length)| *length == 0 || first + length > u64::from(u32::MAX)) {
            return Err(wrong(field, "an id mapping is empty or goes beyond 32 bits"));
        }
        if ranges.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return Err(wrong(field, "id mappings overlap"));
        }
    }
    Ok(raw.iter().map(|map| IdMap { container_id: map.container_id, host_id: map.host_id, length: map.length }).collect())
}

pub(super) fn sysctls(raw: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    for (name, value) in &raw {
        if !sysctl::is_name(name) {
            return Err(wrong("linux.sysctls", format_args!("{name:?} is not a sysctl's name")));
        }
        if value.len() > LINE_MAX || value.contains(['\0', '\n', '\r']) {
            return Err(wrong("linux.sysctls", format_args!("the value of {name} is not a single line of {LINE_MAX} bytes")));
        }
    }
    Ok(raw)
}

fn resources(raw: wire::LinuxContainerResources) -> Result<Resources> {
    let specified = |number: i64| (number != 0).then_some(number);
    let positive = |field: &str, number: i64| match u64::try_from(number) {
        Ok(number) => Ok((number != 0).then_some(number)),
        Err(_) => Err(wrong(field, format_args!("{number} is negative"))),
    };
    for key in raw.unified.keys() {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.' | b'-');
        if !key.bytes().all(plain) || !key.contains('.') || key.contains("..") || key.starts_with('.') {
            return Err(wrong("unified", format_args!("{key:?} is not a cgroup file")));
        }
    }
    Ok(Resources {
        cpu_period: positive("cpu_period", raw.cpu_period)?,
        cpu_quota: specified(raw.cpu_quota),
        cpu_shares: positive("cpu_shares", raw.cpu_shares)?,
        memory_limit: specified(raw.memory_limit_in_bytes),
        memory_swap_limit: specified(raw.memory_swap_limit_in_bytes),
        oom_score_adj: match i32::try_from(raw.oom_score_adj) {
            Ok(0) => None,
            Ok(score @ -1000..=1000) => Some(score),
            _ => return Err(wrong("oom_score_adj", format_args!("{} is not between -1000 and 1000", raw.oom_score_adj))),
        },
        cpuset_cpus: cpu_list("cpuset_cpus", raw.cpuset_cpus)?,
        cpuset_mems: cpu_list("cpuset_mems", raw.cpuset_mems)?,
        hugepage_limits: raw
            .hugepage_limits
            .into_iter()
            .map(|limit| match limit.page_size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                true => Ok((limit.page_size, limit.limit)),
                false => Err(wrong("hugepage_limits", format_args!("{:?} is no page size", limit.page_size))),
            })
            .collect::<Result<_>>()?,
        unified: raw.unified.into_iter().map(|(key, value)| Ok((key, line("unified", value, LINE_MAX)?))).collect::<Result<_>>()?,
    })
}

fn cpu_list(field: &str, list: String) -> Result<String> {
    match list.len() <= LINE_MAX && list.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-')) {
        true => Ok(list),
        false => Err(wrong(field, "not a list such as 0-2,7")),
    }
}

fn selinux(raw: wire::SeLinuxOption) -> Result<Selinux> {
    let part = |text| line("selinux_options", text, NAME_MAX);
    Ok(Selinux { user: part(raw.user)?, role: part(raw.role)?, kind: part(raw.r#type)?, level: part(raw.level)? })
}

/// A user or group id. The last one, 2^32 - 1, means "none" to the kernel.
fn id(field: &str, number: i64) -> Result<u32> {
    match u32::try_from(number) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(wrong(field, format_args!("{number} is no user or group id"))),
    }
}

fn security_profile(field: &str, raw: wire::SecurityProfile) -> Result<SecurityProfile> {
    match raw.profile_type {
        0 => Ok(SecurityProfile::RuntimeDefault),
        1 => Ok(SecurityProfile::Unconfined),
        2 if raw.localhost_ref.is_empty() => Err(wrong(field, "a profile of the node without its name")),
        2 => Ok(SecurityProfile::Localhost(line(field, raw.localhost_ref, LINE_MAX)?)),
        other => Err(wrong(field, format_args!("unknown profile type {other}"))),
    }
}
