// SPDX-License-Identifier: Apache-2.0
//! Tests that configurations of containerd are decoded, that invalid ones are refused, and that no
//! bytes make the decoder panic.

use super::*;
use crate::error::Code;
use proptest::prelude::*;
use prost::Message;

const URL: &str = "type.googleapis.com/runtime.v1.PodSandboxConfig";

fn decode(raw: &wire::PodSandboxConfig) -> Result<PodConfig> {
    PodConfig::decode(URL, &raw.encode_to_vec())
}

/// A pod with one thing changed.
fn with(change: impl FnOnce(&mut wire::PodSandboxConfig)) -> Result<PodConfig> {
    let mut raw = wire::PodSandboxConfig::default();
    change(&mut raw);
    decode(&raw)
}

fn with_linux(change: impl FnOnce(&mut wire::LinuxPodSandboxConfig)) -> Result<PodConfig> {
    with(|raw| change(raw.linux.get_or_insert_default()))
}

fn with_security(change: impl FnOnce(&mut wire::LinuxSandboxSecurityContext)) -> Result<PodConfig> {
    with_linux(|linux| change(linux.security_context.get_or_insert_default()))
}

fn with_userns(mode: i32, uids: &[(u32, u32, u32)]) -> Result<PodConfig> {
    with_security(|security| {
        let map = |&(container_id, host_id, length): &(u32, u32, u32)| wire::IdMapping { container_id, host_id, length };
        let gids = if mode == 0 { vec![map(&(0, 1000, 1))] } else { vec![] };
        security.namespace_options.get_or_insert_default().userns_options =
            Some(wire::UserNamespace { mode, uids: uids.iter().map(map).collect(), gids });
    })
}

#[track_caller]
fn refused(result: Result<PodConfig>, field: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.to_string().contains(field), "{error}");
}

/// A length-delimited field of protobuf, written by hand, so that the field numbers are tested
/// against other code than their own.
fn field(number: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
}

/// A varint field.
fn number(number: u8, value: u64) -> Vec<u8> {
    let mut bytes = vec![number << 3];
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}

#[test]
fn a_message_of_handwritten_bytes_is_decoded() {
    let metadata = [field(1, "pod"), field(2, "u"), field(3, "dev"), number(4, 2)].concat();
    let namespaces = [number(1, 2), number(2, 1), number(3, 0)].concat();
    let resources = [number(1, 100_000), number(2, 50_000), number(4, 524_288)].concat();
    let linux =
        [field(1, "/c"), field(2, field(1, namespaces)), field(3, [field(1, "net.x"), field(2, "a b")].concat()), field(5, resources)];
    let bytes = [
        field(1, metadata),
        field(2, "host"),
        field(3, "/logs"),
        field(4, [field(1, "1.1.1.1"), field(2, "s"), field(3, "o:1")].concat()),
        field(6, [field(1, "k"), field(2, "v")].concat()),
        field(7, [field(1, "a"), field(2, "b")].concat()),
        field(8, linux.concat()),
        field(9, "windows, which we skip"),
    ]
    .concat();
    let pod = PodConfig::decode(URL, &bytes).unwrap();
    assert_eq!((pod.name.as_str(), pod.uid.as_str(), pod.namespace.as_str(), pod.attempt), ("pod", "u", "dev", 2));
    assert_eq!((pod.hostname.as_str(), pod.log_directory), ("host", Some(PathBuf::from("/logs"))));
    assert_eq!(pod.dns.unwrap(), Dns { servers: vec!["1.1.1.1".into()], searches: vec!["s".into()], options: vec!["o:1".into()] });
    assert_eq!((pod.labels["k"].as_str(), pod.annotations["a"].as_str()), ("v", "b"));
    assert_eq!(pod.cgroup_parent.as_deref(), Some("/c"));
    assert_eq!((pod.network, pod.pid, pod.ipc), (NamespaceMode::Node, NamespaceMode::Container, NamespaceMode::Pod));
    assert_eq!(pod.sysctls["net.x"], "a b");
    let resources = pod.resources.unwrap();
    assert_eq!((resources.cpu_period, resources.cpu_quota, resources.memory_limit), (Some(100_000), Some(50_000), Some(524_288)));
    assert_eq!((pod.overhead, pod.userns, pod.privileged), (None, None, false));
}

#[test]
fn an_empty_configuration_is_the_default() {
    assert_eq!(PodConfig::decode("runtime.v1.PodSandboxConfig", b"").unwrap(), PodConfig::default());
    assert_eq!(with(|raw| raw.dns_config = Some(wire::DnsConfig::default())).unwrap().dns, Some(Dns::default()));
}

#[test]
fn another_message_or_one_that_is_too_long_is_refused() {
    refused(PodConfig::decode("types.googleapis.com/runtime.v1.ContainerConfig", b""), "runtime.v1.ContainerConfig");
    refused(PodConfig::decode("", b""), "expected");
    refused(PodConfig::decode(URL, &vec![0; MAX_BYTES + 1]), "bytes");
    refused(PodConfig::decode(URL, b"\x0a\xff"), "pod configuration");
}

#[test]
fn hostnames_are_checked() {
    assert_eq!(with(|raw| raw.hostname = "web-0.example_1".into()).unwrap().hostname, "web-0.example_1");
    for bad in ["a".repeat(65), "a b".into(), "a\n127.0.0.1 evil".into(), "é".into(), "a/b".into()] {
        refused(with(|raw| raw.hostname = bad), "hostname");
    }
}

#[test]
fn dns_entries_cannot_add_lines() {
    for bad in ["1.1.1.1\nnameserver 6.6.6.6", "", "a b", "a\0"] {
        let dns = || vec![bad.to_owned()];
        refused(with(|raw| raw.dns_config.get_or_insert_default().servers = dns()), "dns_config.servers");
        refused(with(|raw| raw.dns_config.get_or_insert_default().searches = dns()), "dns_config.searches");
        refused(with(|raw| raw.dns_config.get_or_insert_default().options = dns()), "dns_config.options");
    }
}

#[test]
fn paths_with_parent_directories_are_refused() {
    refused(with(|raw| raw.log_directory = "/var/log/../..".into()), "log_directory");
    refused(with(|raw| raw.log_directory = "logs".into()), "log_directory");
    refused(with_linux(|linux| linux.cgroup_parent = "/kubepods/../..".into()), "cgroup_parent");
    let slice = with_linux(|linux| linux.cgroup_parent = "kubepods-pod1.slice".into()).unwrap();
    assert_eq!(slice.cgroup_parent.as_deref(), Some("kubepods-pod1.slice"));
}

#[test]
fn id_maps_of_user_namespaces_are_checked() {
    let pod = with_userns(0, &[(0, 65536, 65536), (65536, 0, 65536)]).unwrap();
    assert_eq!(pod.userns.unwrap().uids[0], IdMap { container_id: 0, host_id: 65536, length: 65536 });
    assert_eq!(with_userns(2, &[]).unwrap().userns, None);
    refused(with_userns(2, &[(0, 0, 1)]), "userns_options");
    refused(with_userns(1, &[]), "userns_options");
    refused(with_userns(3, &[]), "userns_options");
    refused(with_userns(0, &[]), "userns_options.uids");
    refused(with_userns(0, &[(0, 0, 0)]), "userns_options.uids");
    refused(with_userns(0, &[(0, 1000, 10), (9, 2000, 10)]), "overlap");
    refused(with_userns(0, &[(0, 1000, 10), (10, 1009, 10)]), "overlap");
    refused(with_userns(0, &[(0, u32::MAX, 1)]), "32 bits");
    refused(with_userns(0, &(0..341).map(|n| (n, n, 1)).collect::<Vec<_>>()), "341");
}

#[test]
fn numbers_out_of_range_are_refused() {
    refused(with_security(|security| security.run_as_user = Some(wire::Int64Value { value: -1 })), "run_as_user");
    refused(with_security(|security| security.run_as_group = Some(wire::Int64Value { value: 1 })), "run_as_group");
    refused(with_security(|security| security.supplemental_groups = vec![1 << 32]), "supplemental_groups");
    refused(with_security(|security| security.namespace_options.get_or_insert_default().pid = 3), "pid");
    refused(with_security(|security| security.namespace_options.get_or_insert_default().ipc = 9), "ipc");
    refused(with_security(|security| security.seccomp = Some(wire::SecurityProfile { profile_type: 2, ..Default::default() })), "seccomp");
    refused(with_linux(|linux| linux.resources.get_or_insert_default().cpu_shares = -1), "cpu_shares");
    refused(with_linux(|linux| linux.overhead.get_or_insert_default().oom_score_adj = 1001), "oom_score_adj");
    refused(with_linux(|linux| linux.resources.get_or_insert_default().cpuset_cpus = "0-1;".into()), "cpuset_cpus");
    refused(with(|raw| raw.port_mappings = vec![wire::PortMapping { host_port: 65536, ..Default::default() }]), "port_mappings");
    refused(with(|raw| raw.port_mappings = vec![wire::PortMapping { host_ip: "::x".into(), ..Default::default() }]), "port_mappings");
    for key in ["../x", "memory", ".a", "a/b.c", "a..b"] {
        let unified = BTreeMap::from([(key.to_owned(), "1".to_owned())]);
        refused(with_linux(|linux| linux.resources.get_or_insert_default().unified = unified), "unified");
    }
}

#[test]
fn a_configuration_survives_serialization() {
    let mut pod = with_userns(0, &[(0, 1000, 1)]).unwrap();
    pod.seccomp = Some(SecurityProfile::Localhost("/profile".into()));
    pod.selinux = Some(Selinux { kind: "spc_t".into(), ..Selinux::default() });
    pod.port_mappings =
        vec![PortMapping { protocol: Protocol::Udp, container_port: 1, host_port: 2, host_ip: Some([127, 0, 0, 1].into()) }];
    assert_eq!(serde_json::from_str::<PodConfig>(&serde_json::to_string(&pod).unwrap()).unwrap(), pod);
    assert_eq!(serde_json::from_str::<PodConfig>("{}").unwrap(), PodConfig::default());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = PodConfig::decode(URL, &bytes);
    }

    #[test]
    fn damaged_messages_never_panic(at in any::<prop::sample::Index>(), byte: u8, name in ".{0,40}", value in ".{0,40}") {
        let mut raw = wire::PodSandboxConfig { hostname: name.clone(), ..Default::default() };
        let linux = raw.linux.get_or_insert_default();
        linux.sysctls.insert(name, value);
        linux.resources.get_or_insert_default().cpu_quota = -1;
        let mut bytes = raw.encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(pod) = PodConfig::decode(URL, &bytes) {
            prop_assert!(pod.sysctl_files(true).keys().all(|file| file.is_relative() && !file.to_string_lossy().contains("..")));
        }
    }
}
