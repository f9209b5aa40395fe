// SPDX-License-Identifier: Apache-2.0
//! Limits and what is measured.

use anyhow::{Context, Result, ensure};
use magnetar_cri::{Container, v1::LinuxContainerResources};
use magnetar_e2e::{
    Case, eventually,
    kernel::{self, remove_cgroups},
    on_magnetar, on_magnetar_that_resizes_pods, on_node, refused,
};

const MIB: i64 = 1 << 20;

#[test]
fn limits_are_in_the_containers_cgroup() {
    on_node(async |case| {
        let pod = case.pod("limits").await?;
        let spec = case.sleeper().resources(|r| {
            r.memory_limit_in_bytes = 64 * MIB;
            r.cpu_period = 100_000;
            r.cpu_quota = 50_000;
            r.cpu_shares = 512;
            r.cpuset_cpus = "0".to_owned();
        });
        let container = pod.run(&spec).await?;
        assert_eq!(memory_limit(case, &container).await?, (64 * MIB).to_string());
        assert_eq!(cpu_quota(case, &container).await?, "50000");
        // The numbers of the node's processors mean nothing to a virtual machine.
        if !case.is_vm() {
            let file = ("cpuset", "cpuset.cpus");
            assert_eq!(kernel::container_file(case, &container, file, file.1).await?, "0");
        }
        // With version 2 the shares become a weight, and runtimes differ in the formula.
        if !kernel::cgroup::unified() && !case.is_vm() {
            assert_eq!(kernel::container_file(case, &container, ("cpu", "cpu.shares"), "").await?, "512");
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn changed_limits_are_in_the_cgroup_while_the_container_runs() {
    on_node(async |case| {
        let pod = case.pod("update").await?;
        let container = pod.run(&case.sleeper().memory(64 * MIB)).await?;
        let pid = container.pid().await?;
        let more =
            LinuxContainerResources { memory_limit_in_bytes: 96 * MIB, cpu_period: 100_000, cpu_quota: 25_000, ..Default::default() };
        container.update(more).await?;
        assert_eq!(memory_limit(case, &container).await?, (96 * MIB).to_string());
        assert_eq!(cpu_quota(case, &container).await?, "25000");
        assert_eq!(container.pid().await?, pid);
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn limits_can_be_changed_before_the_container_is_started() {
    on_node(async |case| {
        let pod = case.pod("update-created").await?;
        let container = pod.create(&case.sleeper().memory(64 * MIB)).await?;
        container.update(LinuxContainerResources { memory_limit_in_bytes: 96 * MIB, ..Default::default() }).await?;
        container.start().await?;
        assert_eq!(memory_limit(case, &container).await?, (96 * MIB).to_string());
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_over_its_memory_limit_is_reported_as_oom_killed() {
    on_node(async |case| {
        let pod = case.pod("oom").await?;
        // tail keeps all of an endless line.
        let spec = case.script("exec tail /dev/zero").resources(|r| {
            r.memory_limit_in_bytes = 20 * MIB;
            r.memory_swap_limit_in_bytes = 20 * MIB;
        });
        let container = pod.run(&spec).await?;
        let status = container.exited(case.within(60)).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
        // The pod is none the worse for it.
        assert_eq!(case.output(&pod, &case.script("echo fine").named("next")).await?, "fine\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_child_process_over_the_memory_limit_dies_alone() {
    on_node(async |case| {
        let pod = case.pod("oom-child").await?;
        let spec = case.script("tail /dev/zero; echo \"child $?\"; sleep 1000").resources(|r| {
            r.memory_limit_in_bytes = 20 * MIB;
            r.memory_swap_limit_in_bytes = 20 * MIB;
        });
        let container = pod.run(&spec).await?;
        container.logged(case.within(60), |log| log.stdout().contains("child 137")).await?;
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn statistics_of_a_container_show_what_it_uses() {
    on_node(async |case| {
        let pod = case.pod("stats").await?;
        let container = pod.run(&case.script("while :; do :; done")).await?;
        let used = eventually("processor time is counted", case.soon(), async || {
            let used = container.stats().await?.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |v| v.value);
            Ok((used > 200_000_000).then_some(used))
        })
        .await?;
        eventually("processor time grows", case.soon(), async || {
            let now = container.stats().await?.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |v| v.value);
            Ok((now > used).then_some(()))
        })
        .await?;
        let stats = container.stats().await?;
        let memory = stats.memory.context("no memory")?;
        ensure!(memory.working_set_bytes.is_some_and(|m| m.value > 0), "{memory:?}");
        assert_eq!(stats.attributes.map(|a| a.id), Some(container.id().to_owned()));
        Ok(pod.remove().await?)
    });
}

#[test]
fn statistics_of_a_pod_cover_its_containers_processes_and_network() {
    on_node(async |case| {
        // As a kubelet would: containerd's own sandboxes have statistics only with a cgroup.
        let parent = "/magnetar-e2e-stats";
        let pod = case.node().run_pod(&case.pod_spec_with_network("pod-stats").cgroup_parent(parent)).await?;
        let container = pod.run(&case.sleeper()).await?;
        let stats = pod.stats().await?.linux.context("no linux part")?;
        let ids: Vec<_> = stats.containers.iter().filter_map(|c| Some(c.attributes.as_ref()?.id.as_str())).collect();
        assert_eq!(ids, [container.id()]);
        ensure!(stats.cpu.is_some() && stats.memory.is_some(), "{stats:?}");
        let link = stats.network.context("no network")?.default_interface.context("no interface")?;
        assert_eq!(link.name, "eth0");
        ensure!(stats.process.and_then(|p| p.process_count).is_some_and(|n| n.value > 0), "no processes");
        let listed = case.node().pod_stats().await?;
        let found = listed.iter().any(|s| s.attributes.as_ref().is_some_and(|a| a.id == pod.id()));
        ensure!(found, "the pod is not in the list: {listed:?}");
        pod.remove().await?;
        remove_cgroups(case, parent).await
    });
}

#[test]
fn a_resized_pod_says_so_and_one_whose_cgroup_was_not_changed_is_refused() {
    on_magnetar_that_resizes_pods(async |case| {
        let parent = "/magnetar-e2e-resized";
        let limits = |memory_mib: i64, quota| LinuxContainerResources {
            memory_limit_in_bytes: memory_mib * MIB,
            cpu_period: 100_000,
            cpu_quota: quota,
            ..Default::default()
        };
        // Room for what a virtual machine is beside its containers.
        kernel::limit_pod(parent, 800 * MIB, 150_000, 100_000)?;
        let spec = case.pod_spec("resized").cgroup_parent(parent).resources(limits(64, 100_000));
        let pod = case.node().run_pod(&spec).await?;
        let said = async || -> Result<_> { Ok(pod.info().await?["resources"]["linux"]["memory_limit_in_bytes"].as_i64()) };
        pod.resize(limits(128, 150_000)).await?;
        assert_eq!(said().await?, Some(128 * MIB));
        let words = ["the cgroup that was made for it, has a memory limit of 838860800 bytes, less than 1073741824", "raise that first"];
        refused(pod.resize(limits(1024, 150_000)).await, &words)?;
        let words = ["has a quota of 150000 µs of processor time in 100000, less than 150001 in 100000"];
        refused(pod.resize(limits(128, 150_001)).await, &words)?;
        pod.resize(limits(64, 100_000)).await?;
        assert_eq!(case.output(&pod, &case.script("echo fine")).await?, "fine\n");
        pod.stop().await?;
        ensure!(pod.resize(limits(64, 100_000)).await.is_err(), "a pod that has ended was resized");
        pod.remove().await?;
        remove_cgroups(case, parent).await
    });
}

#[test]
fn containers_are_below_the_cgroup_that_the_kubelet_made_for_the_pod() {
    on_node(async |case| {
        let parent = "/magnetar-e2e-pod";
        let pod = case.node().run_pod(&case.pod_spec("cgroup-parent").cgroup_parent(parent)).await?;
        let container = pod.run(&case.sleeper()).await?;
        let path = kernel::cgroup_of(container.pid().await?, "memory")?;
        ensure!(path.to_string_lossy().contains(parent), "{}", path.display());
        pod.remove().await?;
        // A kubelet's cgroup is the kubelet's to remove; here that is the test.
        remove_cgroups(case, parent).await
    });
}

#[test]
fn a_sandbox_process_has_its_own_cgroup_and_a_machine_is_in_its_pods_cgroup() {
    on_magnetar("only our pods have a sandbox process whose place is known", async |case| {
        let parent = "/magnetar-e2e-cost";
        let pod = case.node().run_pod(&case.pod_spec("cost").cgroup_parent(parent)).await?;
        let pid = case.sandbox_pid(&pod)?;
        eventually("the sandbox process is where those of all pods are", case.soon(), async || {
            let own = kernel::cgroup_of(pid, "freezer")?;
            Ok((own.ends_with(format!("magnetar-sandboxes/k8s.io/{}", pod.id()))).then_some(()))
        })
        .await?;
        ensure!(kernel::cgroup_of(pid, "memory")?.to_string_lossy().contains("magnetar-sandboxes"), "its memory is counted elsewhere");
        if case.is_vm() {
            let machine = pod.run(&case.sleeper()).await?.pid().await?;
            let place = kernel::cgroup_of(machine, "memory")?;
            ensure!(place.to_string_lossy().contains(parent), "the machine's memory is counted in {}", place.display());
        }
        pod.remove().await?;
        remove_cgroups(case, parent).await
    });
}

#[test]
fn unified_cgroup_settings_are_applied() {
    on_node(async |case| {
        if !kernel::cgroup::unified() && !case.is_vm() {
            return Ok(());
        }
        let pod = case.pod("unified").await?;
        let spec = case.sleeper().resources(|r| {
            r.unified.insert("pids.max".to_owned(), "77".to_owned());
        });
        let container = pod.run(&spec).await?;
        assert_eq!(kernel::container_file(case, &container, ("", ""), "pids.max").await?, "77");
        Ok(pod.remove().await?)
    });
}

async fn memory_limit(case: &Case, container: &Container) -> Result<String> {
    kernel::container_file(case, container, ("memory", "memory.limit_in_bytes"), "memory.max").await
}

async fn cpu_quota(case: &Case, container: &Container) -> Result<String> {
    let value = kernel::container_file(case, container, ("cpu", "cpu.cfs_quota_us"), "cpu.max").await?;
    Ok(value.split(' ').next().unwrap_or_default().to_owned())
}
