// SPDX-License-Identifier: Apache-2.0
//! The commands that people type: crictl and ctr.

use anyhow::{Context, Result, ensure};
use magnetar_e2e::{BUSYBOX, Case, Scratch, Tool, eventually, kernel::remove_cgroups, on_node, steady};
use serde_json::json;

/// What a kubelet would make for the pod.
const CGROUP: &str = "/magnetar-e2e-crictl";

#[test]
fn crictl_runs_a_pod_from_creation_to_removal() {
    on_node(async |case| {
        let crictl = Tool::crictl().context("the node has no crictl")?;
        let scratch = Scratch::new()?;
        let (pod_file, container_file) = specifications(case, &scratch)?;
        let pod = crictl.run(&["runp", "--runtime", case.handler(), &pod_file])?;
        let pod = pod.trim();
        let container = crictl.run(&["create", pod, &container_file, &pod_file])?;
        let container = container.trim();
        let outcome = check_crictl(case, &crictl, pod, container).await;
        crictl.run(&["stopp", pod])?;
        crictl.run(&["rmp", pod])?;
        remove_cgroups(case, CGROUP).await?;
        outcome
    });
}

async fn check_crictl(case: &Case, crictl: &Tool, pod: &str, container: &str) -> Result<()> {
    crictl.run(&["start", container])?;
    ensure!(crictl.run(&["pods", "-q"])?.contains(pod), "the pod is not listed");
    ensure!(crictl.run(&["ps", "-q"])?.contains(container), "the container is not listed");
    assert_eq!(crictl.run(&["exec", container, "echo", "from exec"])?, "from exec\n");
    assert_eq!(crictl.run(&["exec", "--sync", container, "echo", "in sync"])?.trim(), "in sync");
    eventually("crictl logs show the output", case.soon(), async || {
        Ok(crictl.run(&["logs", container])?.contains("from container").then_some(()))
    })
    .await?;
    let inspected: serde_json::Value = serde_json::from_str(&crictl.run(&["inspect", container])?)?;
    assert_eq!(inspected["status"]["state"], "CONTAINER_RUNNING");
    ensure!(inspected["info"]["pid"].as_i64().is_some_and(|pid| pid > 0), "no pid: {inspected}");
    let inspected: serde_json::Value = serde_json::from_str(&crictl.run(&["inspectp", pod])?)?;
    assert_eq!(inspected["status"]["state"], "SANDBOX_READY");
    assert_eq!(inspected["info"]["runtimeHandler"].as_str().or(inspected["status"]["runtimeHandler"].as_str()), Some(case.handler()));
    let stats: serde_json::Value = serde_json::from_str(&crictl.run(&["stats", "--output", "json", "--id", container])?)?;
    assert_eq!(stats["stats"][0]["attributes"]["id"], container);
    let stats: serde_json::Value = serde_json::from_str(&crictl.run(&["statsp", "--output", "json", "--id", pod])?)?;
    assert_eq!(stats["stats"][0]["attributes"]["id"], pod);
    crictl.run(&["update", "--memory", "67108864", container])?;
    crictl.run(&["stop", container])?;
    let inspected: serde_json::Value = serde_json::from_str(&crictl.run(&["inspect", container])?)?;
    assert_eq!(inspected["status"]["state"], "CONTAINER_EXITED");
    crictl.run(&["rm", container])?;
    Ok(())
}

fn specifications(case: &Case, scratch: &Scratch) -> Result<(String, String)> {
    // The node's network, which a virtual machine cannot have.
    let namespaces = if case.is_vm() { json!({}) } else { json!({ "network": 2 }) };
    let logs = scratch.join("logs");
    let pod = json!({
        "metadata": { "name": "by-crictl", "uid": scratch.join("uid"), "namespace": "default", "attempt": 0 },
        "log_directory": logs,
        "linux": { "cgroup_parent": CGROUP, "security_context": { "namespace_options": namespaces } },
    });
    let container = json!({
        "metadata": { "name": "by-crictl" },
        "image": { "image": BUSYBOX },
        "command": ["sh", "-c", "trap 'exit 0' TERM; echo from container; while :; do sleep 0.1; done"],
        "log_path": "container.log",
        "linux": { "security_context": { "namespace_options": namespaces } },
    });
    let files = (scratch.join("pod.json"), scratch.join("container.json"));
    std::fs::write(&files.0, pod.to_string())?;
    std::fs::write(&files.1, container.to_string())?;
    Ok(files)
}

#[test]
fn a_paused_container_writes_nothing_until_it_is_resumed() {
    on_node(async |case| {
        let ctr = Tool::ctr().context("the node has no ctr")?;
        let pod = case.pod("pause").await?;
        let container = pod.run(&case.script("while :; do echo tick; sleep 0.02; done")).await?;
        let ticks = || Ok::<_, anyhow::Error>(container.log()?.entries.len());
        container.logged(case.soon(), |log| !log.entries.is_empty()).await?;
        ctr.run(&["task", "pause", container.id()])?;
        ensure!(state(&ctr, container.id())?.contains("PAUSED"), "not paused");
        // What was said before is still on its way.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let paused = ticks()?;
        steady("the container stands still", case.within(1), async || Ok(ticks()? == paused)).await?;
        ctr.run(&["task", "resume", container.id()])?;
        container.logged(case.soon(), |log| log.entries.len() > paused).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_with_a_paused_container_can_be_removed() {
    on_node(async |case| {
        let ctr = Tool::ctr().context("the node has no ctr")?;
        let pod = case.pod("remove-paused").await?;
        let container = pod.run(&case.sleeper()).await?;
        ctr.run(&["task", "pause", container.id()])?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn ctr_lists_the_processes_of_a_container() {
    on_node(async |case| {
        let ctr = Tool::ctr().context("the node has no ctr")?;
        let pod = case.pod("ps").await?;
        let container = pod.run(&case.script("sleep 1000 & sleep 1000; true")).await?;
        let pid = container.pid().await?.to_string();
        // A virtual machine's are not on the node: the hypervisor's stands for all of them.
        let count = if case.is_vm() { 1 } else { 3 };
        eventually(&format!("{count} processes are listed"), case.soon(), async || {
            let listed = ctr.run(&["task", "ps", container.id()])?;
            let pids = listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect::<Vec<_>>();
            Ok((pids.len() == count && pids.contains(&pid.as_str())).then_some(()))
        })
        .await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn ctr_shows_the_metrics_of_a_container() {
    on_node(async |case| {
        let ctr = Tool::ctr().context("the node has no ctr")?;
        let pod = case.pod("metrics").await?;
        let container = pod.run(&case.sleeper()).await?;
        let metrics = ctr.run(&["task", "metrics", container.id()])?;
        ensure!(metrics.contains("memory") && metrics.contains("pids.current"), "{metrics}");
        Ok(pod.remove().await?)
    });
}

fn state(ctr: &Tool, container: &str) -> Result<String> {
    let listed = ctr.run(&["task", "ls"])?;
    Ok(listed.lines().find(|line| line.starts_with(container)).unwrap_or_default().to_owned())
}
