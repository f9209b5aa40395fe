// SPDX-License-Identifier: Apache-2.0
//! What a pod's containers share with each other and with the node.

use anyhow::{Result, ensure};
use magnetar_cri::{
    Container, PodSpec,
    v1::{NamespaceMode, NamespaceOption},
};
use magnetar_e2e::{Case, eventually, kernel, on_node, on_shared_kernel};

const NO_USERNS: &str = "a virtual machine has no user namespace of the node, as vm.rs tests";

#[test]
fn containers_of_a_pod_share_network_host_name_and_ipc_but_neither_files_nor_pids() {
    on_node(async |case| {
        let spec = case.pod_spec_with_network("shares");
        check_shared(case, spec, &["net", "uts", "ipc"], &["mnt", "pid"]).await
    });
}

#[test]
fn containers_of_a_pod_with_shared_pids_are_in_one_pid_namespace() {
    on_node(async |case| {
        let spec = case.pod_spec_with_network("shares-pid").shared_pid();
        check_shared(case, spec, &["net", "uts", "ipc", "pid"], &["mnt"]).await
    });
}

async fn check_shared(case: &Case, spec: PodSpec, shared: &[&str], own: &[&str]) -> Result<()> {
    let pod = case.node().run_pod(&spec).await?;
    let first = pod.run(&case.sleeper().named("first")).await?;
    let second = pod.run(&case.sleeper().named("second")).await?;
    let me = std::process::id().cast_signed();
    for kind in shared.iter().chain(own) {
        let namespace = kernel::container_namespace(case, &first, kind).await?;
        let same = namespace == kernel::container_namespace(case, &second, kind).await?;
        assert_eq!(same, shared.contains(kind), "{kind}");
        // Of another kernel's namespaces none is the node's, whatever their numbers.
        ensure!(case.is_vm() || namespace != kernel::namespace(me, kind)?, "{kind} is the node's");
    }
    Ok(pod.remove().await?)
}

#[test]
fn a_pod_that_requests_the_nodes_namespaces_is_in_them() {
    on_shared_kernel("a virtual machine cannot have the node's namespaces, as vm.rs tests", async |case| {
        let spec = case.pod_spec("host").host_pid().host_ipc();
        let pod = case.node().run_pod(&spec).await?;
        let container = pod.run(&case.sleeper()).await?;
        let pid = container.pid().await?;
        let me = std::process::id().cast_signed();
        for kind in ["net", "pid", "ipc"] {
            assert_eq!(kernel::namespace(pid, kind)?, kernel::namespace(me, kind)?, "{kind}");
        }
        let seen = container.exec(["ps", "-o", "args"]).await?.stdout;
        ensure!(seen.contains("containerd"), "{seen}");
        let name = container.exec(["hostname"]).await?.stdout;
        assert_eq!(name, std::fs::read_to_string("/proc/sys/kernel/hostname")?);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_with_its_own_pid_namespace_is_process_1() {
    on_node(async |case| {
        let pod = case.pod("own-pid").await?;
        assert_eq!(case.output(&pod, &case.script("echo $$")).await?, "1\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn with_shared_pids_containers_see_each_other_and_none_is_process_1() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec("shared-pid").shared_pid()).await?;
        pod.run(&case.script("exec sleep 86421").named("seen")).await?;
        let looks = pod.run(&case.sleeper()).await?;
        let seen = looks.exec(["ps", "-o", "pid,args"]).await?.stdout;
        ensure!(seen.contains("sleep 86421"), "{seen}");
        let script = case.script("echo $$").named("pid");
        ensure!(case.output(&pod, &script).await? != "1\n", "a container is process 1");
        Ok(pod.remove().await?)
    });
}

#[test]
fn with_shared_pids_orphans_are_reaped() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec("orphans").shared_pid()).await?;
        // The subshell's child outlives it, and `sleep` never reaps what it did not start.
        let container = pod.run(&case.script("i=0; while [ $i -lt 10 ]; do i=$((i + 1)); (sleep 0.3 &); done; exec sleep 1000")).await?;
        eventually("no dead process is left", case.soon(), async || {
            let seen = container.exec(["ps", "-o", "stat,args"]).await?.stdout;
            Ok((!seen.contains("sleep 0.3") && !seen.lines().any(|line| line.starts_with('Z'))).then_some(()))
        })
        .await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn with_shared_pids_the_pod_survives_the_end_of_any_container() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec("shared-end").shared_pid()).await?;
        let ends = pod.run(&case.script("exit 0").named("ends")).await?;
        ends.exited(case.soon()).await?;
        assert_eq!(case.output(&pod, &case.script("echo fine").named("next")).await?, "fine\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_can_join_another_containers_pid_namespace() {
    on_shared_kernel("in a virtual machine only a whole pod can share its pids, as vm.rs tests", async |case| {
        let pod = case.pod("target").await?;
        let target = pod.run(&case.script("exec sleep 86422").named("target")).await?;
        // `create` gives each container its pod's modes; a debug container has its own.
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: NamespaceMode::Target.into(),
            target_id: target.id().to_owned(),
            ..Default::default()
        };
        let debug = pod.create_in(&case.sleeper().named("debug"), namespaces).await?;
        debug.start().await?;
        let seen = debug.exec(["ps", "-o", "args"]).await?.stdout;
        ensure!(seen.contains("sleep 86422"), "{seen}");
        Ok(pod.remove().await?)
    });
}

#[test]
fn root_in_a_user_namespace_is_an_unprivileged_user_on_the_node() {
    on_shared_kernel(NO_USERNS, async |case| {
        let spec = case.pod_spec_with_network("userns").user_namespace(100_000, 65_536);
        let pod = case.node().run_pod(&spec).await?;
        let container = pod.run(&case.sleeper()).await?;
        assert_eq!(kernel::status(container.pid().await?, "Uid")?.split_whitespace().next(), Some("100000"));
        assert_eq!(words(&container, "id -u").await?, "0");
        assert_eq!(words(&container, "cat /proc/self/uid_map").await?, "0 100000 65536");
        // The image's files belong to root in there.
        assert_eq!(words(&container, "stat -c %u:%g /bin/busybox").await?, "0:0");
        assert_eq!(words(&container, "touch /made && stat -c %u /made").await?, "0");
        Ok(pod.remove().await?)
    });
}

#[test]
fn two_pods_with_different_user_namespaces_run_side_by_side() {
    on_shared_kernel(NO_USERNS, async |case| {
        let one = case.node().run_pod(&case.pod_spec_with_network("userns-1").user_namespace(100_000, 65_536)).await?;
        let two = case.node().run_pod(&case.pod_spec_with_network("userns-2").user_namespace(200_000, 65_536)).await?;
        for (pod, first) in [(&one, "100000"), (&two, "200000")] {
            let container = pod.run(&case.sleeper()).await?;
            assert_eq!(words(&container, "cat /proc/self/uid_map").await?, format!("0 {first} 65536"));
        }
        one.remove().await?;
        Ok(two.remove().await?)
    });
}

#[test]
fn volumes_of_a_pod_with_a_user_namespace_keep_their_owners() {
    on_shared_kernel(NO_USERNS, async |case| {
        let scratch = magnetar_e2e::Scratch::new()?;
        std::fs::write(scratch.path().join("from-node"), "hello")?;
        let spec = case.pod_spec_with_network("userns-volume").user_namespace(100_000, 65_536);
        let pod = case.node().run_pod(&spec).await?;
        let map = magnetar_cri::v1::IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };
        let mounted = case.sleeper().mount(&scratch.join(""), "/volume").edit(|c| {
            for mount in &mut c.mounts {
                mount.uid_mappings = vec![map];
                mount.gid_mappings = vec![map];
            }
        });
        let container = pod.run(&mounted).await?;
        assert_eq!(words(&container, "stat -c %u /volume/from-node").await?, "0");
        words(&container, "echo hi >/volume/from-pod").await?;
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(std::fs::metadata(scratch.path().join("from-pod"))?.uid(), 0);
        Ok(pod.remove().await?)
    });
}

/// What a script in a container prints, its white space made plain.
async fn words(container: &Container, script: &str) -> Result<String> {
    let output = container.shell(script).await?;
    ensure!(output.code == 0, "{script}: {}", output.stderr);
    Ok(output.stdout.split_whitespace().collect::<Vec<_>>().join(" "))
}
