// SPDX-License-Identifier: Apache-2.0

use super::*;
use magnetar_core::error::Code;

fn inside(spec: Value) -> Result<Translated> {
    translated(spec, false)
}

fn translated(spec: Value, is_single: bool) -> Result<Translated> {
    let memory = |source: &Path| (source == Path::new("/kubelet/empty-dir")).then_some(7);
    let context = Context { sandbox_pid: 42, shm: Path::new("/run/cri/shm"), memory: &memory, is_single };
    translate(spec, &ContainerId::parse("c1").unwrap(), &context)
}

/// The smallest specification that is accepted, with `more` in `linux`.
fn with_linux(more: Value) -> Value {
    let mut linux = json!({"namespaces": [{"type": "pid"}]});
    linux.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"linux": linux})
}

#[test]
fn hooks_and_sysctls_of_a_container_without_a_pod_are_the_sandboxs() {
    let mut spec = with_linux(json!({"sysctl": {"net.core.somaxconn": "1"}}));
    spec["hooks"] = json!({"createRuntime": [{"path": "/bin/net"}]});
    assert_eq!(inside(spec.clone()).unwrap_err().code(), Code::Unimplemented);
    let inside = translated(spec, true).unwrap().spec;
    assert_eq!((inside.get("hooks"), inside["linux"].get("sysctl")), (None, None));
}

#[test]
fn a_part_that_is_no_object_is_refused() {
    for part in ["root", "process", "linux"] {
        let mut spec = with_linux(json!({}));
        spec[part] = "/".into();
        let error = inside(spec).unwrap_err();
        assert_eq!((error.code(), error.to_string().split(' ').next()), (Code::InvalidArgument, Some(part)));
    }
}

#[test]
fn root_cgroup_and_namespaces_are_the_guests() {
    let spec = json!({
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "web",
        "process": {"apparmorProfile": "x", "selinuxLabel": "y", "args": ["sh"]},
        "linux": {
            "cgroupsPath": "/kubepods/pod1/c1",
            "mountLabel": "y",
            "namespaces": [
                {"type": "pid", "path": "/proc/42/ns/pid"}, {"type": "ipc", "path": "/proc/42/ns/ipc"},
                {"type": "network", "path": "/proc/42/ns/net"}, {"type": "uts", "path": "/proc/42/ns/uts"}, {"type": "mount"},
            ],
        },
    });
    let Translated { spec, shared_pid, .. } = inside(spec).unwrap();
    assert!(shared_pid);
    assert_eq!(spec["root"], json!({"path": "/run/magnetar/share/c1/rootfs", "readonly": true}));
    assert_eq!(spec["process"], json!({"args": ["sh"]}));
    assert_eq!(spec.get("hostname"), None);
    assert_eq!(spec["linux"]["cgroupsPath"], "/pod/c1");
    assert_eq!(spec["linux"]["namespaces"], json!([{"type": "mount"}, {"type": "cgroup"}, {"type": "pid", "path": "/run/magnetar/pid"}]));
}

#[test]
fn containers_share_the_pods_shm_even_without_containerds_mount() {
    let mut spec = with_linux(json!({}));
    spec["mounts"] = json!([{"type": "tmpfs", "source": "shm", "destination": "/dev/shm", "options": ["nosuid", "size=65536k"]}]);
    let Translated { spec, volumes, .. } = inside(spec).unwrap();
    assert!(volumes.is_empty());
    assert_eq!((&spec["mounts"][0]["type"], &spec["mounts"][0]["source"]), (&json!("bind"), &json!("/run/magnetar/shm")));
}

#[test]
fn volumes_are_shared_and_memory_is_the_guests() {
    let bind = |source: &str, options: Value| json!({"type": "bind", "source": source, "destination": "/d", "options": options});
    let mut spec = with_linux(json!({}));
    spec["mounts"] = json!([
        {"type": "proc", "source": "proc", "destination": "/proc"},
        bind("/run/cri/shm", json!(["rbind", "ro"])),
        bind("/var/data", json!(["rbind", "rprivate", "ro"])),
        bind("/kubelet/empty-dir", json!(["rbind", "rw"])),
        bind("/etc/file", json!(["bind", "rslave"])),
    ]);
    let Translated { spec, volumes, shared_pid, .. } = inside(spec).unwrap();
    let sources: Vec<&str> = spec["mounts"].as_array().unwrap().iter().map(|mount| mount["source"].as_str().unwrap()).collect();
    let share = "/run/magnetar/share/c1";
    assert!(!shared_pid);
    assert_eq!(sources, ["proc", "/run/magnetar/shm", &format!("{share}/0"), "/run/magnetar/memory/7", &format!("{share}/1")]);
    assert_eq!(
        volumes,
        [
            Volume { name: "0".into(), source: "/var/data".into(), read_only: true, recursive: true, follows_host: false },
            Volume { name: "1".into(), source: "/etc/file".into(), read_only: false, recursive: false, follows_host: true },
        ]
    );
    assert_eq!(spec["mounts"][4]["options"], json!(["bind", "rprivate"]));
}

#[test]
fn unsupported_features_are_refused_with_the_reason() {
    let cases = [
        (json!({"hooks": {"prestart": [{"path": "/bin/true"}]}}), "prestart hooks"),
        (json!({"linux": {"namespaces": []}}), "host's process ids"),
        (with_linux(json!({"namespaces": [{"type": "pid", "path": "/proc/43/ns/pid"}]})), "of another one"),
        (with_linux(json!({"namespaces": [{"type": "pid"}, {"type": "user"}]})), "hostUsers"),
        (with_linux(json!({"devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]})), "/dev/sda (8:0)"),
        (with_linux(json!({"seccomp": {"listenerPath": "/run/x"}})), "listener"),
    ];
    for (spec, reason) in cases {
        let error = inside(spec.clone()).unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{spec}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let mut shared = with_linux(json!({}));
    shared["mounts"] = json!([{"type": "bind", "source": "/v", "destination": "/d", "options": ["rbind", "rshared"]}]);
    assert!(inside(shared).unwrap_err().to_string().contains("Bidirectional"));
}

#[test]
fn a_block_device_that_the_container_was_given_becomes_a_disk() {
    let device = |path: &str, minor: u32| json!({"path": path, "type": "b", "major": 7, "minor": minor, "fileMode": 432});
    let rule = |minor: i64, access: &str| json!({"allow": true, "type": "b", "major": 7, "minor": minor, "access": access});
    let deny = json!({"allow": false, "access": "rwm"});
    let standard = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
    let given = with_linux(json!({
        "devices": [device("/dev/xvda", 1), device("/dev/again", 1), device("/dev/xvdb", 2)],
        "resources": {"devices": [deny, standard, rule(1, "r"), rule(1, "mrw"), rule(2, "r"), rule(3, "rwm")]},
    }));
    let Translated { spec, disks, .. } = inside(given.clone()).unwrap();
    let disk = |minor, read_only| WantedDisk { device: DeviceNumbers { major: 7, minor }, read_only };
    assert_eq!(disks, [disk(1, false), disk(2, true)]);
    assert_eq!(spec["linux"]["devices"], given["linux"]["devices"]);
    let rules = json!([deny, standard, rule(1, "r"), rule(1, "mrw"), rule(2, "r")]);
    assert_eq!(spec["linux"]["resources"]["devices"], rules, "the one for a device that it does not have is left out");
}

#[test]
fn devices_of_a_privileged_container_are_refused() {
    let devices =
        json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}, {"path": "/dev/loop1", "type": "b", "major": 7, "minor": 1}]);
    for rules in
        [json!([{"allow": true, "access": "rwm"}]), json!([{"allow": true, "type": "b", "major": 7, "minor": -1, "access": "rwm"}])]
    {
        let given = with_linux(json!({"devices": devices, "resources": {"devices": rules}}));
        assert!(inside(given).unwrap_err().to_string().contains("/dev/loop1 (7:1)"));
    }
    // As a block device, the numbers of /dev/null belong to a RAM disk.
    let ram = json!({"devices": [{"path": "/dev/ram3", "type": "b", "major": 1, "minor": 3}]});
    assert!(inside(with_linux(ram)).unwrap_err().to_string().contains("/dev/ram3"));
}

#[test]
fn only_huge_pages_of_the_guests_size_are_kept() {
    let limits = |list: Value| with_linux(json!({"resources": {"hugepageLimits": list}}));
    let given = json!([{"pageSize": "2MB", "limit": 4 << 20}, {"pageSize": "1GB", "limit": 0}]);
    let Translated { spec, huge_pages, .. } = inside(limits(given)).unwrap();
    assert_eq!(huge_pages, 2);
    assert_eq!(spec["linux"]["resources"]["hugepageLimits"], json!([{"pageSize": "2MB", "limit": 4 << 20}]));
    let large = limits(json!([{"pageSize": "1GB", "limit": 1 << 30}]));
    assert!(inside(large).unwrap_err().to_string().contains("1GB"));
}

#[test]
fn limits_for_the_hosts_hardware_are_removed() {
    let mut limits = json!({"cpu": {"quota": 1, "cpus": "0-3", "mems": "0"}, "memory": {"limit": 1}, "blockIO": {"weight": 10}});
    resources(&mut limits);
    assert_eq!(limits, json!({"cpu": {"quota": 1}, "memory": {"limit": 1}}));
    let null = json!({"devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}]});
    assert!(inside(with_linux(null)).is_ok());
}
