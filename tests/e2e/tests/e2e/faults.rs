// SPDX-License-Identifier: Apache-2.0
//! What happens when a process of ours, or containerd, is killed at a bad moment.
//!
//! A second pod stands by in each of these tests: nothing that happens to the first may be
//! noticed there.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::join_all;
use magnetar_cri::{
    Container, Pod,
    v1::{ContainerState, PodSandboxState},
};
use magnetar_e2e::{Case, Scratch, Service, eventually, on_magnetar, on_magnetar_with_shared_kernel, on_node, on_shared_kernel, steady};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SANDBOX_PROCESS: &str = "only our pods have a sandbox process to kill";
/// Where the records of pods are.
const STATE: &str = "/run/magnetar/k8s.io";
const SERVE: &str = "only our handlers have a resident process to kill";

/// A pod that must not notice anything.
pub struct Bystander {
    pod: Pod,
    container: Container,
    pid: i32,
}

impl Bystander {
    pub async fn new(case: &Case) -> Result<Self> {
        let pod = case.pod("bystander").await?;
        let container = pod.run(&case.script("i=0; while :; do echo $i; i=$((i + 1)); sleep 0.02; done")).await?;
        container.logged(case.soon(), |log| !log.entries.is_empty()).await?;
        let pid = container.pid().await?;
        Ok(Self { pod, container, pid })
    }

    /// Its pod.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Its container.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Its log has grown without a gap, it is the same process, and it answers.
    pub async fn noticed_nothing(self, case: &Case) -> Result<()> {
        let before = self.container.log()?.entries.len();
        let log = self.container.logged(case.soon(), |log| log.entries.len() > before + 5).await?;
        for (n, line) in log.stdout().lines().enumerate() {
            ensure!(line == n.to_string(), "line {n} of the bystander's log is {line:?}");
        }
        assert_eq!(self.container.status().await?.state, i32::from(ContainerState::ContainerRunning));
        assert_eq!(self.container.pid().await?, self.pid);
        assert_eq!(self.container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        assert_eq!(self.pod.state().await?, PodSandboxState::SandboxReady);
        Ok(self.pod.remove().await?)
    }
}

pub fn kill_sandbox(case: &Case, pod: &Pod) -> Result<()> {
    Ok(kill(Pid::from_raw(case.sandbox_pid(pod)?), Signal::SIGKILL)?)
}

/// After the sandbox process is dead containerd must see the container as ended and the pod as
/// not ready, and be able to remove both.
pub async fn is_seen_as_dead(case: &Case, pod: &Pod, container: Option<&Container>) -> Result<()> {
    if let Some(container) = container {
        container.exited(case.soon()).await.context("the container")?;
    }
    eventually("the pod is not ready", case.soon(), async || match pod.state().await {
        Ok(state) => Ok((state == PodSandboxState::SandboxNotready).then_some(())),
        // containerd's own shim controller, between the end of the process and the moment when it
        // is told of it.
        Err(error) if error.to_string().contains("ttrpc: closed") => Ok(None),
        Err(error) => Err(error.into()),
    })
    .await
}

#[test]
fn a_sandbox_process_killed_with_an_empty_pod_leaves_nothing() {
    on_magnetar(SANDBOX_PROCESS, async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.node().run_pod(&case.pod_spec_with_network("empty")).await?;
        kill_sandbox(case, &pod)?;
        is_seen_as_dead(case, &pod, None).await?;
        pod.remove().await?;
        bystander.noticed_nothing(case).await
    });
}

#[test]
fn a_sandbox_process_killed_with_shared_pids_leaves_nothing() {
    on_magnetar(SANDBOX_PROCESS, async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.node().run_pod(&case.pod_spec_with_network("shared").shared_pid()).await?;
        let container = pod.run(&case.sleeper()).await?;
        kill_sandbox(case, &pod)?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        pod.remove().await?;
        bystander.noticed_nothing(case).await
    });
}

/// Containers join the namespaces of the process that `crictl inspectp` names. Without it the pod
/// can have no more of them.
#[test]
fn a_killed_namespace_holder_ends_its_pod() {
    on_magnetar_with_shared_kernel(SANDBOX_PROCESS, "a guest's processes are the guest's", async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.node().run_pod(&case.pod_spec_with_network("holder-killed").shared_pid()).await?;
        let holder = pod.info().await?["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("no pid in the pod's info")?;
        ensure!(holder > 1 && holder != case.sandbox_pid(&pod)?, "process {holder} is no holder");
        kill(Pid::from_raw(holder), Signal::SIGKILL)?;
        is_seen_as_dead(case, &pod, None).await?;
        let told = pod.info().await?.to_string();
        ensure!(told.contains("the process that held the pod's namespaces has ended"), "no reason: {told}");
        pod.remove().await?;
        bystander.noticed_nothing(case).await
    });
}

#[test]
fn a_sandbox_process_killed_with_a_user_namespace_leaves_nothing() {
    on_magnetar_with_shared_kernel(SANDBOX_PROCESS, "a virtual machine has no user namespace of the node, as vm.rs tests", async |case| {
        let spec = case.pod_spec_with_network("userns").user_namespace(100_000, 65_536);
        let pod = case.node().run_pod(&spec).await?;
        let container = pod.run(&case.sleeper()).await?;
        kill_sandbox(case, &pod)?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_sandbox_process_killed_with_a_created_container_leaves_nothing() {
    on_magnetar(SANDBOX_PROCESS, async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.pod("created").await?;
        let container = pod.create(&case.sleeper()).await?;
        kill_sandbox(case, &pod)?;
        is_seen_as_dead(case, &pod, None).await?;
        ensure!(container.start().await.is_err(), "a container was started without its sandbox process");
        pod.remove().await?;
        bystander.noticed_nothing(case).await
    });
}

#[test]
fn a_running_container_dies_with_its_killed_sandbox_process() {
    on_magnetar(SANDBOX_PROCESS, async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.pod("running").await?;
        let container = pod.run(&case.script("sleep 1000 & exec sleep 1000")).await?;
        let pid = container.pid().await?;
        kill_sandbox(case, &pod)?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        let told = pod.info().await?.to_string();
        // In shim mode nobody of ours is left who could say it.
        ensure!(case.is_shim_mode() || told.contains("the sandbox process has ended unexpectedly: signal: 9"), "no reason: {told}");
        pod.remove().await?;
        ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the container's process {pid} lives");
        bystander.noticed_nothing(case).await
    });
}

#[test]
fn a_sandbox_process_killed_with_a_paused_container_leaves_nothing() {
    on_magnetar(SANDBOX_PROCESS, async |case| {
        let pod = case.pod("paused").await?;
        let container = pod.run(&case.sleeper()).await?;
        magnetar_e2e::Tool::ctr().context("the node has no ctr")?.run(&["task", "pause", container.id()])?;
        kill_sandbox(case, &pod)?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_sandbox_process_killed_during_a_command_leaves_nothing_and_the_client_gets_an_error() {
    on_magnetar(SANDBOX_PROCESS, async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.pod("exec").await?;
        let container = pod.run(&case.sleeper()).await?;
        let command = container.shell("sleep 1000");
        let kills = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            kill_sandbox(case, &pod)
        };
        let (answer, killed) = tokio::join!(command, kills);
        killed?;
        ensure!(answer.is_err(), "the command ended with {answer:?}");
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        pod.remove().await?;
        bystander.noticed_nothing(case).await
    });
}

#[test]
fn a_sandbox_process_killed_during_a_log_write_leaves_a_readable_log() {
    on_magnetar(SANDBOX_PROCESS, async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.pod("log").await?;
        let container = pod.run(&case.script("exec yes 0123456789abcde")).await?;
        container.logged(case.soon(), |log| log.entries.len() > 1000).await?;
        kill_sandbox(case, &pod)?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        let log = case.whole_log(&container).await?.stdout();
        let odd = log.lines().rev().skip(1).find(|&line| line != "0123456789abcde");
        ensure!(odd.is_none(), "a broken line: {odd:?}");
        pod.remove().await?;
        bystander.noticed_nothing(case).await
    });
}

#[test]
fn a_sandbox_process_killed_during_a_stop_leaves_nothing() {
    on_magnetar(SANDBOX_PROCESS, async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.pod("stop").await?;
        let container = pod.run(&case.script("trap '' TERM; while :; do sleep 0.1; done")).await?;
        let kills = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            kill_sandbox(case, &pod)
        };
        // Whether the stop is answered well or badly: the container is gone afterwards.
        let (_, killed) = tokio::join!(container.stop(30), kills);
        killed?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        pod.remove().await?;
        bystander.noticed_nothing(case).await
    });
}

/// The moments that no call of the CRI marks are met by chance: a new pod for every delay.
#[test]
fn a_sandbox_process_killed_at_any_moment_of_pod_and_container_creation_leaves_nothing() {
    on_magnetar(SANDBOX_PROCESS, async |case| {
        let bystander = Bystander::new(case).await?;
        for milliseconds in [0, 1, 2, 3, 5, 8, 12, 18, 25, 35, 50, 70, 100, 150] {
            let spec = case.pod_spec(&format!("moment-{milliseconds}"));
            let known: Vec<_> = case.node().pods().await?.into_iter().map(|pod| pod.id).collect();
            let makes = async {
                let pod = case.node().run_pod(&spec).await?;
                pod.run(&case.sleeper()).await?;
                Ok::<_, magnetar_cri::Error>(())
            };
            let kills = kill_new_sandbox(case, &known, Duration::from_millis(milliseconds));
            // Whether the making fails or is over before the kill is a matter of chance.
            let (made, killed) = tokio::join!(makes, kills);
            killed.with_context(|| format!("after {milliseconds} ms; the pod: {made:?}"))?;
            for pod in case.node().pods().await?.iter().filter(|pod| !known.contains(&pod.id)) {
                // containerd notes the end of a container that it can no longer ask at its second
                // try, some seconds later, and removes no pod before. The kubelet tries again as
                // well.
                let removed = async || Ok(case.node().remove_pod(&pod.id).await.ok());
                eventually(&format!("the pod killed after {milliseconds} ms to be removed"), case.soon(), removed).await?;
            }
        }
        if case.is_shim_mode() {
            sweep_half_made(case).await?;
        }
        bystander.noticed_nothing(case).await
    });
}

/// In shim mode containerd does not clean up after a process that was killed before its first call
/// of it; the next pod does, once the remains are a minute old. This makes them old, and the next
/// pod.
async fn sweep_half_made(case: &Case) -> Result<()> {
    let known: Vec<_> = case.node().pods().await?.into_iter().map(|pod| pod.id).collect();
    for entry in std::fs::read_dir(STATE)? {
        let entry = entry?;
        if !known.iter().any(|id| entry.file_name().to_str() == Some(id)) {
            std::fs::File::open(entry.path())?.set_modified(std::time::SystemTime::now() - Duration::from_secs(61))?;
        }
    }
    Ok(case.pod("sweeps").await?.remove().await?)
}

/// Kills the sandbox process of the pod that appears next, `delay` after its record does.
async fn kill_new_sandbox(case: &Case, known: &[String], delay: Duration) -> Result<()> {
    let root = std::path::Path::new(STATE);
    let end = std::time::Instant::now() + case.soon();
    let pid = loop {
        let new = std::fs::read_dir(root)?
            .flatten()
            .filter(|entry| !known.iter().any(|id| entry.file_name().to_str() == Some(id)))
            .find_map(|entry| magnetar_e2e::recorded_pid(&entry.path()).ok().flatten());
        if let Some(pid) = new {
            break pid;
        }
        if std::time::Instant::now() > end {
            bail!("no new pod has a sandbox process");
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    };
    tokio::time::sleep(delay).await;
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[test]
fn a_killed_container_process_is_not_mistaken_for_a_killed_sandbox() {
    on_shared_kernel(
        "to kill the process that stands for a container in a virtual machine is the pod's end, as vm.rs tests",
        async |case| {
            let pod = case.pod("container-killed").await?;
            let container = pod.run(&case.sleeper()).await?;
            kill(Pid::from_raw(container.pid().await?), Signal::SIGKILL)?;
            container.exited(case.soon()).await?;
            steady("the pod is ready", case.within(1), async || Ok(pod.state().await? == PodSandboxState::SandboxReady)).await?;
            assert_eq!(case.output(&pod, &case.script("echo fine")).await?, "fine\n");
            Ok(pod.remove().await?)
        },
    );
}

#[test]
fn pods_run_on_without_serve_and_can_be_stopped_when_it_is_back() {
    on_magnetar(SERVE, async |case| {
        let mut pods = Vec::new();
        // Each of them works without a pause, and two processors emulate few machines.
        for _ in 0..if case.is_vm() { 3 } else { 20 } {
            pods.push(Bystander::new(case).await?);
        }
        let session = pods[0].container.exec_stream(["sh", "-c", "while :; do echo tick; sleep 0.1; done"], false, false);
        let mut session = session.await?;
        session.receive_until("tick").await?;

        let held = Service::Magnetar.hold()?;
        let makes = join_all((0..3).map(|n| async move { case.pod(&format!("meanwhile-{n}")).await }));
        let watches = async {
            steady("the containers run and answer", case.within(10), async || {
                for bystander in &pods {
                    let running = bystander.container.status().await?.state == i32::from(ContainerState::ContainerRunning);
                    let answers = bystander.container.exec(["echo", "alive"]).await?.stdout == "alive\n";
                    ensure!(running && answers, "running: {running}, answers: {answers}");
                }
                session.receive_until("tick").await?;
                Ok(true)
            })
            .await?;
            held.release(case).await
        };
        // Pods that were asked for meanwhile are refused or made late; none is left half-made.
        let (made, watched) = tokio::join!(makes, watches);
        watched?;
        for pod in made.into_iter().flatten() {
            pod.remove().await?;
        }
        session.receive_until("tick").await?;
        drop(session);

        let pod = case.pod("after").await?;
        assert_eq!(case.output(&pod, &case.script("echo fine")).await?, "fine\n");
        pod.remove().await?;
        for bystander in pods {
            bystander.noticed_nothing(case).await?;
        }
        Ok(())
    });
}

#[test]
fn serve_killed_repeatedly_during_pod_creation_leaves_no_partial_pod() {
    on_magnetar(SERVE, async |case| {
        let bystander = Bystander::new(case).await?;
        for round in 0..5 {
            let makes = join_all((0..case.at_once(6)).map(|n| async move {
                let pod = case.pod(&format!("kill-serve-{round}-{n}")).await?;
                let word = case.output(&pod, &case.script("echo fine")).await;
                pod.remove().await?;
                word
            }));
            let kills = async {
                tokio::time::sleep(Duration::from_millis(20 + 30 * round)).await;
                Service::Magnetar.restart(case).await
            };
            let (_, restarted) = tokio::join!(makes, kills);
            restarted?;
            // Those that containerd could not remove while nobody answered.
            for id in case.node().leftovers().iter().filter(|&id| id != bystander.pod.id()) {
                case.node().remove_pod(id).await?;
            }
        }
        bystander.noticed_nothing(case).await
    });
}

#[test]
fn a_sandbox_process_killed_while_serve_is_down_is_cleaned_up_by_the_next_serve() {
    on_magnetar(SERVE, async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.node().run_pod(&case.pod_spec_with_network("both")).await?;
        let container = pod.run(&case.sleeper()).await?;
        let held = Service::Magnetar.hold()?;
        kill_sandbox(case, &pod)?;
        container.exited(case.soon()).await?;
        held.release(case).await?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        pod.remove().await?;
        bystander.noticed_nothing(case).await
    });
}

#[test]
fn containerd_restarted_after_a_kill_finds_its_pods_running() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec_with_network("containerd")).await?;
        let container = pod.run(&case.script("trap 'exit 6' TERM; i=0; while :; do echo $i; i=$((i + 1)); sleep 0.02; done")).await?;
        let scratch = Scratch::new()?;
        let ends = case
            .script("until [ -e /volume/end ]; do sleep 0.02; done; touch /volume/ended; exit 5")
            .named("ends")
            .mount(&scratch.join(""), "/volume");
        let ends = pod.run(&ends).await?;
        let created = pod.create(&case.script("echo created before").named("created")).await?;
        let pid = container.pid().await?;
        container.logged(case.soon(), |log| !log.entries.is_empty()).await?;

        let held = Service::Containerd.hold()?;
        std::fs::write(scratch.path().join("end"), "")?;
        let ended = scratch.path().join("ended");
        eventually("the container ends meanwhile", case.soon(), async || Ok(ended.exists().then_some(()))).await?;
        held.release(case).await?;

        assert_eq!(pod.state().await?, PodSandboxState::SandboxReady);
        assert_eq!(container.status().await?.state, i32::from(ContainerState::ContainerRunning));
        assert_eq!(container.pid().await?, pid);
        let before = container.log()?.entries.len();
        container.logged(case.soon(), |log| log.entries.len() > before + 10).await.context("the log goes on")?;
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        assert_eq!(ends.exited(case.soon()).await?.exit_code, 5, "a container that ended meanwhile");
        created.start().await.context("a container made before")?;
        created.exited(case.soon()).await?;
        assert_eq!(case.output(&pod, &case.script("echo fine").named("after")).await?, "fine\n");
        container.stop(30).await?;
        assert_eq!(container.status().await?.exit_code, 6);
        Ok(pod.remove().await?)
    });
}

#[test]
fn output_written_while_containerd_is_down_is_not_lost_and_does_not_kill_the_writer() {
    on_node(async |case| {
        let pod = case.pod("writer").await?;
        let container = pod.run(&case.script("i=0; while :; do echo $i; i=$((i + 1)); sleep 0.01; done")).await?;
        container.logged(case.soon(), |log| !log.entries.is_empty()).await?;
        let held = Service::Containerd.hold()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        held.release(case).await?;
        let before = container.log()?.entries.len();
        // An emulated processor starts a few programs a second.
        let more = if case.is_vm() { 30 } else { 300 };
        let log = container.logged(case.soon(), |log| log.entries.len() > before + more).await?.stdout();
        // What containerd had read and not yet written when it was killed is lost with it: at
        // most what it had in hand. Nothing may be lost in our hands.
        let numbers: Vec<u32> = log.lines().map(str::parse).collect::<Result<_, _>>()?;
        let gaps = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
        ensure!(gaps <= 1, "{gaps} gaps in {} lines", numbers.len());
        Ok(pod.remove().await?)
    });
}
