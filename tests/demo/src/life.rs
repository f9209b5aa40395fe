// SPDX-License-Identifier: Apache-2.0
//! One pod's whole life, as the demo shows it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use magnetar_cri::{ContainerSpec, Node, PodSpec, v1::ContainerState};
use magnetar_observe::{Memory, Processes, cgroup};

use crate::{
    kind::{Kind, Left},
    tell,
};

/// How long a container may take to say its first word, to end, or to use any memory.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where templates are.
const TEMPLATES: &str = "/var/lib/magnetar/templates";

/// The pod's cgroup: a kubelet makes one, and containerd measures the pod by it.
const CGROUP: &str = "/magnetar-demo";

/// The host's name of the pod.
const HOSTNAME: &str = "demo";

/// Where a container has its language model.
const MODEL: &str = "/models/model.gguf";

/// The engine of a language model: a process that is beside the container, in the container's
/// cgroup.
const MODEL_ENGINE: &str = "llama-server";

/// What was seen of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// From asking for the pod to its being ready.
    pub ready: Duration,
    /// From asking for the pod to the first line in the log.
    pub first_output: Duration,
    /// Memory of all processes that came with the pod and are not the container's own. A virtual
    /// machine is one of them, with all that its guest has touched.
    pub management: Memory,
    /// That first line.
    pub said: String,
}

/// Does everything that people do with a pod. Where it fails, the pod is among the leftovers.
pub async fn show(node: &Node, kind: &Kind) -> Result<Shown> {
    let say = |what: String| tell(&format!("{}:   {what}", kind.name));
    let image = node.image(kind.image).await?;
    ensure!(image.is_some(), "the node has no image {}", kind.image);
    if kind.left != Left::Nothing {
        let first = node.run_pod(&PodSpec::new("first", kind.handler)).await.context("the first pod did not start")?;
        if kind.left == Left::Template {
            template().await?;
            say("a first pod has booted, and the template was made beside it".to_owned());
        } else {
            let start = Instant::now();
            let container = first.run(&container("first", kind)).await.context("the first container did not start")?;
            container.logged(PATIENCE, |log| !log.stdout().is_empty()).await.context("the first container said nothing")?;
            say(format!("the module of a first container was compiled, and said hello after {}", milliseconds(start.elapsed())));
        }
        first.remove().await.context("the first pod cannot be removed")?;
    }
    let before = Processes::now()?;
    let start = Instant::now();

    let spec = PodSpec::new("demo", kind.handler).own_pid().hostname(HOSTNAME).cgroup_parent(CGROUP);
    let pod = node.run_pod(&spec).await.context("the pod did not start")?;
    let ready = start.elapsed();
    say(format!("pod {:.12} is ready after {} with address {}", pod.id(), milliseconds(ready), pod.ip().await?));
    let with_the_pod = Processes::now()?.since(&before);

    let container = pod.create(&container("demo", kind)).await;
    let container = container.context("the container was not made")?;
    container.start().await.context("the container did not start")?;
    let log = container.logged(PATIENCE, |log| !log.stdout().is_empty()).await.context("the container said nothing")?;
    let first_output = start.elapsed();
    let said = log.stdout().lines().next().unwrap_or_default().to_owned();
    say(format!("container {:.12} said after {}: {said}", container.id(), milliseconds(first_output)));

    if let Some((command, expected)) = kind.exec {
        let output = container.exec(command.iter().copied()).await.context("a command in the container failed")?;
        ensure!(output.stdout.trim() == expected, "{} printed {output:?}", command.join(" "));
        say(format!("exec {}: {}", command.join(" "), output.stdout.trim()));
    }

    let used = container.stats().await.context("no statistics")?.memory.and_then(|m| m.working_set_bytes).map_or(0, |v| v.value);
    ensure!(used > 0, "the statistics show no memory");
    pod.stats().await.context("no statistics of the pod")?;
    say(format!("statistics: the container uses {} KiB", used / 1024));

    let pid = container.pid().await?;
    // A virtual machine stands for its containers, and was there before them: it is not the
    // container's own.
    let now = Processes::now()?.since(&before);
    let engine = now.iter().filter(|process| process.name == MODEL_ENGINE).map(|process| process.pid);
    let containers: Vec<_> = with_the_pod.find(pid).is_none().then_some(pid).into_iter().chain(engine).collect();
    let management = now.without(&containers);
    for process in management.iter() {
        let memory = process.memory();
        let (private, own) = (memory.uss / 1024, memory.own / 1024);
        say(format!("management: {}: {private} KiB private, {own} KiB without the program itself", process.name));
    }
    let management = management.memory();

    container.stop(10).await.context("the container did not stop")?;
    let state = container.status().await?.state;
    ensure!(state == i32::from(ContainerState::ContainerExited), "the container did not stop");
    pod.remove().await.context("the pod cannot be removed")?;
    let end = Instant::now() + PATIENCE;
    while !cgroup::remove(CGROUP) {
        ensure!(Instant::now() < end, "the pod's cgroup {CGROUP} cannot be removed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    say("stopped and removed".to_owned());
    Ok(Shown { ready, first_output, management, said })
}

/// The container of a kind.
fn container(name: &str, kind: &Kind) -> ContainerSpec {
    let spec = ContainerSpec::new(name, kind.image).command(kind.command.iter().copied());
    match kind.model {
        None => spec,
        Some(model) => spec.mount_read_only(model, MODEL).env("WASMEDGE_WASINN_PRELOAD", &format!("default:GGML:CPU:{MODEL}")),
    }
}

/// Waits until there is a template.
async fn template() -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let is_made =
        || -> Result<bool> {
            match std::fs::read_dir(TEMPLATES) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
                entries => Ok(entries?
                    .any(|entry| entry.is_ok_and(|entry| entry.file_name() != "making" && entry.path().join("manifest.json").exists()))),
            }
        };
    while !is_made().context(TEMPLATES)? {
        ensure!(Instant::now() < end, "no template was made within {}", milliseconds(PATIENCE));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// A duration as people read it.
pub fn milliseconds(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
