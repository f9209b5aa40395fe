// SPDX-License-Identifier: Apache-2.0
//! The examples in Rust (examples/wasm), each as its manifest says, from images that have been made
//! of them (images/builder).

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use magnetar_cri::{Container, Pod, PodSpec};
use magnetar_e2e::{Case, Manifest, Scratch, Tool, eventually, on_node_with};

use super::engine::{Engine, get};

/// The folder with the images, which tests/e2e/run makes.
const FOLDER: &str = "MAGNETAR_EXAMPLES";

/// A test, when the node has the examples' images. They stay: they are known by their names, as the
/// node's own.
fn on_examples(test: impl AsyncFnOnce(&Case) -> Result<()>) {
    static GIVEN: std::sync::Once = std::sync::Once::new();
    on_node_with(&GIVEN, async |case| import(case, &made("images.tar")?).await, test);
}

/// Gives the node the images of an archive.
pub async fn import(case: &Case, archive: &Path) -> Result<()> {
    let ctr = Tool::ctr_in("k8s.io", case.within(60)).context("the node has no ctr")?;
    ctr.run(&["images", "import", &archive.to_string_lossy()])?;
    for image in ctr.run(&["images", "ls", "--quiet"])?.lines().filter(|image| image.starts_with("registry.example/")) {
        // The CRI hears of it by an event.
        eventually(image, case.soon(), async || Ok(case.node().image(image).await?.map(drop))).await?;
    }
    Ok(())
}

/// A file that was made of the examples.
fn made(name: &str) -> Result<PathBuf> {
    let folder = env::var(FOLDER).with_context(|| format!("{FOLDER} is not set: run this with tests/e2e/run"))?;
    Ok(Path::new(&folder).join(name))
}

/// The manifest of an example.
fn manifest(name: &str) -> Result<Manifest> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../examples/wasm/{name}/pod.yaml"));
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Manifest::parse(&text).with_context(|| file.display().to_string())
}

/// The pod of an example, and its only container.
async fn run(case: &Case, manifest: Manifest) -> Result<(Pod, Container)> {
    let pod = case.node().run_pod(&manifest.pod).await?;
    let [container] = manifest.containers.as_slice() else { anyhow::bail!("{} containers", manifest.containers.len()) };
    let container = pod.run(container).await?;
    Ok((pod, container))
}

/// Runs an example to its end, and returns what it printed.
async fn output(case: &Case, manifest: Manifest) -> Result<String> {
    let (pod, container) = run(case, manifest).await?;
    let status = container.exited(case.within(30)).await?;
    let log = case.whole_log(&container).await?;
    ensure!(status.exit_code == 0 && log.stderr().is_empty(), "exit code {}: {}", status.exit_code, log.stderr());
    pod.remove().await?;
    Ok(log.stdout())
}

#[test]
fn each_file_has_the_interface_that_its_example_is_about() -> Result<()> {
    let expected = [
        ("hello", "wasi:cli/run@0.2."),
        ("ticks", "wasi:cli/run@0.3.0"),
        ("web", "wasi:http/incoming-handler@0.2."),
        ("connect", "wasi:sockets/tcp@0.2."),
        ("echo", "sock_open"),
    ];
    for (name, interface) in expected {
        let file = fs::read(made(&format!("{name}.wasm"))?)?;
        ensure!(file.windows(interface.len()).any(|window| window == interface.as_bytes()), "{name} has no {interface}");
    }
    Ok(())
}

#[test]
fn hello_prints_its_arguments_and_a_file() {
    on_examples(async |case| {
        assert_eq!(output(case, manifest("hello")?).await?, "hello Ada\nhello Grace\nhello\n");
        Ok(())
    });
}

#[test]
fn hello_names_a_file_that_is_missing() {
    on_examples(async |case| {
        let mut manifest = manifest("hello")?;
        manifest.containers = manifest.containers.into_iter().map(|container| container.env("FILE", "/nonesuch")).collect();
        let (pod, container) = run(case, manifest).await?;
        assert_eq!(container.exited(case.within(30)).await?.exit_code, 1);
        let said = case.whole_log(&container).await?.stderr();
        ensure!(said.starts_with("/nonesuch: No such file or directory"), "{said:?}");
        Ok(pod.remove().await?)
    });
}

#[test]
fn ticks_writes_a_line_after_each_pause() {
    on_examples(async |case| {
        assert_eq!(output(case, manifest("ticks")?).await?, "tick 1\ntick 2\ntick 3\n");
        Ok(())
    });
}

#[test]
fn web_answers_requests() {
    on_examples(async |case| {
        let (pod, container) = run(case, manifest("web")?).await?;
        container.logged(case.soon(), |log| log.stderr().contains("answers HTTP on port 8081")).await?;
        let address = format!("{}:8081", pod.ip().await?);
        assert_eq!(get(&address, "/hello/Ada")?, (200, "hello Ada\n".into()));
        assert_eq!(get(&address, "/nonesuch")?, (404, "there is no /nonesuch\n".into()));
        container.stop(10).await?;
        assert_eq!(container.status().await?.exit_code, 0);
        Ok(pod.remove().await?)
    });
}

#[test]
fn connect_asks_echo_in_another_pod() {
    on_examples(async |case| connects_to_echo(case, manifest("echo")?).await);
}

#[test]
fn echo_runs_with_either_engine() {
    on_examples(async |case| {
        for engine in [Engine::Wasmtime, Engine::WasmEdge] {
            let mut echo = manifest("echo")?;
            echo.pod = PodSpec::new("echo", engine.handler());
            connects_to_echo(case, echo).await?;
        }
        Ok(())
    });
}

async fn connects_to_echo(case: &Case, echo: Manifest) -> Result<()> {
    let (echo, server) = run(case, echo).await?;
    server.logged(case.soon(), |log| log.stdout() == "listening on port 7000\n").await?;
    // In place of the cluster's name server, which knows the service.
    let scratch = Scratch::new()?;
    fs::write(scratch.path().join("hosts"), format!("{} echo\n", echo.ip().await?))?;
    // One client after the other.
    for _ in 0..2 {
        let mut manifest = manifest("connect")?;
        manifest.containers = manifest.containers.into_iter().map(|it| it.mount(&scratch.join("hosts"), "/etc/hosts")).collect();
        assert_eq!(output(case, manifest).await?, "hello from another pod\n");
    }
    server.stop(10).await?;
    assert_eq!(server.status().await?.exit_code, 143);
    Ok(echo.remove().await?)
}
