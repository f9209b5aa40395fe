// SPDX-License-Identifier: Apache-2.0
//! Pods come and go, a few at a time, again and again, and some of them die of a killed process.
//! After each round nothing is left of it, and the resident process neither collects files
//! (`on_node` looks) nor grows.
//!
//! ```text
//!   a round ──┬─ a pod: a container says its word, a command answers, the pod is removed
//!             ├─ a pod: the same
//!             └─ a pod, one of ten: the same, while a process of it is killed; it is seen to be dead, and removed
//! ```
//!
//! What is killed, and when, follows from a seed, which is printed. Settings, in the environment,
//! beside those of all tests: `MAGNETAR_SOAK_PODS` (60), `MAGNETAR_SOAK_AT_ONCE` (1),
//! `MAGNETAR_SOAK_MINUTES` (after which no round begins; 60), and `MAGNETAR_SOAK_SEED`.

use std::{
    env,
    io::Write as _,
    str::FromStr,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow, ensure};
use fastrand::Rng;
use futures_util::future::join_all;
use magnetar_cri::{Pod, v1::PodSandboxState};
use magnetar_e2e::{Case, Service, eventually, on_node};
use magnetar_observe::{Process, Processes};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// One pod of so many has a process killed.
const KILLED: u32 = 10;

/// How much the resident process may have grown since its first rounds, in KiB: what its allocator
/// keeps varies.
const GROWTH: u64 = 1024;

/// A setting of the environment.
fn setting<T: FromStr>(name: &str, default: T) -> Result<T> {
    let name = format!("MAGNETAR_SOAK_{name}");
    match env::var(&name) {
        Ok(text) => text.parse().map_err(|_| anyhow!("{name} is {text:?}, which is no number")),
        Err(_) => Ok(default),
    }
}

/// What is to be killed in a pod, if anything.
#[derive(Clone, Debug)]
struct Fate {
    /// After that long from when the pod is ready.
    after: Duration,
    /// Which of its processes, as a share of their number.
    which: f64,
}

impl Fate {
    /// Of the next pod. Stock handlers have no process that could be told from others.
    fn of_next(case: &Case, random: &mut Rng) -> Option<Self> {
        let (one_of, which, share) = (random.u32(0..KILLED), random.f64(), random.f64());
        // Long enough for all that a pod does here, so that some die before it and some after it.
        let longest = if case.is_vm() { 1.5 } else { 0.15 };
        let fate = Self { after: case.within(1).mul_f64(longest * share), which };
        (one_of == 0 && case.is_magnetar() && !case.is_shim_mode()).then_some(fate)
    }

    /// Kills it, and returns its name.
    async fn strike(&self, case: &Case, pod: &Pod) -> Result<String> {
        let sandbox = case.sandbox_pid(pod)?;
        tokio::time::sleep(self.after).await;
        let all = Processes::now()?;
        // In a machine's case its children are what it is made of. In any other they are
        // containers, whose end is not the pod's.
        let of_pod = |process: &Process| process.pid == sandbox || (case.is_vm() && process.parent == sandbox && !process.zombie);
        let candidates: Vec<_> = all.iter().filter(|process| of_pod(process)).collect();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a handful of processes")]
        let at = (self.which * candidates.len() as f64) as usize;
        let victim = candidates.get(at).context("the pod has no processes")?;
        kill(Pid::from_raw(victim.pid), Signal::SIGKILL).with_context(|| format!("killing {}", victim.name))?;
        Ok(victim.name.clone())
    }
}

/// One pod's life; the name of what was killed.
async fn life(case: &Case, n: u32, fate: Option<Fate>) -> Result<Option<String>> {
    let pod = case.node().run_pod(&case.pod_spec_with_network(&format!("soak-{n}"))).await.context("RunPodSandbox")?;
    let Some(fate) = fate else {
        work(case, &pod, n).await?;
        pod.remove().await.context("removing it")?;
        return Ok(None);
    };
    // Work fails when the pod dies under it, and does not when it was done before.
    let (_may_fail, killed) = tokio::join!(work(case, &pod, n), fate.strike(case, &pod));
    let killed = killed?;
    eventually(&format!("the pod is not ready without its {killed}"), case.soon(), async || {
        Ok((pod.state().await? == PodSandboxState::SandboxNotready).then_some(()))
    })
    .await?;
    // containerd first hears of a container's end on a connection that has ended too, and hears of
    // it again a second later. Until then it takes the container for running, and whoever wants the
    // pod removed has to ask again, as a kubelet does.
    eventually(&format!("the pod is removed without its {killed}"), case.soon(), async || match case.node().remove_pod(pod.id()).await {
        Ok(()) => Ok(Some(())),
        Err(error) if error.to_string().contains("container is still running") => Ok(None),
        Err(error) => Err(error.into()),
    })
    .await?;
    // What is left is the folder of logs.
    pod.remove().await?;
    Ok(Some(killed))
}

/// What a pod is for.
async fn work(case: &Case, pod: &Pod, n: u32) -> Result<()> {
    let said = case.output(pod, &case.script(&format!("echo {n}"))).await.context("a container that speaks")?;
    ensure!(said == format!("{n}\n"), "the container said {said:?}");
    let container = pod.run(&case.sleeper()).await.context("a container that runs")?;
    let answer = container.exec(["echo", "alive"]).await.context("ExecSync")?;
    ensure!(answer.stdout == "alive\n", "the command said {answer:?}");
    Ok(())
}

/// What the resident process has for its own, in KiB; none with handlers that have none.
fn resident(case: &Case) -> Result<Option<u64>> {
    if !case.is_magnetar() || case.is_shim_mode() {
        return Ok(None);
    }
    let pid = Service::Magnetar.pid()?;
    let all = Processes::now()?;
    Ok(Some(all.find(pid).context("serve does not run")?.memory().own / 1024))
}

fn tell(text: &str) -> Result<()> {
    writeln!(std::io::stderr(), "soak: {text}").context("stderr")
}

/// One round, with a turn of its own on the node. What was killed, and the resident process's
/// memory afterwards, in KiB.
fn round(first: u32, count: u32, random: &mut Rng) -> (Vec<String>, Option<u64>) {
    let mut killed = Vec::new();
    let mut memory = None;
    on_node(async |case| {
        memory = resident(case)?;
        let lives = join_all((first..first + count).map(|n| {
            let fate = Fate::of_next(case, random);
            async move {
                let told = format!("pod {n}, {fate:?}");
                life(case, n, fate).await.context(told)
            }
        }));
        for outcome in lives.await {
            killed.extend(outcome?);
        }
        Ok(())
    });
    (killed, memory)
}

#[test]
fn pods_come_and_go_and_nothing_stays() -> Result<()> {
    let (pods, at_once) = (setting("PODS", 60)?, setting("AT_ONCE", 1)?.max(1));
    let within = Duration::from_secs(60 * setting("MINUTES", 60)?);
    // Any that differs from run to run will do.
    let seed = setting("SEED", SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?;
    tell(&format!("{pods} pods, {at_once} at once, MAGNETAR_SOAK_SEED={seed}"))?;
    let mut random = Rng::with_seed(seed);
    let (start, mut done, mut killed, mut memory) = (Instant::now(), 0, Vec::new(), Vec::new());
    while done < pods && start.elapsed() < within {
        let count = at_once.min(pods - done);
        let (names, resident) = round(done, count, &mut random);
        done += count;
        killed.extend(names);
        memory.extend(resident);
        if done % (10 * at_once) == 0 || done == pods {
            let now = memory.last().map(|kib| format!(", serve has {kib} KiB of its own")).unwrap_or_default();
            tell(&format!("{done} pods in {} s, {} of them killed{now}", start.elapsed().as_secs(), killed.len()))?;
        }
    }
    killed.sort_unstable();
    tell(&format!("killed: {}", killed.join(", ")))?;
    // The first quarter of the rounds is to grow in.
    let (early, late) = memory.split_at(memory.len().div_ceil(4));
    if let (Some(early), Some(late)) = (early.iter().max(), late.last()) {
        ensure!(*late <= early + GROWTH, "serve has grown from {early} to {late} KiB");
    }
    Ok(())
}
