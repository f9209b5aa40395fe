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
            let container = first.run(&ContainerSpec::new("first", kind.image)).await.context("the first container did not start")?;
            container.logged(PATIENCE, |log| !log.stdout().is_empty()).await.context("the first container said nothing")?;
            say(format!("the module of a first container was compiled, and said hello after {}", milliseconds(start.elapsed())));
        }
        first.remove().await.context("the first pod cannot be removed")?;
    }
    let before = Processes::now()?;
    let start = Instant::now();

    let spec = PodSpec::new("demo", kind.handler).own_pid().hostname(kind.exec.1).cgroup_parent(CGROUP);
    let pod = node.run_pod(&spec).await.context("the pod did not start")?;
    let ready = start.elapsed();
    say(format!("pod {:.12} is ready after {} with address {}", pod.id(), milliseconds(ready), pod.ip().await?));
    let with_the_pod = Processes::now()?.since(&before);

    let container = pod.create(&ContainerSpec::new("demo", kind.image).command(kind.command.iter().copied())).await;
    let container = container.context("the container was not made")?;
    container.start().await.context("the container did not start")?;
    let log = container.logged(PATIENCE, |log| !log.stdout().is_empty()).await.context("the container said nothing")?;
    let first_output = start.elapsed();
    let said = log.stdout().lines().next().unwrap_or_default().to_owned();
    say(format!("container {:.12} said after {}: {said}", container.id(), milliseconds(first_output)));

    let output = container.exec(kind.exec.0.iter().copied()).await.context("a command in the container failed")?;
    ensure!(output.stdout.trim() == kind.exec.1, "{} printed {output:?}", kind.exec.0.join(" "));
    say(format!("exec {}: {}", kind.exec.0.join(" "), output.stdout.trim()));

    let used = container.stats().await.context("no statistics")?.memory.and_then(|m| m.working_set_bytes).map_or(0, |v| v.value);
    ensure!(used > 0, "the statistics show no memory");
    pod.stats().await.context("no statistics of the pod")?;
    say(format!("statistics: the container uses {} KiB", used / 1024));

    let pid = container.pid().await?;
    // A virtual machine stands for its containers, and was there before them: it is not the
    // container's own.
    let containers: Vec<_> = with_the_pod.find(pid).is_none().then_some(pid).into_iter().collect();
    let management = Processes::now()?.since(&before).without(&containers);
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
