// SPDX-License-Identifier: Apache-2.0
//! WasmEdge's sockets as a program in C uses them (images/oci/wasm/sockets), an area at a time: the
//! same module with each engine. The program checks for itself what is the same on both.

use anyhow::{Result, ensure};
use magnetar_cri::{ContainerSpec, Pod};
use magnetar_e2e::{BUSYBOX, Case, on_node};

use super::engine::{Engine, ends, module, on_each_engine, pod};

const PROGRAM: &str = "sockets.wasm";

on_each_engine! {
    streams_and_datagrams_arrive,
    a_server_waits_for_its_sockets,
    a_module_waits_for_standard_input_and_a_socket,
    a_closed_connection_is_noticed,
    options_and_names_are_those_of_the_pod,
    descriptors_that_are_no_sockets_are_as_before,
    a_module_serves_clients_in_its_pod,
}

/// Runs areas to their end, which is with 0, and returns what was printed apart from their names.
async fn areas<const N: usize>(case: &Case, pod: &Pod, names: [&str; N]) -> Result<String> {
    let (status, said, complaint) = ends(case, pod, &module(PROGRAM, names)).await?;
    ensure!(status.exit_code == 0 && complaint.is_empty(), "{names:?}: exit code {}: {complaint}; it said {said}", status.exit_code);
    let done: Vec<_> = names.iter().map(|name| format!("{name}: done")).collect();
    let (ends, rest): (Vec<_>, Vec<_>) = said.lines().partition(|line| line.ends_with(": done"));
    ensure!(ends == done, "{names:?}: {said}");
    Ok(rest.join("\n"))
}

async fn streams_and_datagrams_arrive(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "streams").await?;
    areas(case, &pod, ["streams"]).await?;
    let port = match engine {
        Engine::Wasmtime => "right",
        // It returns the sender's port in the network's order, and takes it in the module's.
        Engine::WasmEdge => "reversed",
    };
    assert_eq!(areas(case, &pod, ["datagrams"]).await?, format!("the sender's port is {port}"));
    Ok(pod.remove().await?)
}

async fn a_server_waits_for_its_sockets(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "events").await?;
    let accepted = match engine {
        Engine::Wasmtime => "accepted: does not wait",
        // It asks for that on the listener instead.
        Engine::WasmEdge => "accepted: waits",
    };
    assert_eq!(areas(case, &pod, ["events"]).await?, accepted);
    areas(case, &pod, ["mixed"]).await?;
    Ok(pod.remove().await?)
}

async fn a_module_waits_for_standard_input_and_a_socket(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "input").await?;
    let container = pod.run(&module(PROGRAM, ["input"]).stdin(true)).await?;
    let mut session = container.attach(true, false).await?;
    container.logged(case.soon(), |log| log.stdout() == "waiting\n").await?;
    session.send(b"something\n").await?;
    assert_eq!(container.exited(case.within(30)).await?.exit_code, 0, "{}", container.log()?.stderr());
    assert_eq!(case.whole_log(&container).await?.stdout(), "waiting\nthen something\ninput: done\n");
    session.close().await?;
    Ok(pod.remove().await?)
}

async fn a_closed_connection_is_noticed(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "closed").await?;
    areas(case, &pod, ["closed"]).await?;
    Ok(pod.remove().await?)
}

async fn options_and_names_are_those_of_the_pod(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "options").await?;
    let kind = match engine {
        Engine::Wasmtime => 5,
        Engine::WasmEdge => 6,
    };
    assert_eq!(areas(case, &pod, ["options"]).await?, format!("a socket for datagrams has type {kind}"));
    areas(case, &pod, ["names"]).await?;
    Ok(pod.remove().await?)
}

async fn descriptors_that_are_no_sockets_are_as_before(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "strangers").await?;
    areas(case, &pod, ["strangers"]).await?;
    areas(case, &pod, ["files"]).await?;
    Ok(pod.remove().await?)
}

async fn a_module_serves_clients_in_its_pod(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "serve").await?;
    let server = pod.run(&module(PROGRAM, ["serve"])).await?;
    server.logged(case.soon(), |log| log.stdout() == "listening\n").await?;
    for text in ["one", "two"] {
        let client = ContainerSpec::new(text, BUSYBOX).shell(&format!("echo {text} | nc 127.0.0.1 9000"));
        assert_eq!(case.output(&pod, &client).await?, format!("{text}\n"));
    }
    assert_eq!(server.exited(case.within(30)).await?.exit_code, 0, "{}", server.log()?.stderr());
    Ok(pod.remove().await?)
}

/// Not with WasmEdge 0.17, which ends a module for some of them, and follows others.
#[test]
fn wrong_pointers_have_errors_with_wasmtime() {
    on_node(async |case| {
        let pod = pod(case, Engine::Wasmtime, "pointers").await?;
        areas(case, &pod, ["pointers"]).await?;
        Ok(pod.remove().await?)
    });
}
