// SPDX-License-Identifier: Apache-2.0
//! What containerd tells those who listen.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use magnetar_cri::v1::ContainerEventType;
use magnetar_e2e::{Case, Tool, eventually, on_node};

#[test]
fn cri_events_of_a_container_come_in_order() {
    on_node(async |case| {
        let pod = case.pod("cri-events").await?;
        let makes = async {
            // From containerd 2.4 on the stream is there with its first event only.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let container = pod.run(&case.script("exit 0")).await?;
            container.exited(case.soon()).await?;
            let id = container.id().to_owned();
            container.remove().await?;
            Ok::<_, anyhow::Error>(id)
        };
        let (events, id) = tokio::join!(case.node().events(), makes);
        let (mut events, id) = (events?, id?);
        let mut seen = Vec::new();
        while seen.last() != Some(&ContainerEventType::ContainerDeletedEvent) {
            let next = tokio::time::timeout(case.soon(), events.message()).await.with_context(|| format!("only {seen:?} came"))?;
            let event = next?.context("the stream ended")?;
            if event.container_id == id {
                seen.push(ContainerEventType::try_from(event.container_event_type)?);
            }
        }
        use ContainerEventType::{ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent};
        assert_eq!(seen, [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent]);
        drop(events);
        Ok(pod.remove().await?)
    });
}

#[test]
fn task_and_exec_events_reach_containerd_in_order() {
    on_node(async |case| {
        let pod = case.pod("events").await?;
        let mut listener = Listener::start()?;
        let container = pod.run(&case.sleeper()).await?;
        container.exec(["true"]).await?;
        container.stop(10).await?;
        let id = container.id().to_owned();
        container.remove().await?;
        let expected =
            ["/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/exit", "/tasks/delete"];
        let mut seen = Vec::new();
        let complete = eventually("all events came", case.soon(), async || {
            seen.extend(listener.heard.try_iter().filter(|line| line.contains(&id)));
            Ok(expected.iter().all(|topic| seen.iter().any(|line| line.contains(topic))).then_some(()))
        });
        if let Err(error) = complete.await {
            anyhow::bail!("{error}; heard:\n{}", seen.join("\n"));
        }
        let position = |topic: &str| seen.iter().position(|line| line.contains(topic));
        assert!(position("/tasks/create") < position("/tasks/start"), "{seen:?}");
        assert!(position("/tasks/start") < position("/tasks/exec-added"), "{seen:?}");
        assert!(position("/tasks/exec-added") < position("/tasks/exec-started"), "{seen:?}");
        listener.stop()?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn an_out_of_memory_event_reaches_containerd() {
    on_node(async |case| check_oom_event(case).await);
}

async fn check_oom_event(case: &Case) -> Result<()> {
    let pod = case.pod("oom-event").await?;
    let mut listener = Listener::start()?;
    let spec = case.script("exec tail /dev/zero").resources(|r| {
        r.memory_limit_in_bytes = 20 << 20;
        r.memory_swap_limit_in_bytes = 20 << 20;
    });
    let container = pod.run(&spec).await?;
    container.exited(case.within(60)).await?;
    eventually("the event came", case.soon(), async || {
        Ok(listener.heard.try_iter().any(|line| line.contains("/tasks/oom") && line.contains(container.id())).then_some(()))
    })
    .await?;
    listener.stop()?;
    Ok(pod.remove().await?)
}

/// containerd's event stream, as its own client prints it.
struct Listener {
    child: Child,
    heard: Receiver<String>,
}

impl Listener {
    fn start() -> Result<Self> {
        let ctr = Tool::ctr().context("the node has no ctr")?;
        let mut child = ctr.command(&["events"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let (send, heard) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Nobody listens any more: so be it.
                let _ = send.send(line);
            }
        });
        // There is no word for "subscribed"; it is a matter of milliseconds.
        thread::sleep(Duration::from_millis(500));
        Ok(Self { child, heard })
    }

    fn stop(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Also when a test fails; after `stop` there is nothing to do.
        let _ = self.stop();
    }
}
