// SPDX-License-Identifier: Apache-2.0
//! The files that a sandbox gives to its containers.

use anyhow::ensure;
use magnetar_e2e::{BUSYBOX, on_node, on_shared_kernel, refused};

#[test]
fn containers_have_the_host_name_of_their_pod() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec_with_network("hostname").hostname("blue-whale")).await?;
        let script = case.script("hostname; cat /etc/hostname; echo $HOSTNAME");
        assert_eq!(case.output(&pod, &script).await?, "blue-whale\nblue-whale\nblue-whale\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_on_the_nodes_network_has_the_nodes_host_name() {
    on_node(async |case| {
        // One in a virtual machine cannot be on it; without a name of its own it has the node's all
        // the same.
        let pod = case.pod("node-name").await?;
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
        assert_eq!(case.output(&pod, &case.script("hostname; cat /etc/hostname")).await?, format!("{name}{name}"));
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_on_the_nodes_network_with_another_host_name_is_refused() {
    on_shared_kernel("a virtual machine cannot be on the node's network at all", async |case| {
        refused(case.node().run_pod(&case.pod_spec("own-name").hostname("blue-whale")).await, &[]).map(drop)
    });
}

/// Scripts, CNI agents and debuggers read it: `crictl inspectp` shows it under `info`.
#[test]
fn verbose_status_of_a_pod_has_its_configuration_and_namespaces() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec_with_network("known").label("colour", "blue")).await?;
        let info = pod.info().await?;
        ensure!(info["pid"].as_i64().is_some_and(|pid| pid > 0), "{info:#}");
        assert_eq!(info["config"]["metadata"]["name"], pod.status().await?.metadata.map(|m| m.name).unwrap_or_default());
        assert_eq!(info["config"]["labels"]["colour"], "blue");
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network").and_then(|namespace| namespace["path"].as_str());
        let path = network.ok_or_else(|| anyhow::anyhow!("no network namespace in {info:#}"))?;
        ensure!(std::path::Path::new(path).exists(), "{path} is not there");
        Ok(pod.remove().await?)
    });
}

#[test]
fn resolv_conf_has_the_pods_dns_configuration() {
    on_node(async |case| {
        let spec =
            case.pod_spec_with_network("dns").dns(&["192.0.2.53", "192.0.2.54"], &["one.test", "two.test"], &["ndots:5", "timeout:1"]);
        let pod = case.node().run_pod(&spec).await?;
        let text = case.output(&pod, &case.script("cat /etc/resolv.conf")).await?;
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["nameserver 192.0.2.53", "nameserver 192.0.2.54", "options ndots:5 timeout:1", "search one.test two.test"]);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_without_dns_configuration_has_the_nodes_resolv_conf_and_hosts() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec_with_network("no-dns")).await?;
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            let script = case.script(&format!("cat {file}")).named(&file.replace('/', "-")[1..]);
            assert_eq!(case.output(&pod, &script).await?, std::fs::read_to_string(file)?, "{file}");
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn dev_shm_is_a_tmpfs_shared_by_the_pods_containers() {
    on_node(async |case| {
        let pod = case.pod("shm").await?;
        let writer = pod.run(&case.sleeper().named("writer")).await?;
        assert_eq!(writer.shell("echo shared >/dev/shm/word").await?.code, 0);
        let reader = case.script("cat /dev/shm/word; grep ' /dev/shm ' /proc/mounts").named("reader");
        let text = case.output(&pod, &reader).await?;
        ensure!(text.starts_with("shared\n"), "{text}");
        ensure!(text.contains("tmpfs"), "{text}");
        ensure!(text.contains("size=65536k"), "not 64 MiB: {text}");
        ensure!(!std::path::Path::new("/dev/shm/word").exists(), "it is the node's");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_with_the_nodes_ipc_has_the_nodes_dev_shm() {
    on_shared_kernel("a virtual machine cannot have the node's IPC namespace, as vm.rs tests", async |case| {
        let pod = case.node().run_pod(&case.pod_spec("host-shm").host_ipc()).await?;
        let file = format!("/dev/shm/magnetar-e2e-{}", std::process::id());
        std::fs::write(&file, "from the node\n")?;
        let text = case.output(&pod, &case.script(&format!("cat {file}"))).await;
        std::fs::remove_file(&file)?;
        assert_eq!(text?, "from the node\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn files_of_a_removed_container_are_not_in_the_next_one() {
    on_node(async |case| {
        let pod = case.pod("fresh-files").await?;
        assert_eq!(case.output(&pod, &case.script("touch /made").named("one")).await?, "");
        assert_eq!(case.output(&pod, &case.script("ls /made 2>/dev/null || echo none").named("two")).await?, "none\n");
        ensure!(case.node().image(BUSYBOX).await?.is_some(), "the image is gone");
        Ok(pod.remove().await?)
    });
}
