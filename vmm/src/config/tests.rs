// SPDX-License-Identifier: Apache-2.0

use super::*;

const HOST: Size = Size { memory_mib: 8192, vcpus: 4 };

fn parse(table: Value) -> Result<VmConfig> {
    VmConfig::parse(table.as_object().unwrap())
}

#[test]
fn invalid_settings_are_refused_by_name() {
    assert_eq!(parse(serde_json::json!({})).unwrap(), VmConfig::default());
    for (table, named) in [
        (serde_json::json!({"memory": 1}), "memory"),
        (serde_json::json!({"memory_mib": 16}), "memory_mib"),
        (serde_json::json!({"vcpus": 0}), "vcpus"),
        (serde_json::json!({"vcpus": 4, "max_vcpus": 3}), "max_vcpus"),
        (serde_json::json!({"max_vcpus": 256}), "max_vcpus"),
        (serde_json::json!({"max_memory_mib": 1023}), "max_memory_mib"),
        (serde_json::json!({"kernel": "vmlinux"}), "kernel"),
        (serde_json::json!({"hypervisor": "xen"}), "xen"),
        (serde_json::json!({"qemu": {"machine": "pc"}}), "pc"),
        (serde_json::json!({"qemu": {"vcpus": 1}}), "vcpus"),
        (serde_json::json!({"cloud-hypervisor": {"machine": "q35"}}), "machine"),
        (serde_json::json!({"machine": "microvm"}), "machine is a setting of QEMU: move it to the table vm.qemu"),
        (serde_json::json!({"vsock": "hybrid"}), "hybrid"),
        (serde_json::json!({"template": true, "huge_pages": true}), "template and huge_pages"),
    ] {
        let error = parse(table).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn a_machines_size_follows_the_pods_limits() {
    let config = VmConfig::default();
    let mut pod = PodConfig::default();
    let nothing = ExtraNeeds::default();
    assert_eq!(config.size(&pod, nothing, HOST), Size { memory_mib: 1024, vcpus: 1 });
    let limits = Resources { memory_limit: Some(100 << 20), cpu_quota: Some(150_000), cpu_period: Some(100_000), ..Resources::default() };
    pod.resources = Some(limits.clone());
    assert_eq!(config.size(&pod, nothing, HOST), Size { memory_mib: 228, vcpus: 2 });
    assert_eq!(config.size(&pod, ExtraNeeds { has_unlimited_container: true, huge_pages: 0 }, HOST).memory_mib, 1124);
    assert_eq!(
        config.size(&pod, ExtraNeeds { has_unlimited_container: false, huge_pages: 16 }, HOST).memory_mib,
        260,
        "huge pages are added"
    );
    assert_eq!(config.size(&pod, nothing, Size { vcpus: 1, ..HOST }).vcpus, 1, "not more than the host has");
    pod.resources = Some(Resources { memory_limit: Some(-1), cpu_quota: Some(-1), ..limits });
    assert_eq!(config.size(&pod, nothing, HOST), Size { memory_mib: 1024, vcpus: 1 });
    let backed = VmConfig { huge_pages: true, memory_mib: 129, ..VmConfig::default() };
    pod.resources = Some(Resources { memory_limit: Some(100 << 20), ..Resources::default() });
    assert_eq!(backed.size(&pod, nothing, HOST).memory_mib, 230, "the host gives whole pages");
}

#[test]
fn a_machine_grows_to_the_configured_bound_or_to_the_hosts_size() {
    let (start, size) = (Size { memory_mib: 384, vcpus: 1 }, |memory_mib, vcpus| Size { memory_mib, vcpus });
    let config = VmConfig::default();
    assert_eq!(config.most(start, HOST), HOST);
    assert_eq!(config.most(start, size(1 << 30, 255)), size(MOST_MEMORY, MOST_VCPUS));
    assert_eq!(config.most(size(9000, 6), HOST), size(9000, 6), "it does not shrink below its start");
    let bounded = VmConfig { max_memory_mib: Some(2048), max_vcpus: Some(16), ..config.clone() };
    assert_eq!(bounded.most(start, HOST), size(2048, 16));
    let backed = VmConfig { huge_pages: true, ..bounded };
    assert_eq!(backed.most(start, HOST), size(384, 16));
}

#[test]
fn shipped_and_example_configurations_parse() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for folder in ["shim/etc/magnetar", "examples/options"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let file = entry.unwrap().path();
            let config = magnetar_core::config::HandlerConfig::read(&file).unwrap();
            let outcome = VmConfig::parse(&config.vm);
            assert!(outcome.is_ok(), "{}: {outcome:?}", file.display());
        }
    }
}

#[test]
fn guest_files_are_found_beside_this_program_and_a_kernel_of_our_own_is_preferred() {
    let prefix = tempfile::tempdir().unwrap();
    let (program, share) = (prefix.path().join("libexec/magnetar/magnetar-vmm"), prefix.path().join("share/magnetar"));
    let files = |config: &VmConfig| config.guest_files(&["own", "debians"], &program);
    let of = |guest: &str| ["vmlinux", "initramfs"].map(|name| share.join(guest).join(name));
    let config = VmConfig::default();
    assert_eq!(files(&config), of("debians"), "neither is there");
    std::fs::create_dir_all(share.join("own")).unwrap();
    std::fs::write(share.join("own/vmlinux"), "").unwrap();
    assert_eq!(files(&config), of("debians"), "our own is not complete");
    std::fs::write(share.join("own/initramfs"), "").unwrap();
    assert_eq!(files(&config), of("own"));
    let kernel = PathBuf::from("/boot/vmlinux");
    let [_, initramfs] = of("debians");
    assert_eq!(files(&VmConfig { kernel: Some(kernel.clone()), ..config }), [kernel, initramfs]);
}
