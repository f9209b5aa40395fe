// SPDX-License-Identifier: Apache-2.0
//! The benchmark: runtime handlers side by side on one node, in one run.
//!
//! ```text
//!   speed    samples of every call, handlers taking turns, so that a slow minute is slow for all
//!   memory   what all processes that are not a container's own cost, per pod; the resident
//!            process of our handlers apart, also with many pods
//!   burst    many pods at once, by the clock on the wall
//!   files    reading and writing, by fio in a container; only when asked for
//! ```
//!
//! It runs inside a node. All handlers get the same pods: the node's network, one container of the
//! same image that does nothing (of a module that does, for Wasm handlers). The first handler is
//! the one that the others are compared with. Nothing here asserts a figure; the reader judges.

mod burst;
mod files;
mod memory;
mod report;
mod speed;
mod statistics;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use magnetar_cri::{Container, ContainerSpec, Node, Pod, PodSpec};

/// Runs the same pods on several runtime handlers and prints how they compare.
#[derive(Debug, Parser)]
struct Options {
    /// The handlers; the first is what the others are compared with.
    #[arg(default_values_t = ["runc".to_owned(), "magnetar-runc".to_owned()])]
    handlers: Vec<String>,
    /// Samples of each call; zero leaves them out.
    #[arg(long, default_value_t = 30)]
    samples: u32,
    /// Pods whose memory is measured together; zero leaves memory out.
    #[arg(long, default_value_t = 20)]
    pods: u32,
    /// Pods with which the resident process of our handlers is measured once more.
    #[arg(long, default_value_t = 100)]
    many: u32,
    /// Pods that are run at once; zero leaves that out.
    #[arg(long, default_value_t = 50)]
    burst: u32,
    /// How often they are.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Rounds of reading and writing files, half a minute or more each; zero leaves that out.
    #[arg(long, default_value_t = 0)]
    files: u32,
    /// A directory of the node, on its disk, in which the volumes for that are made.
    #[arg(long, default_value = "/var/lib/containerd")]
    disk: PathBuf,
    /// The image of the containers.
    #[arg(long, default_value = "localhost/magnetar/busybox:1")]
    image: String,
    /// containerd's socket.
    #[arg(long, default_value = "/run/containerd/containerd.sock")]
    socket: PathBuf,
    /// Writes everything that was measured, every sample, to a file; `-` is standard output, and
    /// the table then goes to standard error.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What all measurements need.
struct Bench {
    node: Node,
    image: String,
}

impl Bench {
    /// A pod as all handlers get it, but that a virtual machine cannot have the node's network: it
    /// has one of its own.
    async fn pod(&self, handler: &str) -> Result<Pod> {
        let spec = PodSpec::new("bench", handler).own_pid();
        let spec = if runs_machines(handler) { spec } else { spec.host_network() };
        Ok(self.node.run_pod(&spec).await?)
    }

    /// A container that does nothing: the same for all handlers, but a Wasm module where the
    /// handler runs those. The module is beside the same programs.
    fn container(&self, handler: &str) -> ContainerSpec {
        if runs_modules(handler) {
            ContainerSpec::new("bench", "localhost/magnetar/wasm-tools:1")
        } else {
            ContainerSpec::new("bench", &self.image).command(["sleep", "1000000"])
        }
    }

    /// A container that says hello: a Wasm module where the handler runs those, a native program
    /// elsewhere.
    fn hello(&self, handler: &str) -> ContainerSpec {
        if runs_modules(handler) {
            ContainerSpec::new("hello", "localhost/magnetar/wasm:1")
        } else {
            ContainerSpec::new("hello", &self.image).command(["echo", "hello"])
        }
    }

    /// A container that writes a line and ends.
    fn ends(&self, handler: &str) -> ContainerSpec {
        if runs_modules(handler) {
            // It writes its arguments.
            ContainerSpec::new("ends", "localhost/magnetar/wasm:1").command(["/modules/surroundings.wat", "hello\n"])
        } else {
            ContainerSpec::new("ends", &self.image).command(["echo", "hello"])
        }
    }

    /// A pod with a running container.
    async fn running(&self, handler: &str) -> Result<(Pod, Container)> {
        let pod = self.pod(handler).await?;
        let container = pod.run(&self.container(handler)).await?;
        Ok((pod, container))
    }
}

fn runs_machines(handler: &str) -> bool {
    matches!(handler, "magnetar-qemu" | "magnetar-clh")
}

fn runs_modules(handler: &str) -> bool {
    handler.contains("wasm")
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let node = Node::connect(&options.socket, Duration::from_secs(120)).await?;
    let bench = Bench { node, image: options.image.clone() };
    let outcome = measure(&bench, &options).await;
    // Also after a failure: the node is not ours alone.
    for id in bench.node.leftovers() {
        bench.node.remove_pod(&id).await.with_context(|| format!("removing pod {id}"))?;
    }
    let report = outcome?;
    let Some(file) = &options.json else {
        say(&report.to_string());
        return Ok(());
    };
    let data = serde_json::to_string_pretty(&report)? + "\n";
    if file.as_os_str() == "-" {
        tell(&report.to_string());
        say(&data);
    } else {
        say(&report.to_string());
        std::fs::write(file, data).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

async fn measure(bench: &Bench, options: &Options) -> Result<report::Report> {
    let image = bench.node.image(&options.image).await?;
    ensure!(image.is_some(), "the node has no image {}", options.image);
    let version = bench.node.version().await?;
    let mut report = report::Report::new(&options.handlers, &version)?;
    if options.samples > 0 {
        report.speed = speed::measure(bench, &options.handlers, options.samples).await?;
    }
    if options.pods > 0 {
        report.memory = memory::measure(bench, &options.handlers, options.pods, options.many).await?;
    }
    if options.burst > 0 {
        report.burst = burst::measure(bench, &options.handlers, options.burst, options.rounds).await?;
    }
    if options.files > 0 {
        report.files = files::measure(bench, &options.handlers, options.files, &options.disk).await?;
    }
    Ok(report)
}

/// Tells how far it is, on a line of its own, beside the results.
fn progress(message: &str) {
    tell(&format!("bench: {message}\n"));
}

fn tell(text: &str) {
    eprint!("{text}");
}

fn say(text: &str) {
    print!("{text}");
}
