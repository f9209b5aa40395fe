// SPDX-License-Identifier: Apache-2.0
//! The Wasm engines, and how a module is run by one. Tests of modules have handlers of their own,
//! whichever one the others are run with.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use magnetar_cri::{Container, ContainerSpec, Pod, PodSpec, v1::ContainerStatus};
use magnetar_e2e::Case;

/// Modules and nothing else.
pub const MODULES: &str = "localhost/magnetar/wasm:1";

/// The engines, each with a handler of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Wasmtime,
    WasmEdge,
}

impl Engine {
    pub fn handler(self) -> &'static str {
        match self {
            Self::Wasmtime => "magnetar-wasmtime",
            Self::WasmEdge => "magnetar-wasmedge",
        }
    }

    /// The exit code of a module that was stopped by a trap, which is that of the engine's own
    /// command line.
    pub fn trapped(self) -> i32 {
        match self {
            Self::Wasmtime => 134,
            Self::WasmEdge => 1,
        }
    }
}

/// Makes a test of each engine out of a function.
macro_rules! on_each_engine {
    ($($name:ident,)*) => {
        mod wasmtime {
            use super::Engine;
            use magnetar_e2e::on_node;
            $(#[test] fn $name() { on_node(async |case| super::$name(case, Engine::Wasmtime).await); })*
        }
        mod wasmedge {
            use super::Engine;
            use magnetar_e2e::on_node;
            $(#[test] fn $name() { on_node(async |case| super::$name(case, Engine::WasmEdge).await); })*
        }
    };
}
pub(crate) use on_each_engine;

/// A container of a module in `/modules`.
pub fn module<const N: usize>(name: &str, args: [&str; N]) -> ContainerSpec {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let words = [format!("/modules/{name}")].into_iter().chain(args.map(String::from));
    // A name of its own for each: containers of one name share a log.
    let name = format!("{}-{}", name.replace(['.', '#'], "-"), COUNT.fetch_add(1, Ordering::Relaxed));
    ContainerSpec::new(&name, MODULES).command(words)
}

pub async fn pod(case: &Case, engine: Engine, name: &str) -> Result<Pod> {
    Ok(case.node().run_pod(&PodSpec::new(name, engine.handler()).own_pid()).await?)
}

/// Runs a container to its end: how it ended, and what it said on standard output and standard
/// error.
pub async fn ends(case: &Case, pod: &Pod, spec: &ContainerSpec) -> Result<(ContainerStatus, String, String)> {
    let container = pod.run(spec).await?;
    let status = container.exited(case.within(30)).await?;
    let log = case.whole_log(&container).await?;
    container.remove().await?;
    Ok((status, log.stdout(), log.stderr()))
}

/// Runs a container, and returns when it has written something.
pub async fn running(case: &Case, pod: &Pod, spec: &ContainerSpec) -> Result<Container> {
    let container = pod.run(spec).await?;
    container.logged(case.soon(), |log| !log.entries.is_empty()).await?;
    Ok(container)
}

/// Asks an HTTP server: the status and the body of its answer.
pub fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer:?}"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).with_context(|| format!("no status: {head:?}"))?;
    Ok((status, body.into()))
}
