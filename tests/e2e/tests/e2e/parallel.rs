// SPDX-License-Identifier: Apache-2.0
//! Many at once, and again and again. That nothing is left is what `on_node` checks.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use magnetar_cri::v1::ContainerState;
use magnetar_e2e::{Case, eventually, on_magnetar, on_node};

#[test]
fn twenty_concurrent_pods_each_log_their_own_output() {
    on_node(async |case| {
        let pods = join_all((0..case.at_once(20)).map(|n| async move {
            let pod = case.pod(&format!("parallel-{n}")).await?;
            let word = case.output(&pod, &case.script(&format!("echo {n}"))).await?;
            ensure!(word == format!("{n}\n"), "pod {n} said {word:?}");
            Ok(pod.remove().await?)
        }));
        all(pods.await)
    });
}

#[test]
fn ten_concurrent_pods_have_different_addresses() {
    on_node(async |case| {
        let count = case.at_once(10);
        let pods = join_all((0..count).map(|n| async move {
            let pod = case.node().run_pod(&case.pod_spec_with_network(&format!("networks-{n}"))).await?;
            let address = pod.ip().await?;
            Ok::<_, anyhow::Error>((pod, address))
        }));
        let pods: Vec<_> = pods.await.into_iter().collect::<Result<_>>()?;
        let mut addresses: Vec<_> = pods.iter().map(|(_, address)| address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), count as usize);
        all(join_all(pods.into_iter().map(|(pod, _)| async { Ok(pod.remove().await?) })).await)
    });
}

#[test]
fn fifty_pods_are_created_and_removed_concurrently_three_times() {
    on_node(async |case| {
        // Fifty machines that start at once are more than two processors emulate in time.
        let count = case.at_once(if case.is_vm() { 8 } else { 50 });
        for round in 0..3 {
            let pods = join_all((0..count).map(|n| async move {
                let pod = case.pod(&format!("churn-{round}-{n}")).await?;
                let container = pod.run(&case.sleeper()).await?;
                let state = container.status().await?.state;
                ensure!(state == i32::from(ContainerState::ContainerRunning), "pod {n}: state {state}");
                Ok::<_, anyhow::Error>(pod)
            }));
            let pods: Vec<_> = pods.await.into_iter().collect::<Result<_>>()?;
            all(join_all(pods.into_iter().map(|pod| async { Ok(pod.remove().await?) })).await)?;
        }
        Ok(())
    });
}

#[test]
fn containers_of_one_pod_can_be_created_concurrently() {
    on_node(async |case| {
        let pod = case.pod("parallel-containers").await?;
        all(join_all((0..10).map(|n| check_word(case, &pod, n))).await)?;
        Ok(pod.remove().await?)
    });
}

async fn check_word(case: &Case, pod: &magnetar_cri::Pod, n: u32) -> Result<()> {
    let word = case.output(pod, &case.script(&format!("echo {n}")).named(&format!("c{n}"))).await?;
    ensure!(word == format!("{n}\n"), "container {n} said {word:?}");
    Ok(())
}

#[test]
fn a_pod_stopped_during_container_creation_can_be_removed() {
    on_magnetar("containerd's own shim leaves processes behind when this happens", async |case| {
        // From the first container's making to the third's start, which takes an emulated processor
        // ten times as long.
        let step = Duration::from_millis(if case.is_vm() { 150 } else { 15 });
        for round in 0..5 {
            let pod = case.pod("stopped-meanwhile").await?;
            let makes = async {
                for n in 0..3 {
                    // Refused as soon as the pod is being stopped: that is the point.
                    if pod.run(&case.sleeper().named(&format!("c{n}"))).await.is_err() {
                        break;
                    }
                }
            };
            let stops = async {
                tokio::time::sleep(step * round).await;
                pod.stop().await
            };
            let (_, stopped) = tokio::join!(makes, stops);
            stopped?;
            // Not both at once: containerd would not see the container that it is just making, and
            // a container without its pod cannot be removed any more. And again while it has not
            // noted the end of one that it has just started, as the kubelet does.
            let removed = async || Ok(case.node().remove_pod(pod.id()).await.ok());
            eventually("the stopped pod to be removed", case.soon(), removed).await?;
            pod.remove().await?;
        }
        Ok(())
    });
}

fn all(results: Vec<Result<()>>) -> Result<()> {
    results.into_iter().collect()
}
