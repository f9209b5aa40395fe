// SPDX-License-Identifier: Apache-2.0
//! What pods cost in memory beyond their containers.
//!
//! Management is every process that came with the pods and is no container's: shims, pause
//! processes, sandbox processes, their helpers. No names are known here, so no handler can hide
//! anything. The resident process of our handlers was there before the pods; it is shown apart.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use magnetar_cri::Pod;
use magnetar_observe::{Memory, Processes};
use serde::Serialize;

use crate::{Bench, progress};

/// After this, what was only needed to start a container has been given back.
const SETTLE: Duration = Duration::from_secs(3);

/// One handler's memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    /// How many pods, each with one running container.
    pub pods: u32,
    /// Management per pod, in KiB: private.
    pub uss_kib: f64,
    /// Management per pod, in KiB: with its part of what is shared.
    pub pss_kib: f64,
    /// The container's own process, in KiB: private. For a Wasm module that is the engine, too.
    pub payload_kib: f64,
    /// All that the node has less of, per pod and in KiB: processes, kernel, page cache that cannot
    /// be given back.
    pub node_kib: f64,
    /// How many processes per pod, by name.
    pub processes: BTreeMap<String, f64>,
    /// The resident process by number of pods, in KiB: private and proportional. Empty where the
    /// handler has none.
    pub resident: BTreeMap<u32, (f64, f64)>,
}

/// Handler after handler: their pods must not share the node while they are measured.
pub async fn measure(bench: &Bench, handlers: &[String], pods: u32, many: u32) -> Result<BTreeMap<String, Usage>> {
    let mut all = BTreeMap::new();
    for handler in handlers {
        progress(&format!("memory: {pods} pods on {handler}"));
        let mut usage = usage(bench, handler, pods).await.with_context(|| format!("handler {handler}"))?;
        if many > pods && !usage.resident.is_empty() {
            progress(&format!("memory: {many} pods on {handler}"));
            let seen = with_pods(bench, handler, many).await.with_context(|| format!("handler {handler}"))?;
            usage.resident.extend(seen.resident.map(|memory| (many, memory)));
        }
        all.insert(handler.clone(), usage);
    }
    Ok(all)
}

async fn usage(bench: &Bench, handler: &str, pods: u32) -> Result<Usage> {
    let alone = resident(handler)?;
    let Seen { management, payload, node, resident } = with_pods(bench, handler, pods).await?;
    let per_pod = |bytes: u64| kib(bytes) / f64::from(pods);
    let mut processes = BTreeMap::<String, f64>::new();
    for process in management.iter().map(|(name, _)| name) {
        *processes.entry(process.clone()).or_default() += 1.0 / f64::from(pods);
    }
    let sum: Memory = management.iter().map(|&(_, memory)| memory).sum();
    Ok(Usage {
        pods,
        uss_kib: per_pod(sum.uss),
        pss_kib: per_pod(sum.pss),
        payload_kib: per_pod(payload.uss),
        node_kib: per_pod(node),
        processes,
        resident: alone.map(|memory| (0, memory)).into_iter().chain(resident.map(|memory| (pods, memory))).collect(),
    })
}

/// What was seen with pods running.
struct Seen {
    management: Vec<(String, Memory)>,
    payload: Memory,
    node: u64,
    resident: Option<(f64, f64)>,
}

/// Runs that many pods and looks at what came with them.
async fn with_pods(bench: &Bench, handler: &str, count: u32) -> Result<Seen> {
    let before = Processes::now()?;
    let available = available()?;
    let mut pods: Vec<Pod> = Vec::new();
    let mut payload = Vec::new();
    for _ in 0..count {
        let (pod, container) = bench.running(handler).await?;
        payload.push(container.pid().await?);
        pods.push(pod);
    }
    tokio::time::sleep(SETTLE).await;
    let all = Processes::now()?;
    let new = all.since(&before).without(&payload);
    let management = new.iter().map(|process| (process.name.clone(), process.memory())).collect();
    let payload = all.only(|process| payload.contains(&process.pid)).memory();
    let node = available.saturating_sub(self::available()?);
    let resident = resident(handler)?;
    for pod in pods {
        pod.remove().await?;
    }
    Ok(Seen { management, payload, node, resident })
}

/// What programs could still have, in bytes (`MemAvailable` of proc_meminfo(5)).
fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("the kernel does not say what is available")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context(line.to_owned())?;
    Ok(kib * 1024)
}

/// Memory of the resident process of our handlers, none for others.
fn resident(handler: &str) -> Result<Option<(f64, f64)>> {
    if !handler.starts_with("magnetar-") {
        return Ok(None);
    }
    let serve = Processes::now()?.only(|p| {
        let mut words = p.command.iter();
        words.next().is_some_and(|program| program.ends_with("containerd-shim-magnetar-v2"))
            && words.next().is_some_and(|verb| verb == "serve")
    });
    let memory = serve.memory();
    Ok((!serve.is_empty()).then(|| (kib(memory.uss), kib(memory.pss))))
}

#[allow(clippy::cast_precision_loss, reason = "memory of this size fits a double exactly")]
fn kib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0
}
