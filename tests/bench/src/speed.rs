// SPDX-License-Identifier: Apache-2.0
//! How long each call takes, as whoever calls containerd sees it.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use magnetar_cri::{Log, Pod, v1::ContainerEventType};
use serde::Serialize;

use crate::{Bench, progress, runs_modules, statistics::Samples};

/// Rounds before the first that counts: caches fill, lazily made things are made.
const WARM_UP: u32 = 2;

/// How long a container may take to say hello.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where our handlers keep what they compile.
const CACHE: &str = "/var/lib/magnetar/wasm";

/// What is measured, in the order of a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Step {
    /// RunPodSandbox.
    RunPodSandbox,
    /// CreateContainer and StartContainer.
    CreateStartContainer,
    /// From CreateContainer to the first line that a program which says hello has in its log.
    FirstOutput,
    /// The same where nothing of it was compiled before.
    FirstOutputCompiling,
    /// From the first line of a program that then ends to containerd's event that it has ended, as
    /// a client of the CRI gets it.
    OutputToExitEvent,
    /// ExecSync of a program that does nothing.
    ExecSync,
    /// StopPodSandbox, with the container running, and RemovePodSandbox.
    StopRemovePodSandbox,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::RunPodSandbox,
        Self::CreateStartContainer,
        Self::FirstOutput,
        Self::FirstOutputCompiling,
        Self::OutputToExitEvent,
        Self::ExecSync,
        Self::StopRemovePodSandbox,
    ];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::RunPodSandbox => "RunPodSandbox",
            Self::CreateStartContainer => "CreateContainer + StartContainer",
            Self::FirstOutput => "CreateContainer to first output",
            Self::FirstOutputCompiling => "… where it is compiled first",
            Self::OutputToExitEvent => "first output to exit event",
            Self::ExecSync => "ExecSync",
            Self::StopRemovePodSandbox => "StopPodSandbox + RemovePodSandbox",
        }
    }
}

/// Milliseconds by step and handler.
pub type Speed = BTreeMap<Step, BTreeMap<String, Samples>>;

/// Handlers take turns, and the turn's order changes, so that nobody always follows the same.
pub async fn measure(bench: &Bench, handlers: &[String], samples: u32) -> Result<Speed> {
    let mut speed = Speed::new();
    for round in 0..WARM_UP + samples {
        let mut turn: Vec<_> = handlers.iter().collect();
        if round % 2 == 1 {
            turn.reverse();
        }
        for handler in turn {
            let took = life(bench, handler).await.with_context(|| format!("handler {handler}"))?;
            if round >= WARM_UP {
                for (step, time) in took {
                    speed.entry(step).or_default().entry(handler.clone()).or_default().push(time.as_secs_f64() * 1e3);
                }
            }
        }
        if (round + 1).saturating_sub(WARM_UP) % 10 == 0 && round >= WARM_UP {
            progress(&format!("speed: {} of {samples} rounds", round + 1 - WARM_UP));
        }
    }
    Ok(speed)
}

/// One pod's life.
async fn life(bench: &Bench, handler: &str) -> Result<Vec<(Step, Duration)>> {
    let start = Instant::now();
    let pod = bench.pod(handler).await?;
    let ran = start.elapsed();

    let start = Instant::now();
    let container = pod.run(&bench.container(handler)).await?;
    let started = start.elapsed();

    let said = first_output(bench, handler, &pod, "hello").await?;

    let mut compiled = None;
    if let Some(engine) = engine(handler) {
        // What it compiles is kept again, for the next round.
        forget_compiled(engine)?;
        compiled = Some((Step::FirstOutputCompiling, first_output(bench, handler, &pod, "compiled").await?));
    }

    let ended = exit_event(bench, handler, &pod).await?;

    let start = Instant::now();
    let output = container.exec(["true"]).await?;
    let executed = start.elapsed();
    anyhow::ensure!(output.code == 0, "exec ended with {output:?}");

    let start = Instant::now();
    bench.node.remove_pod(pod.id()).await?;
    let removed = start.elapsed();
    // What is left is the folder of logs.
    pod.remove().await?;
    let mut took = vec![
        (Step::RunPodSandbox, ran),
        (Step::CreateStartContainer, started),
        (Step::FirstOutput, said),
        (Step::OutputToExitEvent, ended),
        (Step::ExecSync, executed),
        (Step::StopRemovePodSandbox, removed),
    ];
    took.extend(compiled);
    Ok(took)
}

/// The engine of a handler that keeps compiled code.
fn engine(handler: &str) -> Option<&'static str> {
    ["wasmtime", "wasmedge"].into_iter().find(|engine| handler.contains(engine))
}

/// Empties the folders of an engine's compiled code, which may be done at any time.
fn forget_compiled(engine: &str) -> Result<()> {
    for folder in fs::read_dir(CACHE).context(CACHE)? {
        let folder = folder?;
        if !folder.file_name().to_string_lossy().starts_with(&format!("{engine}-")) {
            continue;
        }
        for file in fs::read_dir(folder.path())? {
            let path = file?.path();
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// A further container of the pod, of a name and so with a log of its own, says hello. The time is
/// the log's own, so nobody has to watch the log closely.
async fn first_output(bench: &Bench, handler: &str, pod: &Pod, name: &str) -> Result<Duration> {
    let start = SystemTime::now();
    let container = pod.run(&bench.hello(handler).named(name)).await?;
    let log = container.logged(PATIENCE, |log| !log.entries.is_empty()).await?;
    let took = begins(&log)?.duration_since(start)?;
    // containerd cannot remove one that ends meanwhile; the module stays.
    if !runs_modules(handler) {
        container.exited(PATIENCE).await?;
    }
    container.remove().await?;
    Ok(took)
}

/// When a log begins, by its own times.
fn begins(log: &Log) -> Result<SystemTime> {
    let first = log.entries.first().context("the log is empty")?;
    let at: prost_types::Timestamp = first.time.parse().with_context(|| format!("the log's time {}", first.time))?;
    Ok(at.try_into()?)
}

/// A further container of the pod writes a line and ends.
async fn exit_event(bench: &Bench, handler: &str, pod: &Pod) -> Result<Duration> {
    let mut events = bench.node.events().await?;
    let container = pod.run(&bench.ends(handler)).await?;
    let at = loop {
        let event = tokio::time::timeout(PATIENCE, events.message()).await.context("there is no event of a container's end")??;
        let event = event.context("containerd's stream of events has ended")?;
        if event.container_id == container.id() && event.container_event_type() == ContainerEventType::ContainerStoppedEvent {
            break SystemTime::now();
        }
    };
    let log = container.logged(PATIENCE, |log| !log.entries.is_empty()).await?;
    let took = at.duration_since(begins(&log)?)?;
    container.remove().await?;
    Ok(took)
}
