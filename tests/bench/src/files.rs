// SPDX-License-Identifier: Apache-2.0
//! Files as a container sees them: fio's figures, from its root filesystem and from a volume.
//!
//! ```text
//!   a pod of each handler ── a container of the image with fio ──┬─ /volume    a directory on the node's disk
//!                                                                └─ /magnetar  its root filesystem
//!   for each round, place and job: one handler after the other runs `fio --output-format=json`
//! ```
//!
//! Of a container on the node's own kernel these are the node's own figures, and so what a virtual
//! machine's are compared with. The node's page cache holds all that is read here. "Cold" is a
//! guest whose own cache does not: fio has it dropped (posix_fadvise(2)), which on the node's
//! kernel would drop the node's, and is left out there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use magnetar_cri::{Container, ContainerSpec};
use serde::Serialize;
use serde_json::Value;

use crate::{Bench, progress, runs_machines, statistics::Samples};

/// The image, which a node has to pull first.
const IMAGE: &str = "localhost/magnetar/fio:1";

/// What sequential jobs write and read: fits in a guest's memory, of which a pod without a limit
/// has 1 GiB.
const SIZE: &str = "128m";

/// The part of it that most random jobs go over: 16384 blocks of 4 KiB.
const RANDOM: &str = "--size=64m";

/// How many small files, of 4 KiB each.
const FILES: &str = "500";

/// What one line of the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Bytes per second, in units of 2²⁰.
    #[serde(rename = "MiB/s")]
    Throughput,
    /// Operations per second.
    #[serde(rename = "1/s")]
    Rate,
    /// The latency that 99 of 100 operations do not exceed, in microseconds.
    #[serde(rename = "µs")]
    Latency,
}

impl Unit {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Throughput => "MiB/s",
            Self::Rate => "1/s",
            Self::Latency => "µs",
        }
    }
}

/// One line: what was measured, and each round's figure by handler.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Place and job.
    pub what: String,
    /// Of the figures.
    pub unit: Unit,
    /// By handler.
    pub samples: BTreeMap<String, Samples>,
}

/// Whose cache a job finds its file in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    /// Nothing is dropped.
    Kept,
    /// A guest does not have it, its host does.
    DroppedInGuest,
}

/// One job of fio, and which of its figures are wanted.
struct Job {
    name: &'static str,
    options: &'static [&'static str],
    cache: Cache,
    figures: &'static [Figure],
}

/// A figure out of fio's JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    /// Throughput, an fsync at the end included.
    Throughput,
    /// Operations per second, an fsync at the end included.
    Rate,
    /// Operations per second by their mean latency: what is over in a few milliseconds, fio's clock
    /// of the whole is too coarse for.
    RateByLatency,
    /// The 99th percentile of an operation's latency.
    Latency,
    /// The same of the fdatasync after each.
    SyncLatency,
}

/// In the order in which they run: each finds what the one before left.
const JOBS: [Job; 10] = [
    Job {
        name: "sequential write, fsync at the end",
        options: &["--rw=write", "--bs=1m", "--end_fsync=1"],
        cache: Cache::Kept,
        figures: &[Figure::Throughput],
    },
    Job {
        name: "sequential read, guest cold",
        options: &["--rw=read", "--bs=1m"],
        cache: Cache::DroppedInGuest,
        figures: &[Figure::Throughput],
    },
    Job {
        name: "sequential read, guest warm",
        // A guest forgets a file when it is opened, so what warms its cache is the job itself.
        options: &["--rw=read", "--bs=1m", "--ramp_time=2", "--time_based", "--runtime=2"],
        cache: Cache::Kept,
        figures: &[Figure::Throughput],
    },
    Job {
        name: "random read of 4 KiB, guest cold",
        options: &["--rw=randread", "--bs=4k", RANDOM, "--runtime=4"],
        cache: Cache::DroppedInGuest,
        figures: &[Figure::Rate, Figure::Latency],
    },
    Job {
        name: "random read of 4 KiB, guest warm",
        // So little of it that every block has been read before what counts begins; and without
        // fio's map of what was read, which is begun anew, and the file opened again, after each
        // pass.
        options: &["--rw=randread", "--bs=4k", "--size=4m", "--io_size=100g", "--norandommap", "--ramp_time=3", "--runtime=2"],
        cache: Cache::Kept,
        figures: &[Figure::Rate, Figure::Latency],
    },
    Job {
        name: "random write of 4 KiB, fsync at the end",
        options: &["--rw=randwrite", "--bs=4k", "--io_size=16m", RANDOM, "--end_fsync=1"],
        cache: Cache::Kept,
        figures: &[Figure::Rate, Figure::Latency],
    },
    Job {
        name: "random write of 4 KiB, fdatasync each",
        options: &["--rw=randwrite", "--bs=4k", RANDOM, "--fdatasync=1", "--runtime=3"],
        cache: Cache::Kept,
        figures: &[Figure::Rate, Figure::SyncLatency],
    },
    Job {
        name: "create a file",
        options: &["--ioengine=filecreate", "--create_on_open=1", "--fallocate=none"],
        cache: Cache::Kept,
        figures: &[Figure::RateByLatency, Figure::Latency],
    },
    Job {
        // fio makes the files before, so a guest still knows them.
        name: "stat a file, guest warm",
        options: &["--ioengine=filestat"],
        cache: Cache::Kept,
        figures: &[Figure::RateByLatency, Figure::Latency],
    },
    Job {
        name: "unlink a file",
        options: &["--ioengine=filedelete"],
        cache: Cache::Kept,
        figures: &[Figure::RateByLatency, Figure::Latency],
    },
];

/// Where a container finds what is measured.
const PLACES: [(&str, &str); 2] = [("volume", "/volume"), ("rootfs", "/magnetar")];

/// Handlers take turns within each job.
pub async fn measure(bench: &Bench, handlers: &[String], rounds: u32, disk: &Path) -> Result<Vec<Line>> {
    bench.node.pull(IMAGE).await.with_context(|| format!("image {IMAGE}"))?;
    let volume = Volume::make(disk)?;
    let mut containers = Vec::new();
    for handler in handlers {
        let pod = bench.pod(handler).await.with_context(|| format!("handler {handler}"))?;
        let spec = ContainerSpec::new("files", IMAGE).command(["sleep", "1000000"]);
        let container = pod.run(&spec.mount(&volume.of(handler)?, "/volume")).await.with_context(|| format!("handler {handler}"))?;
        ensure!(container.exec(["mkdir", "-p", "/magnetar"]).await?.code == 0, "cannot make a directory in a container of {handler}");
        containers.push((handler, pod, container));
    }
    let mut lines = Vec::new();
    for round in 0..rounds {
        let start = Instant::now();
        for (place, directory) in PLACES {
            for job in &JOBS {
                // Nobody always follows the same.
                let turn: Vec<_> = if round % 2 == 0 { containers.iter().collect() } else { containers.iter().rev().collect() };
                for (handler, _, container) in turn {
                    let figures = run(container, job, directory, runs_machines(handler))
                        .await
                        .with_context(|| format!("handler {handler}, {place}, {}", job.name))?;
                    note(&mut lines, handler, place, job, figures);
                }
            }
        }
        progress(&format!("files: {} of {rounds} rounds, this one in {} s", round + 1, start.elapsed().as_secs()));
    }
    for (_, pod, _) in containers {
        pod.remove().await?;
    }
    Ok(lines)
}

/// Adds one round's figures of a job.
fn note(lines: &mut Vec<Line>, handler: &str, place: &str, job: &Job, figures: Vec<f64>) {
    for (figure, sample) in job.figures.iter().zip(figures) {
        let what = match figure {
            Figure::Throughput | Figure::Rate | Figure::RateByLatency => format!("{place}: {}", job.name),
            Figure::Latency => format!("{place}: {}, p99", job.name),
            Figure::SyncLatency => format!("{place}: {}, p99 of fdatasync", job.name),
        };
        let at = lines.iter().position(|line| line.what == what).unwrap_or_else(|| {
            lines.push(Line { what, unit: figure.unit(), samples: BTreeMap::new() });
            lines.len() - 1
        });
        if let Some(line) = lines.get_mut(at) {
            line.samples.entry(handler.to_owned()).or_default().push(sample);
        }
    }
}

/// Runs fio in a container, and returns the job's figures.
async fn run(container: &Container, job: &Job, directory: &str, guest: bool) -> Result<Vec<f64>> {
    let small = job.options.iter().any(|option| option.starts_with("--ioengine=file"));
    let mut command = vec!["fio".to_owned(), "--output-format=json".into(), "--thread".into(), format!("--directory={directory}")];
    if small {
        command.extend([
            "--name=small".into(),
            format!("--nrfiles={FILES}"),
            "--filesize=4k".into(),
            "--bs=4k".into(),
            "--openfiles=1".into(),
        ]);
    } else {
        command.extend(["--name=large".into(), "--filename=large".into(), "--ioengine=psync".into(), format!("--filesize={SIZE}")]);
        let drop = job.cache == Cache::DroppedInGuest && guest;
        command.push(format!("--invalidate={}", u8::from(drop)));
    }
    command.extend(job.options.iter().map(|&option| option.to_owned()));
    let output = container.exec(command).await?;
    ensure!(output.code == 0, "fio ended with {}: {} {}", output.code, output.stderr, output.stdout);
    // Warnings come before what was asked for.
    let from = output.stdout.find('{').with_context(|| format!("fio said no JSON: {}", output.stdout))?;
    let told: Value = serde_json::from_str(output.stdout.get(from..).unwrap_or_default()).context("fio's JSON")?;
    if small && !job.options.contains(&"--ioengine=filestat") {
        let cleared = container.shell(&format!("rm -f {directory}/small.*")).await?;
        ensure!(cleared.code == 0, "{}", cleared.stderr);
    }
    job.figures.iter().map(|figure| figure.of(&told).with_context(|| format!("fio did not tell {figure:?}: {told}"))).collect()
}

impl Figure {
    fn unit(self) -> Unit {
        match self {
            Self::Throughput => Unit::Throughput,
            Self::Rate | Self::RateByLatency => Unit::Rate,
            Self::Latency | Self::SyncLatency => Unit::Latency,
        }
    }

    /// This figure of what fio told of a single job:
    /// <https://fio.readthedocs.io/en/latest/fio_doc.html#json-output>. Latencies are in
    /// nanoseconds there. A job reads or writes; the other side of it has no operations.
    fn of(self, told: &Value) -> Option<f64> {
        let job = told.get("jobs")?.get(0)?;
        let side =
            ["read", "write"].iter().filter_map(|side| job.get(side)).find(|side| side.get("total_ios").and_then(Value::as_u64) > Some(0));
        let percentile = |latency: &Value| Some(latency.get("percentile")?.get("99.000000")?.as_f64()? / 1e3);
        match self {
            Self::Throughput => Some(side?.get("bw_bytes")?.as_f64()? / f64::from(1 << 20)),
            Self::Rate => side?.get("iops")?.as_f64(),
            Self::RateByLatency => Some(1e9 / side?.get("clat_ns")?.get("mean")?.as_f64()?),
            Self::Latency => percentile(side?.get("clat_ns")?),
            Self::SyncLatency => percentile(job.get("sync")?.get("lat_ns")?),
        }
    }
}

/// A directory on the node's disk, gone with this value.
struct Volume(PathBuf);

impl Volume {
    fn make(disk: &Path) -> Result<Self> {
        let path = disk.join(format!("magnetar-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// A handler's part of it.
    fn of(&self, handler: &str) -> Result<String> {
        let path = self.0.join(handler);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(path.to_string_lossy().into_owned())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            progress(&format!("{} cannot be removed: {error}", self.0.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_side_that_did_something() {
        let told = serde_json::json!({"jobs": [{
            "read": {"total_ios": 0, "bw_bytes": 0, "iops": 0.0},
            "write": {"total_ios": 5, "bw_bytes": 2_097_152, "iops": 2.5,
                      "clat_ns": {"mean": 1e6, "percentile": {"99.000000": 3000}}},
            "sync": {"lat_ns": {"percentile": {"99.000000": 7000}}},
        }]});
        let figures = [Figure::Throughput, Figure::Rate, Figure::RateByLatency, Figure::Latency, Figure::SyncLatency];
        assert_eq!(figures.map(|figure| figure.of(&told)), [2.0, 2.5, 1000.0, 3.0, 7.0].map(Some));
    }

    #[test]
    fn a_job_that_did_nothing_has_no_figures() {
        let told = serde_json::json!({"jobs": [{"read": {"total_ios": 0, "iops": 0.0}, "write": {"total_ios": 0, "iops": 0.0}}]});
        assert_eq!(Figure::Rate.of(&told), None);
    }
}
