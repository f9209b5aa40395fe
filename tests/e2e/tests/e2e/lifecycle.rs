// SPDX-License-Identifier: Apache-2.0
//! The life of a pod and of its containers.

use std::process::Command;

use anyhow::{Context, ensure};
use magnetar_cri::v1::{ContainerState, PodSandboxState};
use magnetar_e2e::{eventually, on_magnetar, on_node, on_shared_kernel, refused, steady};

#[test]
fn output_and_exit_code_of_a_container_reach_its_log_and_status() {
    on_node(async |case| {
        let pod = case.pod("exit-code").await?;
        let container = pod.run(&case.script("echo to stdout; echo to stderr >&2; exit 3")).await?;
        let status = container.exited(case.soon()).await?;
        assert_eq!(status.exit_code, 3);
        assert_eq!(status.reason, "Error");
        let log = case.whole_log(&container).await?;
        assert_eq!(log.stdout(), "to stdout\n");
        assert_eq!(log.stderr(), "to stderr\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_successful_exit_is_reported_as_completed_with_times_in_order() {
    on_node(async |case| {
        let pod = case.pod("completed").await?;
        let container = pod.run(&case.script("sleep 0.2")).await?;
        let status = container.exited(case.soon()).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
        ensure!(status.created_at <= status.started_at, "{status:?}");
        // containerd notes the start a little after it has happened.
        ensure!(status.finished_at - status.started_at >= 100_000_000, "{status:?}");
        Ok(pod.remove().await?)
    });
}

#[test]
fn pods_are_listed_by_their_records() {
    on_magnetar("other handlers have no records", async |case| {
        let pod = case.pod("listed").await?;
        let container = pod.run(&case.sleeper()).await?;
        let id = pod.id().to_owned();
        let listed = || -> anyhow::Result<Option<serde_json::Value>> {
            let output = Command::new("containerd-shim-magnetar-v2").args(["pods", "--json"]).output()?;
            ensure!(output.status.success(), "{output:?}");
            let pods: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)?;
            Ok(pods.into_iter().find(|listed| listed["id"] == id.as_str()))
        };
        let found = listed()?.context("the pod is not listed")?;
        ensure!(found["state"] == "running" && found["pid"] == case.sandbox_pid(&pod)?, "{found}");
        ensure!(found["name"].as_str().is_some_and(|name| name.ends_with("/listed")) && found["containers"] == 1, "{found}");
        ensure!(found["memory"].as_u64().is_some_and(|bytes| bytes > 0) && found["age"].as_u64() < Some(600), "{found}");
        let kind = format!("magnetar-{}", found["kind"].as_str().unwrap_or_default().replace("cloud-hypervisor", "clh"));
        ensure!(case.handler().starts_with(&kind), "{found} by {}", case.handler());
        container.remove().await?;
        ensure!(listed()?.is_some_and(|found| found["containers"] == 0));
        pod.remove().await?;
        ensure!(listed()?.is_none());
        Ok(())
    });
}

#[test]
fn a_created_container_runs_only_when_it_is_started() {
    on_node(async |case| {
        let pod = case.pod("created").await?;
        let container = pod.create(&case.script("echo runs")).await?;
        steady("the container has not run", case.within(1), async || {
            let created = container.status().await?.state == i32::from(ContainerState::ContainerCreated);
            Ok(created && container.log()?.entries.is_empty())
        })
        .await?;
        container.start().await?;
        container.exited(case.soon()).await?;
        assert_eq!(case.whole_log(&container).await?.stdout(), "runs\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_is_removed_with_a_container_that_was_never_started() {
    on_node(async |case| {
        let pod = case.pod("never-started").await?;
        pod.create(&case.sleeper()).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_is_ready_until_it_is_stopped_and_gone_when_it_is_removed() {
    on_node(async |case| {
        let spec = case.pod_spec("ready").label("of", "the test").annotation("some", "note");
        let pod = case.node().run_pod(&spec).await?;
        let status = pod.status().await?;
        assert_eq!(status.state, i32::from(PodSandboxState::SandboxReady));
        assert_eq!(status.runtime_handler, case.handler());
        assert_eq!(status.labels.get("of").map(String::as_str), Some("the test"));
        assert_eq!(status.annotations.get("some").map(String::as_str), Some("note"));
        pod.stop().await?;
        assert_eq!(pod.state().await?, PodSandboxState::SandboxNotready);
        let id = pod.id().to_owned();
        pod.remove().await?;
        ensure!(case.node().pods().await?.iter().all(|p| p.id != id), "the pod is still listed");
        Ok(())
    });
}

#[test]
fn stopping_and_removing_a_pod_twice_succeeds() {
    on_node(async |case| {
        let pod = case.pod("twice").await?;
        pod.run(&case.sleeper()).await?;
        pod.stop().await?;
        pod.stop().await?;
        let id = pod.id().to_owned();
        pod.remove().await?;
        Ok(case.node().remove_pod(&id).await?)
    });
}

#[test]
fn a_running_container_is_removed_by_force() {
    on_node(async |case| {
        let pod = case.pod("force").await?;
        let container = pod.run(&case.sleeper()).await?;
        let id = container.id().to_owned();
        container.remove().await?;
        ensure!(case.node().containers().await?.iter().all(|c| c.id != id), "the container is still listed");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_that_ended_is_followed_by_another_in_the_same_pod() {
    on_node(async |case| {
        let pod = case.pod("restart").await?;
        for attempt in 0..3 {
            let spec = case.script("exit 1").edit(|c| c.metadata.get_or_insert_default().attempt = attempt);
            let container = pod.run(&spec).await?;
            assert_eq!(container.exited(case.soon()).await?.exit_code, 1);
        }
        assert_eq!(case.output(&pod, &case.script("echo fine").named("last")).await?, "fine\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn containers_of_a_pod_end_independently() {
    on_node(async |case| {
        let pod = case.pod("siblings").await?;
        let stays = pod.run(&case.sleeper().named("stays")).await?;
        let ends = pod.run(&case.script("exit 0").named("ends")).await?;
        ends.exited(case.soon()).await?;
        ends.remove().await?;
        steady("the other container runs", case.within(1), async || {
            Ok(stays.status().await?.state == i32::from(ContainerState::ContainerRunning))
        })
        .await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_second_pod_of_the_same_name_is_refused_and_the_first_runs_on() {
    on_node(async |case| {
        let spec = case.pod_spec("same-name");
        let pod = case.node().run_pod(&spec).await?;
        refused(case.node().run_pod(&spec.log_directory(pod.log_directory())).await, &["reserved"])?;
        assert_eq!(pod.state().await?, PodSandboxState::SandboxReady);
        Ok(pod.remove().await?)
    });
}

#[test]
fn environment_and_working_directory_are_as_requested() {
    on_node(async |case| {
        let pod = case.pod("environment").await?;
        let spec = case.script("echo \"$GREETING in $PWD\"").env("GREETING", "good day").working_dir("/var/run");
        assert_eq!(case.output(&pod, &spec).await?, "good day in /var/run\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn containerd_reports_the_pid_of_the_containers_process() {
    on_shared_kernel("of a virtual machine containerd knows the hypervisor's process only, as vm.rs tests", async |case| {
        let pod = case.pod("pid").await?;
        let container = pod.run(&case.sleeper()).await?;
        let pid = container.pid().await?;
        // A container counts as started when its program is about to be executed, so that may still
        // be to come.
        let is_the_program = async || {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).context("no such process on the node")?;
            Ok(command.contains("while :").then_some(()))
        };
        eventually("the process is the container's program", case.soon(), is_the_program).await?;
        container.stop(5).await?;
        eventually("the process is gone", case.soon(), async || Ok((!exists(pid)).then_some(()))).await?;
        Ok(pod.remove().await?)
    });
}

fn exists(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_pod_can_have_ten_containers() {
    on_node(async |case| {
        let pod = case.pod("ten").await?;
        let mut containers = Vec::new();
        for n in 0..10 {
            containers.push(pod.run(&case.sleeper().named(&format!("c{n}"))).await?);
        }
        for (n, container) in containers.iter().enumerate() {
            let words = container.exec(["echo".to_owned(), n.to_string()]).await?;
            assert_eq!(words.stdout, format!("{n}\n"));
        }
        let listed = case.node().containers().await?;
        assert_eq!(listed.iter().filter(|c| c.pod_sandbox_id == pod.id()).count(), 10);
        Ok(pod.remove().await?)
    });
}
