// SPDX-License-Identifier: Apache-2.0
//! Machines that grow and shrink with the limits of their containers.

use std::{
    io::{BufRead as _, BufReader, Lines, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use magnetar_cri::{
    Container, ContainerSpec, Pod, PodSpec,
    v1::{self, LinuxContainerResources, PodSandboxState},
};
use magnetar_e2e::{Case, Scratch, eventually, kernel, on_vm, on_vm_that_resizes_pods, refused};

use nix::sys::signal::Signal;

use crate::{
    faults::{is_seen_as_dead, kill_sandbox},
    hostile_guest::hostile,
    options::Replaced,
    vm::{dies, hypervisor, process, send},
};

const MIB: i64 = 1 << 20;
const PERIOD: i64 = 100_000;

/// What the tests' machines may grow to: more processors than the node may have.
const BOUND: &str = "max_vcpus = 4\nmax_memory_mib = 2048";

/// Up to how many processors machines grow. A node whose one processor is itself emulated needs
/// seconds to start one more in a guest, which holds up all others of that guest meanwhile.
fn many(case: &Case) -> usize {
    if case.at_once(4) < 4 { 2 } else { 4 }
}

fn limits(memory_mib: i64, processors: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: memory_mib * MIB,
        cpu_period: PERIOD,
        cpu_quota: processors * PERIOD,
        ..Default::default()
    }
}

/// A pod as a kubelet makes it: it says the sum of its containers' limits, 256 MiB and one
/// processor.
fn pod_spec(case: &Case, name: &str) -> PodSpec {
    case.pod_spec(name).resources(limits(256, 1))
}

fn sleeper(case: &Case, name: &str, memory_mib: i64) -> ContainerSpec {
    case.sleeper().named(name).resources(|r| *r = limits(memory_mib, 1))
}

async fn pod(case: &Case, name: &str) -> Result<Pod> {
    let _until_it_runs = Replaced::with_machine(case, BOUND)?;
    Ok(case.node().run_pod(&pod_spec(case, name)).await?)
}

async fn running(case: &Case, name: &str) -> Result<(Pod, Container)> {
    let pod = pod(case, name).await?;
    let container = pod.run(&sleeper(case, "sleeper", 256)).await?;
    Ok((pod, container))
}

/// What the guest has: its memory in KiB and the number of its processors.
async fn guest(container: &Container) -> Result<(i64, usize)> {
    let said = container.shell("grep MemTotal: /proc/meminfo; grep -c ^processor /proc/cpuinfo").await?.stdout;
    let words: Vec<_> = said.split_whitespace().collect();
    let [_, memory, _, processors] = words[..] else { bail!("the guest says {said:?}") };
    Ok((memory.parse()?, processors.parse()?))
}

/// What the container may use, by its cgroup in the guest.
async fn cgroup(case: &Case, container: &Container) -> Result<(String, String)> {
    let read = async |file| kernel::container_file(case, container, ("", ""), file).await;
    Ok((read("memory.max").await?, read("cpu.max").await?))
}

/// How much memory the container may still take, by its statistics.
async fn left(container: &Container) -> Result<i64> {
    let memory = container.stats().await?.memory.context("no memory")?;
    Ok(memory.available_bytes.context("no limit")?.value.try_into()?)
}

/// A guest gives back page by page, as far as its processors are not busy.
async fn becomes(case: &Case, container: &Container, size: (i64, usize), seconds: u32) -> Result<()> {
    let what = format!("the guest has {size:?}");
    eventually(&what, case.within(seconds), async || Ok((guest(container).await? == size).then_some(()))).await
}

#[test]
fn a_machine_grows_and_shrinks_with_its_containers_limits() {
    on_vm(async |case| {
        let scratch = Scratch::new()?;
        let content: Vec<u8> = (0_u32..4 << 20).flat_map(u32::to_le_bytes).collect();
        std::fs::write(scratch.path().join("given"), &content)?;
        let pod = pod(case, "resize").await?;
        let volume = scratch.path().to_string_lossy().into_owned();
        let container = pod.run(&sleeper(case, "sleeper", 256).mount(&volume, "/v")).await?;
        let (memory, processors) = guest(&container).await?;
        assert_eq!(processors, 1);
        for _ in 0..2 {
            let many = many(case);
            container.update(limits(1024, many as i64)).await?;
            // Its limits are not more than it has: that was so before the answer.
            assert_eq!(guest(&container).await?, (memory + 768 * 1024, many));
            assert_eq!(cgroup(case, &container).await?, ((1024 * MIB).to_string(), format!("{many}00000 100000")));
            ensure!(left(&container).await? > 700 * MIB, "the statistics do not have the new limit");
            // One buffer, more than the machine had.
            let used = container.exec(["dd", "if=/dev/zero", "of=/dev/null", "bs=600M", "count=1"]).await?;
            assert_eq!(used.code, 0, "{}", used.stderr);
            // The kernel caches files in the new memory first, where virtiofsd has to find them.
            container.shell("cp /v/given /v/made && sync").await?;
            ensure!(std::fs::read(scratch.path().join("made"))? == content, "the copy is not what it was copied from");
            container.update(limits(256, 1)).await?;
            assert_eq!(cgroup(case, &container).await?, ((256 * MIB).to_string(), "100000 100000".to_owned()));
            // All of it, where the kernel counts nothing as in use.
            let left = left(&container).await?;
            ensure!(left <= 256 * MIB, "the statistics do not have the old limit again: {left} bytes are left");
            becomes(case, &container, (memory, 1), 40).await?;
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn limits_beyond_what_a_machine_may_grow_to_are_refused_and_change_nothing() {
    on_vm(async |case| {
        let (pod, container) = running(case, "beyond").await?;
        let before = (guest(&container).await?, cgroup(case, &container).await?);
        refused(
            container.update(limits(4096, 1)).await,
            &["would need 4224 MiB of memory, and it can grow to 2048 MiB", "max_memory_mib"],
        )?;
        refused(container.update(limits(256, 5)).await, &["would need 5 processors, and it can grow to 4", "max_vcpus"])?;
        assert_eq!((guest(&container).await?, cgroup(case, &container).await?), before);
        Ok(pod.remove().await?)
    });
}

#[test]
fn limits_beyond_what_the_host_has_are_refused_and_change_nothing() {
    on_vm(async |case| {
        // With the default options, the bound is what the host has.
        let pod = case.node().run_pod(&pod_spec(case, "host")).await?;
        let container = pod.run(&sleeper(case, "sleeper", 256)).await?;
        let before = (guest(&container).await?, cgroup(case, &container).await?);
        let words = ["would need 1048704 MiB of memory, and it can grow to ", "lower the limits"];
        refused(container.update(limits(1 << 20, 1)).await, &words)?;
        // Of one processor there are no more.
        let how = if std::thread::available_parallelism()?.get() == 1 { "cannot grow while it runs" } else { "can grow to " };
        refused(container.update(limits(256, 4096)).await, &[&format!("would need 4096 processors, and it {how}")])?;
        assert_eq!((guest(&container).await?, cgroup(case, &container).await?), before);
        assert_eq!(pod.state().await?, PodSandboxState::SandboxReady);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_machine_has_room_for_the_sum_of_its_containers_limits() {
    on_vm(async |case| {
        let (pod, first) = running(case, "sum").await?;
        let (memory, _) = guest(&first).await?;
        let second = pod.run(&sleeper(case, "second", 512)).await?;
        assert_eq!(guest(&first).await?, (memory + 512 * 1024, 2));
        let more = many(case) - 2;
        second.update(limits(768, 1 + more as i64)).await?;
        assert_eq!(guest(&first).await?, (memory + 768 * 1024, 2 + more));
        second.remove().await?;
        becomes(case, &first, (memory, 1), 40).await?;
        Ok(pod.remove().await?)
    });
}

/// How much memory a pod may use, by its statistics.
async fn allowed(pod: &Pod) -> Result<u64> {
    let memory = pod.stats().await?.linux.context("no linux part")?.memory.context("no memory")?;
    let number = |value: Option<v1::UInt64Value>| value.map(|value| value.value).context("no number");
    Ok(number(memory.available_bytes)? + number(memory.working_set_bytes)?)
}

#[test]
fn a_machine_follows_what_its_pod_may_use_as_a_whole() {
    on_vm_that_resizes_pods(async |case| {
        // As a kubelet does it, with pod-level resources: the pod has limits, its container has
        // none, and the pod's cgroup is changed first, here with 320 MiB and a processor of
        // overhead.
        let parent = "/magnetar-e2e-whole";
        let kubelet = |memory_mib: i64, processors: i64| {
            kernel::limit_pod(parent, (memory_mib + 320) * MIB, (processors + 1) * PERIOD, PERIOD)?;
            Ok::<_, anyhow::Error>(limits(memory_mib, processors))
        };
        kubelet(256, 1)?;
        let until_it_runs = Replaced::with_machine(case, BOUND)?;
        let pod = case.node().run_pod(&pod_spec(case, "whole").cgroup_parent(parent)).await?;
        drop(until_it_runs);
        let container = pod.run(&sleeper(case, "sleeper", 128)).await?;
        let (memory, processors) = guest(&container).await?;
        assert_eq!(processors, 1);
        for _ in 0..2 {
            pod.resize(kubelet(1024, 4)?).await?;
            assert_eq!(guest(&container).await?, (memory + 768 * 1024, 4));
            ensure!(allowed(&pod).await? > 1300 << 20, "the statistics do not have the new limit");
            // One that needs less than the pod changes nothing.
            container.update(limits(512, 2)).await?;
            assert_eq!(guest(&container).await?, (memory + 768 * 1024, 4));
            container.update(limits(128, 1)).await?;
            pod.resize(kubelet(256, 1)?).await?;
            becomes(case, &container, (memory, 1), 40).await?;
            ensure!(allowed(&pod).await? < 600 << 20, "the statistics do not have the old limit again");
        }
        // Beyond what it may grow to.
        let before = guest(&container).await?;
        let words = ["cannot be resized", "would need 4224 MiB of memory, and it can grow to 2048 MiB", "max_memory_mib"];
        refused(pod.resize(kubelet(4096, 1)?).await, &words)?;
        refused(pod.resize(kubelet(256, 5)?).await, &["would need 5 processors, and it can grow to 4", "max_vcpus"])?;
        let pages = v1::HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 };
        let with_pages = LinuxContainerResources { hugepage_limits: vec![pages], ..kubelet(256, 1)? };
        refused(pod.resize(with_pages).await, &["has 0 huge pages, and cannot have 2 while it runs"])?;
        assert_eq!(guest(&container).await?, before);
        pod.remove().await?;
        kernel::remove_cgroups(case, parent).await
    });
}

#[test]
fn a_guest_that_does_not_take_its_memory_is_an_error_and_nothing_changes() {
    on_vm(async |case| {
        let pod = hostile(case, "ignores").await??;
        let container = pod.run(&sleeper(case, "ignores", 256)).await?;
        refused(container.update(limits(2048, 1)).await, &["cannot grow to 2176 MiB", "has not taken it within"])?;
        assert_eq!(offered(case, &pod)?, 0, "the guest may still take it");
        if case.node().can_resize_pods().await? {
            refused(pod.resize(limits(2048, 1)).await, &["cannot be resized", "cannot grow to 2176 MiB", "has not taken it within"])?;
            assert_eq!(offered(case, &pod)?, 0, "the guest may still take it");
        }
        // It is in order otherwise.
        container.update(limits(300, 1)).await?;
        assert_eq!(pod.state().await?, PodSandboxState::SandboxReady);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_process_that_is_killed_while_its_machine_grows_leaves_nothing() {
    on_vm(async |case| {
        // The guest does not take its memory, so that the machine still grows when the process is
        // killed.
        let (pod, container) = killed_while_it_grows(case, kill_sandbox).await?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_hypervisor_that_is_killed_while_its_machine_grows_ends_its_pod() {
    on_vm(async |case| {
        let kill = |case: &Case, pod: &Pod| send(&hypervisor(case, pod)?, Signal::SIGKILL);
        let (pod, container) = killed_while_it_grows(case, kill).await?;
        dies(case, pod, &container, "the hypervisor was ended by signal 9").await
    });
}

#[test]
fn a_virtiofsd_that_is_killed_while_its_machine_grows_ends_its_pod() {
    on_vm(async |case| {
        let kill = |case: &Case, pod: &Pod| send(&process(case, pod, "virtiofsd")?, Signal::SIGKILL);
        let (pod, container) = killed_while_it_grows(case, kill).await?;
        dies(case, pod, &container, "virtiofsd was ended by signal 9").await
    });
}

/// A pod with a container whose limits go up, and what `kill` did while its machine was growing:
/// the guest does not take its memory, so that the machine is then still at it. The update has
/// failed.
async fn killed_while_it_grows(case: &Case, kill: impl FnOnce(&Case, &Pod) -> Result<()>) -> Result<(Pod, Container)> {
    let pod = hostile(case, "ignores").await??;
    let container = pod.run(&sleeper(case, "ignores", 256)).await?;
    let grows = async {
        let answer = container.update(limits(2048, 1)).await;
        ensure!(answer.is_err(), "a pod that has ended has grown");
        Ok(())
    };
    let killed = async {
        eventually("the machine grows", case.soon(), async || Ok((offered(case, &pod)? > 0).then_some(()))).await?;
        kill(case, &pod)
    };
    tokio::try_join!(grows, killed)?;
    Ok((pod, container))
}

/// The ten times up and down under load, and how long each takes: by hand, for docs/microvm.md.
/// `make test` goes twice, above.
#[test]
#[ignore = "it measures, for minutes: --ignored --nocapture resize::ten_times"]
fn ten_times_up_and_down_under_load() {
    on_vm(async |case| {
        let (pod, container) = running(case, "ten-times").await?;
        // Work for all processors, and files and memory that come and go.
        let busy = "for n in 1 2 3 4; do while :; do :; done & done; \
                    while :; do dd if=/dev/zero of=/tmp/x bs=50M count=2; dd if=/dev/zero of=/dev/null bs=60M count=9; done 2>/dev/null";
        let load = pod.run(&case.script(busy).named("load").resources(|r| *r = limits(256, 1))).await?;
        // The two containers need more than the pod said.
        let (memory, processors) = guest(&container).await?;
        for round in 1..=10 {
            let begun = Instant::now();
            container.update(limits(1024, many(case) as i64 - 1)).await?;
            let up = begun.elapsed();
            let now = guest(&container).await?;
            assert_eq!(now, (memory + 768 * 1024, many(case)), "round {round}");
            load.update(limits(700, 1)).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            load.update(limits(256, 1)).await?;
            let begun = Instant::now();
            container.update(limits(256, 1)).await?;
            let answered = begun.elapsed();
            becomes(case, &container, (memory, processors), 240).await?;
            eprintln!("round {round}: up {up:.2?}, down answered {answered:.2?}, given back {:.2?}", begun.elapsed());
        }
        assert_eq!(load.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}

/// How much memory the guest is offered beyond that of its start, in bytes.
fn offered(case: &Case, pod: &Pod) -> Result<u64> {
    if case.hypervisor() == Some("qemu-system") {
        return Monitor::of(case, pod)?.requested();
    }
    // Cloud Hypervisor's API: HTTP on a socket. It hangs up only when it is asked to.
    let mut socket = UnixStream::connect(case.state_dir(pod).join("vm/api.sock"))?;
    write!(socket, "GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = BufReader::new(socket);
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(answer.read_line(&mut line)? > 0, "Cloud Hypervisor has hung up");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body)?;
    let info: serde_json::Value = serde_json::from_slice(&body)?;
    // Absent if there is none.
    Ok(info["config"]["memory"]["hotplugged_size"].as_u64().unwrap_or_default())
}

/// QEMU's own protocol, on the socket for people.
struct Monitor {
    socket: UnixStream,
    answers: Lines<BufReader<UnixStream>>,
}

impl Monitor {
    fn of(case: &Case, pod: &Pod) -> Result<Self> {
        let socket = UnixStream::connect(case.state_dir(pod).join("vm/debug.sock"))?;
        let answers = BufReader::new(socket.try_clone()?).lines();
        let mut monitor = Self { socket, answers };
        monitor.answers.next().context("no greeting")??;
        monitor.ask(r#"{"execute": "qmp_capabilities"}"#)?;
        Ok(monitor)
    }

    fn ask(&mut self, command: &str) -> Result<serde_json::Value> {
        writeln!(self.socket, "{command}")?;
        loop {
            let answer: serde_json::Value = serde_json::from_str(&self.answers.next().context("QEMU is gone")??)?;
            if answer.get("event").is_none() {
                return answer.get("return").cloned().with_context(|| format!("{command}: {answer}"));
            }
        }
    }

    fn requested(&mut self) -> Result<u64> {
        let command = r#"{"execute": "qom-get", "arguments": {"path": "/machine/peripheral/memory", "property": "requested-size"}}"#;
        self.ask(command)?.as_u64().context("no number")
    }
}
