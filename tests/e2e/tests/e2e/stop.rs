// SPDX-License-Identifier: Apache-2.0
//! How containers are made to end.

use std::time::Instant;

use anyhow::ensure;
use magnetar_e2e::{Scratch, eventually, on_node, on_shared_kernel, steady};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[test]
fn a_container_that_handles_sigterm_chooses_its_exit_code() {
    on_node(async |case| {
        let pod = case.pod("term").await?;
        let container = pod.run(&case.script("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done")).await?;
        container.logged(case.soon(), |log| log.stdout() == "ready\n").await?;
        container.stop(60).await?;
        assert_eq!(container.status().await?.exit_code, 7);
        assert_eq!(case.whole_log(&container).await?.stdout(), "ready\nbye\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_that_ignores_sigterm_is_killed_after_its_grace_period() {
    on_node(async |case| {
        let pod = case.pod("grace").await?;
        let container = pod.run(&case.script("trap '' TERM; echo ready; while :; do sleep 0.1; done")).await?;
        container.logged(case.soon(), |log| log.stdout() == "ready\n").await?;
        let start = Instant::now();
        container.stop(2).await?;
        let took = start.elapsed().as_secs_f32();
        ensure!(took >= 1.9, "killed after {took} s");
        assert_eq!(container.status().await?.exit_code, 137);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_killed_from_outside_is_reported_at_once() {
    on_shared_kernel(
        "to kill the process that stands for a container in a virtual machine is the pod's end, as vm.rs tests",
        async |case| {
            let pod = case.pod("killed").await?;
            let container = pod.run(&case.sleeper()).await?;
            kill(Pid::from_raw(container.pid().await?), Signal::SIGKILL)?;
            assert_eq!(container.exited(case.soon()).await?.exit_code, 137);
            Ok(pod.remove().await?)
        },
    );
}

#[test]
fn all_processes_of_a_container_end_with_its_init() {
    on_node(async |case| check_background_process_ends(case, case.pod_spec("background")).await);
}

#[test]
fn all_processes_of_a_container_with_the_nodes_pids_end_with_its_init() {
    on_shared_kernel("a virtual machine cannot have the node's pids, as vm.rs tests", async |case| {
        check_background_process_ends(case, case.pod_spec("background-host").host_pid()).await
    });
}

#[test]
fn all_processes_of_a_container_with_shared_pids_end_with_its_init() {
    on_node(async |case| check_background_process_ends(case, case.pod_spec("background-shared").shared_pid()).await);
}

/// The background process gives signs of life in a volume, which is seen from wherever it runs.
async fn check_background_process_ends(case: &magnetar_e2e::Case, spec: magnetar_cri::PodSpec) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let sign = scratch.path().join("sign");
    let pod = case.node().run_pod(&spec).await?;
    let script = "setsid sh -c 'while :; do touch /volume/sign; sleep 0.05; done' & until [ -e /volume/end ]; do sleep 0.1; done; exit 0";
    let container = pod.run(&case.script(script).mount(&scratch.join(""), "/volume")).await?;
    eventually("the background process runs", case.soon(), async || Ok(sign.exists().then_some(()))).await?;
    std::fs::write(scratch.path().join("end"), "")?;
    container.exited(case.soon()).await?;
    std::fs::remove_file(&sign)?;
    steady("the background process gives no sign", case.within(1), async || Ok(!sign.exists())).await?;
    Ok(pod.remove().await?)
}

#[test]
fn stopping_a_pod_kills_its_containers() {
    on_node(async |case| {
        let pod = case.pod("stop-pod").await?;
        let container = pod.run(&case.script("trap '' TERM; while :; do sleep 0.1; done")).await?;
        pod.stop().await?;
        assert_eq!(container.exited(case.soon()).await?.exit_code, 137);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_created_container_can_be_stopped_and_removed() {
    on_node(async |case| {
        let pod = case.pod("stop-created").await?;
        let container = pod.create(&case.sleeper()).await?;
        // containerd has nothing to stop here; it must not hang, and the removal must work.
        container.stop(1).await?;
        container.remove().await?;
        Ok(pod.remove().await?)
    });
}
