// SPDX-License-Identifier: Apache-2.0
//! Pods on their own network: CNI, port-forward, host ports.

use anyhow::{Context, Result, ensure};
use magnetar_cri::{ContainerSpec, Pod};
use magnetar_e2e::{BUSYBOX, Case, eventually, kernel, on_node, on_shared_kernel};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A server on port 8080 that answers each line with `word` and the line.
fn server(word: &str) -> ContainerSpec {
    let script = format!("while read -r line; do echo \"{word} $line\"; done");
    ContainerSpec::new("server", BUSYBOX).command(["nc", "-ll", "-p", "8080", "-e", "sh", "-c", &script])
}

#[test]
fn a_pod_has_an_address_and_another_pod_reaches_it() {
    on_node(async |case| {
        let serves = case.node().run_pod(&case.pod_spec_with_network("serves")).await?;
        let asks = case.node().run_pod(&case.pod_spec_with_network("asks")).await?;
        let address = serves.ip().await?;
        ensure!(!address.is_empty(), "no address");
        assert_ne!(address, asks.ip().await?);
        serves.run(&server("hello")).await?;
        let client = asks.run(&case.sleeper()).await?;
        eventually("the other pod answers", case.soon(), async || {
            let answer = client.shell(&format!("echo you | nc -w 2 {address} 8080")).await?;
            Ok((answer.stdout == "hello you\n").then_some(()))
        })
        .await?;
        serves.remove().await?;
        Ok(asks.remove().await?)
    });
}

#[test]
fn containers_of_a_pod_reach_each_other_over_loopback() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec_with_network("loopback")).await?;
        pod.run(&server("local")).await?;
        let client = pod.run(&case.sleeper()).await?;
        eventually("the other container answers", case.soon(), async || {
            let answer = client.shell("echo me | nc -w 2 127.0.0.1 8080").await?;
            Ok((answer.stdout == "local me\n").then_some(()))
        })
        .await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_forwarded_port_reaches_a_server_on_the_pods_loopback() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec_with_network("forward")).await?;
        check_forward(case, pod).await
    });
}

#[test]
fn a_port_can_be_forwarded_to_a_pod_on_the_nodes_network() {
    on_shared_kernel("a virtual machine cannot be on the node's network, as vm.rs tests", async |case| {
        let pod = case.pod("forward-host").await?;
        check_forward(case, pod).await
    });
}

async fn check_forward(case: &Case, pod: Pod) -> Result<()> {
    pod.run(&server("forwarded")).await?;
    let pid = std::process::id();
    eventually("the server answers", case.soon(), async || {
        let mut stream = pod.port_forward(8080).await?;
        stream.send(format!("{pid}\n").as_bytes()).await?;
        // Until the server listens, the stream ends at once.
        Ok(stream.receive_until("\n").await.ok().filter(|answer| answer == &format!("forwarded {pid}\n")))
    })
    .await?;
    let mut stream = pod.port_forward(8080).await?;
    for n in 0..20 {
        stream.send(format!("{n}\n").as_bytes()).await?;
        assert_eq!(stream.receive_until("\n").await?, format!("forwarded {n}\n"));
    }
    stream.close().await?;
    Ok(pod.remove().await?)
}

#[test]
fn forwarding_a_port_without_a_listener_fails() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec_with_network("forward-none")).await?;
        let mut stream = pod.port_forward(9).await?;
        let answer = stream.receive().await;
        ensure!(!matches!(answer, Ok(Some(_))), "somebody answered: {answer:?}");
        drop(stream);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_host_port_reaches_the_pod() {
    on_node(async |case| {
        let spec = case.pod_spec_with_network("host-port").port(8080, 18_080);
        let pod = case.node().run_pod(&spec).await?;
        pod.run(&server("mapped")).await?;
        eventually("the pod answers on the node's port", case.soon(), async || {
            let Ok(mut stream) = TcpStream::connect("198.51.100.2:18080").await else { return Ok(None) };
            stream.write_all(b"node\n").await?;
            let mut answer = [0; 12];
            Ok(stream.read_exact(&mut answer).await.ok().filter(|_| &answer == b"mapped node\n"))
        })
        .await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn the_network_stays_up_after_all_containers_have_ended() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec_with_network("stays")).await?;
        let script = "ip -o -4 addr show eth0 | awk '{ print $4 }'";
        let first = case.output(&pod, &case.script(script).named("first")).await?;
        let second = case.output(&pod, &case.script(script).named("second")).await?;
        assert_eq!(first, second);
        let address = pod.ip().await?;
        ensure!(first.starts_with(&address), "{first} is not {address}");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pods_network_namespace_is_the_one_that_containerd_made() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec_with_network("netns")).await?;
        let container = pod.run(&case.sleeper()).await?;
        let info = pod.info().await?;
        let path = info
            .pointer("/runtimeSpec/linux/namespaces")
            .and_then(|list| list.as_array()?.iter().find(|n| n["type"] == "network")?.get("path")?.as_str())
            .or_else(|| info.pointer("/netNSPath").and_then(serde_json::Value::as_str));
        // Not every sandbox has a specification to look into; its network has an address anyway.
        if let Some(path) = path {
            use std::os::unix::fs::MetadataExt as _;
            let inode = std::fs::metadata(path).with_context(|| path.to_owned())?.ino();
            assert_eq!(kernel::namespace(container.pid().await?, "net")?, format!("net:[{inode}]"));
        }
        Ok(pod.remove().await?)
    });
}
