// SPDX-License-Identifier: Apache-2.0
//! How long each call takes, as whoever calls containerd sees it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{Bench, progress, statistics::Samples};

/// Rounds before the first that counts: caches fill, lazily made things are made.
const WARM_UP: u32 = 2;

/// What is measured, in the order of a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Step {
    /// RunPodSandbox.
    RunPodSandbox,
    /// CreateContainer and StartContainer.
    CreateStartContainer,
    /// ExecSync of a program that does nothing.
    ExecSync,
    /// StopPodSandbox, with the container running, and RemovePodSandbox.
    StopRemovePodSandbox,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::RunPodSandbox, Self::CreateStartContainer, Self::ExecSync, Self::StopRemovePodSandbox];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::RunPodSandbox => "RunPodSandbox",
            Self::CreateStartContainer => "CreateContainer + StartContainer",
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
async fn life(bench: &Bench, handler: &str) -> Result<[(Step, Duration); 4]> {
    let start = Instant::now();
    let pod = bench.pod(handler).await?;
    let ran = start.elapsed();

    let start = Instant::now();
    let container = pod.run(&bench.container()).await?;
    let started = start.elapsed();

    let start = Instant::now();
    let output = container.exec(["true"]).await?;
    let executed = start.elapsed();
    anyhow::ensure!(output.code == 0, "exec ended with {output:?}");

    let start = Instant::now();
    bench.node.remove_pod(pod.id()).await?;
    let removed = start.elapsed();
    // What is left is the folder of logs.
    pod.remove().await?;
    Ok([
        (Step::RunPodSandbox, ran),
        (Step::CreateStartContainer, started),
        (Step::ExecSync, executed),
        (Step::StopRemovePodSandbox, removed),
    ])
}
