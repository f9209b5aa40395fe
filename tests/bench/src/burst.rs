// SPDX-License-Identifier: Apache-2.0
//! Many pods at once, by the clock on the wall.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use serde::Serialize;

use crate::{Bench, progress, statistics::Samples};

/// One handler's times, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Burst {
    /// How many pods.
    pub pods: u32,
    /// From the first request until every pod has a running container.
    pub up: Samples,
    /// From there until every pod is removed.
    pub down: Samples,
}

/// Handlers take turns.
pub async fn measure(bench: &Bench, handlers: &[String], pods: u32, rounds: u32) -> Result<BTreeMap<String, Burst>> {
    let mut all = BTreeMap::<String, Burst>::new();
    for round in 0..rounds {
        for handler in handlers {
            progress(&format!("burst: {pods} pods at once on {handler}, round {} of {rounds}", round + 1));
            let burst = all.entry(handler.clone()).or_default();
            burst.pods = pods;
            one(bench, handler, burst).await.with_context(|| format!("handler {handler}"))?;
        }
    }
    Ok(all)
}

async fn one(bench: &Bench, handler: &str, burst: &mut Burst) -> Result<()> {
    let start = Instant::now();
    let running = join_all((0..burst.pods).map(|_| bench.running(handler))).await;
    let up = start.elapsed();
    let running: Vec<_> = running.into_iter().collect::<Result<_>>()?;

    let start = Instant::now();
    let removed = join_all(running.into_iter().map(|(pod, _)| pod.remove())).await;
    let down = start.elapsed();
    removed.into_iter().collect::<magnetar_cri::Result<Vec<_>>>()?;

    burst.up.push(up.as_secs_f64() * 1e3);
    burst.down.push(down.as_secs_f64() * 1e3);
    Ok(())
}
