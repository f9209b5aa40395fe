// SPDX-License-Identifier: Apache-2.0
//! Guests that somebody else has taken over: an agent of the tests' own (tests/hostile-agent) is
//! process 1 of a real machine, and misuses the protocol. Whatever it says, its pod fails in time
//! or works, can be removed, and leaves nothing; the pod's process does not grow; and the pod next
//! to it does not notice.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use magnetar_cri::{Container, Pod, v1::PodSandboxState};
use magnetar_e2e::{Case, Scratch, eventually, on_vm, refused};
use magnetar_observe::Processes;

use crate::options::Replaced;

/// Where tests/e2e/run says that the files of the hostile guest are.
const GUEST: &str = "MAGNETAR_HOSTILE_GUEST";

/// The most memory that a pod's process may ever have had, in KiB. A good guest's has 7 MiB, most
/// of it the program itself.
const MEMORY: u64 = 24 << 10;

/// The longest that containerd may be told of an error, in bytes.
const ERROR: usize = 3000;

/// Within this a pod that cannot be is refused, on a node that is not busy: a guest has to boot.
const REFUSED: u32 = 40;

/// Within this a call is answered.
const ANSWERED: u32 = 20;

/// A pod whose agent is hostile.
pub(crate) async fn hostile(case: &Case, mode: &str) -> Result<magnetar_cri::Result<Pod>> {
    let guest = std::env::var(GUEST).with_context(|| format!("{GUEST} is not set: these tests are run by tests/e2e/run"))?;
    // A copy on the node's own disk, until the guest has it. In a node that is a virtual machine
    // the checkout is on 9p, where Landlock does not recognise the file that it allows.
    let copy = Scratch::new()?;
    let initramfs = copy.join("initramfs");
    fs::copy(format!("{guest}/initramfs"), &initramfs)?;
    let keys = format!("initramfs = \"{initramfs}\"\nkernel_parameters = \"hostile={mode}\"");
    let _until_it_runs = Replaced::with_machine(case, &keys)?;
    Ok(Box::pin(case.node().run_pod(&case.pod_spec(mode))).await)
}

/// An ordinary pod, which is to notice nothing.
struct Neighbour {
    pod: Pod,
    container: Container,
}

impl Neighbour {
    async fn run(case: &Case) -> Result<Self> {
        let pod = case.pod("neighbour").await?;
        let container = pod.run(&case.sleeper()).await?;
        Ok(Self { pod, container })
    }

    /// It does what it did before.
    async fn is_well(&self, case: &Case) -> Result<()> {
        let said = in_time(case, ANSWERED, "the neighbour's exec", self.container.exec(["echo", "alive"])).await??;
        assert_eq!(said.stdout, "alive\n");
        ensure!(self.container.stats().await?.memory.is_some(), "the neighbour has no statistics");
        Ok(())
    }

    async fn remove(self) -> Result<()> {
        Ok(self.pod.remove().await?)
    }
}

/// What comes of a call, if it does so in time.
async fn in_time<T>(case: &Case, seconds: u32, what: &str, call: impl Future<Output = T>) -> Result<T> {
    let within = case.within(seconds);
    // On the heap, here and below: what a thread of libtest has for its stack is soon used up by
    // calls in calls.
    tokio::time::timeout(within, Box::pin(call)).await.with_context(|| format!("{what} was not answered within {within:?}"))
}

/// An error that people can read: short, and without what a terminal would obey.
fn is_clean(message: &str) -> Result<()> {
    ensure!(message.len() <= ERROR, "an error of {} bytes: {message:?}", message.len());
    ensure!(!message.contains(|c: char| c.is_control()), "an error with control characters: {message:?}");
    Ok(())
}

/// Runs a test, and looks meanwhile that no process of a pod grows.
async fn watching_memory<T>(test: impl Future<Output = Result<T>>) -> Result<T> {
    let mut most = 0;
    let grows = async {
        loop {
            for process in Processes::now()?.iter().filter(|process| process.name == "magnetar-vmm") {
                // It may have ended by now.
                let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
                let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
                most = most.max(peak.unwrap_or(0));
            }
            ensure!(most <= MEMORY, "a pod's process has taken {most} KiB");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        outcome = Box::pin(test) => outcome,
        grown = grows => grown,
    }
}

/// Whatever the agent answers when the guest is to become the pod.
#[test]
fn a_pod_whose_guest_answers_nonsense_is_refused() {
    on_vm(async |case| {
        let neighbour = Neighbour::run(case).await?;
        let modes = ["opened-with-noise", "answer-too-long", "answer-torn", "answer-mistyped", "answer-endless"];
        for mode in modes {
            let refusal = Box::pin(watching_memory(in_time(case, REFUSED, mode, hostile(case, mode)))).await??;
            let message = refused(refusal, &["the guest"]).context(mode)?;
            is_clean(&message).context(mode)?;
            neighbour.is_well(case).await.context(mode)?;
        }
        neighbour.remove().await
    });
}

/// Whatever it answers when a container is to be made, or whether it does: no container is made,
/// and the pod can be removed, be it dead or not.
async fn no_container_can_be_made(case: &Case, modes: &[&str], answers: bool) -> Result<()> {
    let neighbour = Neighbour::run(case).await?;
    for mode in modes {
        let made = Box::pin(async {
            let pod = hostile(case, mode).await??;
            // Where there is no answer a kubelet does not wait for good, either.
            let patience = if answers { case.within(ANSWERED) } else { Duration::from_secs(3) };
            match tokio::time::timeout(patience, Box::pin(pod.run(&case.sleeper()))).await {
                Ok(started) => is_clean(&refused(started, &["cannot create container"])?)?,
                Err(_) => ensure!(!answers, "the container was not refused within {patience:?}"),
            }
            neighbour.is_well(case).await?;
            in_time(case, ANSWERED, "the removal", pod.remove()).await??;
            Ok(())
        });
        watching_memory(made).await.with_context(|| (*mode).to_owned())?;
    }
    neighbour.remove().await
}

#[test]
fn a_container_whose_guest_answers_the_task_api_with_nonsense_is_refused() {
    let modes = ["answer-twice", "tasks-too-long", "tasks-torn", "tasks-mistyped", "tasks-flood"];
    on_vm(async |case| no_container_can_be_made(case, &modes, true).await);
}

#[test]
fn a_pod_whose_guest_does_not_answer_the_task_api_can_be_removed() {
    on_vm(async |case| no_container_can_be_made(case, &["tasks-silent"], false).await);
}

#[test]
fn a_guest_lying_about_exits_and_statistics_affects_only_its_own_containers() {
    on_vm(async |case| {
        let neighbour = Neighbour::run(case).await?;
        let test = Box::pin(async {
            let pod = hostile(case, "lies").await??;
            let container = pod.run(&case.sleeper()).await?;
            let status = container.exited(case.soon()).await.context("its own end is believed")?;
            assert_eq!(status.exit_code, 255, "there is no other code");
            ensure!(pod.state().await? == PodSandboxState::SandboxReady, "the pod is dead");
            // A second one runs, as far as anybody can tell, and has statistics that are none.
            let second = pod.run(&case.sleeper().named("second")).await?;
            // containerd leaves out what it is not told.
            let stats = second.stats().await;
            ensure!(stats.as_ref().map_or(true, |stats| stats.memory.is_none()), "nonsense is taken for statistics: {stats:?}");
            let all = case.node().container_stats().await.context("the statistics of all containers")?;
            let has = |container: &Container| all.iter().any(|stats| stats.attributes.as_ref().is_some_and(|its| its.id == container.id()));
            ensure!(has(&neighbour.container), "the neighbour is not among those with statistics");
            in_time(case, ANSWERED, "Stop", second.stop(1)).await??;
            neighbour.is_well(case).await?;
            in_time(case, ANSWERED, "the removal", pod.remove()).await??;
            Ok(())
        });
        watching_memory(test).await?;
        neighbour.remove().await
    });
}

/// How many seconds a flood is endured.
const FLOODED: u64 = 5;

#[test]
fn a_guest_flooding_the_host_uses_no_host_memory_and_disturbs_no_other_pod() {
    on_vm(async |case| {
        let neighbour = Neighbour::run(case).await?;
        let test = Box::pin(async {
            let pod = hostile(case, "floods").await??;
            let container = pod.run(&case.sleeper()).await?;
            for _ in 0..FLOODED {
                tokio::time::sleep(Duration::from_secs(1)).await;
                neighbour.is_well(case).await?;
                // What is known on the host is answered meanwhile.
                in_time(case, ANSWERED, "the pod's state", pod.state()).await??;
            }
            let console = fs::metadata(case.state_dir(&pod).join("vm/console.log"))?.len();
            ensure!(console < 1 << 20, "the console's file has {console} bytes");
            in_time(case, ANSWERED, "Stop", container.stop(1)).await??;
            eventually("its state", case.soon(), async || Ok(pod.state().await.ok())).await?;
            in_time(case, ANSWERED, "the removal", pod.remove()).await??;
            Ok(())
        });
        watching_memory(test).await?;
        neighbour.remove().await
    });
}
