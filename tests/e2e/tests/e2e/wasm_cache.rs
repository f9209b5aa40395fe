// SPDX-License-Identifier: Apache-2.0
//! Compiled code of Wasm modules is kept, and used only if it is ours and undamaged.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use magnetar_cri::{Container, ContainerSpec, Pod, PodSpec};
use magnetar_e2e::{Case, Scratch, eventually, on_node};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const CACHE: &str = "/var/lib/magnetar/wasm";
const QUICK: &str = "io.magnetar.wasm.quick-start";
const MODULES: &str = "localhost/magnetar/wasm:1";

async fn pod(case: &Case, name: &str) -> Result<Pod> {
    Ok(case.node().run_pod(&PodSpec::new(name, "magnetar-wasmtime").own_pid().host_network()).await?)
}

/// Runs a module to its end, which is with code 7.
async fn run(case: &Case, pod: &Pod, name: &str) -> Result<()> {
    ends(case, pod, name, "exit.wat", 7).await
}

async fn ends(case: &Case, pod: &Pod, name: &str, module: &str, code: i32) -> Result<()> {
    let container = pod.run(&ContainerSpec::new(name, MODULES).command([format!("/modules/{module}")])).await?;
    let status = container.exited(case.within(30)).await?;
    ensure!(status.exit_code == code, "{name}: exit code {}", status.exit_code);
    Ok(container.remove().await?)
}

/// The code that is kept, without digests and what is being written.
fn kept() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for engine in fs::read_dir(CACHE)? {
        for file in fs::read_dir(engine?.path())? {
            let path = file?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !name.starts_with('.') && !name.contains('.') {
                files.push(path);
            }
        }
    }
    Ok(files)
}

async fn one_is_kept(case: &Case) -> Result<PathBuf> {
    let mut files = Vec::new();
    eventually("compiled code to be kept", case.soon(), async || {
        files = kept().unwrap_or_default();
        Ok((files.len() == 1).then_some(()))
    })
    .await?;
    Ok(files.remove(0))
}

fn clear() -> Result<()> {
    match fs::remove_dir_all(CACHE) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[test]
fn compiled_code_is_cached_and_damaged_code_is_compiled_again() {
    on_node(async |case| {
        clear()?;
        let pod = pod(case, "kept").await?;
        run(case, &pod, "compiles").await?;
        let file = one_is_kept(case).await?;
        let code = fs::read(&file)?;
        for folder in [Path::new(CACHE), file.parent().context("no folder")?] {
            ensure!(fs::metadata(folder)?.permissions().mode() & 0o077 == 0, "others can enter {}", folder.display());
        }
        run(case, &pod, "takes-it").await?;
        ensure!(fs::read(&file)? == code, "it was compiled once more");
        fs::write(&file, b"\x7fELF no code")?;
        run(case, &pod, "damaged").await?;
        eventually("the code to be made again", case.soon(), async || Ok((fs::read(&file)? == code).then_some(()))).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn compiled_code_is_not_shared_between_namespaces() {
    on_node(async |case| {
        clear()?;
        let own = pod(case, "cache-own").await?;
        run(case, &own, "compiles").await?;
        let file = one_is_kept(case).await?;
        let spec = PodSpec::new("cache-other", "magnetar-wasmtime").own_pid().host_network();
        let spec = spec.edit(|config| config.metadata.get_or_insert_default().namespace = "another-tenant".into());
        let other = case.node().run_pod(&spec).await?;
        run(case, &other, "compiles-anew").await?;
        eventually("the other namespace's code to be kept", case.soon(), async || Ok((kept()?.len() == 2).then_some(()))).await?;
        let (name, places) = (file.file_name(), kept()?);
        ensure!(places.iter().all(|place| place.file_name() == name), "one module, kept once for each: {places:?}");
        own.remove().await?;
        Ok(other.remove().await?)
    });
}

#[test]
fn compiled_components_are_cached() {
    on_node(async |case| {
        clear()?;
        let pod = pod(case, "components").await?;
        for n in 0..2 {
            ends(case, &pod, &format!("fails-{n}"), "component-fails.wat", 1).await?;
            one_is_kept(case).await?;
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_module_compiled_concurrently_is_cached_once() {
    on_node(async |case| {
        clear()?;
        let pods = join_all((0..8).map(|n| async move {
            let pod = pod(case, &format!("same-{n}")).await?;
            run(case, &pod, "same").await?;
            Ok::<_, anyhow::Error>(pod.remove().await?)
        }));
        pods.await.into_iter().collect::<Result<()>>()?;
        one_is_kept(case).await.map(drop)
    });
}

#[test]
fn with_a_full_cache_a_module_runs() {
    on_node(async |case| {
        clear()?;
        fs::create_dir_all(CACHE)?;
        fs::set_permissions(CACHE, fs::Permissions::from_mode(0o700))?;
        mount(Some("tmpfs"), CACHE, Some("tmpfs"), MsFlags::empty(), Some("mode=700,size=4k"))?;
        let outcome = async {
            for pod in [pod(case, "full").await?, on_wasmedge(case, "edge-full").await?] {
                for n in 0..2 {
                    run(case, &pod, &format!("full-{n}")).await?;
                }
                pod.remove().await?;
            }
            ensure!(kept()?.is_empty(), "what does not fit was kept");
            Ok(())
        };
        let outcome = outcome.await;
        umount2(CACHE, MntFlags::MNT_DETACH)?;
        outcome
    });
}

#[test]
fn a_cache_writable_by_others_is_not_used() {
    on_node(async |case| {
        clear()?;
        fs::create_dir_all(CACHE)?;
        fs::set_permissions(CACHE, fs::Permissions::from_mode(0o777))?;
        for pod in [pod(case, "open").await?, on_wasmedge(case, "edge-open").await?] {
            run(case, &pod, "open").await?;
            pod.remove().await?;
        }
        ensure!(fs::read_dir(Path::new(CACHE))?.next().is_none(), "something was written there");
        clear()
    });
}

#[test]
fn a_precompiled_module_runs_and_a_truncated_one_is_named() {
    on_node(async |case| {
        clear()?;
        let pod = pod(case, "precompiled").await?;
        run(case, &pod, "compiles").await?;
        // What the engine has compiled is what its own command line would have written.
        let code = fs::read(one_is_kept(case).await?)?;
        let scratch = Scratch::new()?;
        fs::write(scratch.path().join("whole"), &code)?;
        for length in [8, 64, code.len() / 2] {
            fs::write(scratch.path().join(format!("cut-{length}")), &code[..length])?;
        }
        let program = |name: &str| {
            let spec = ContainerSpec::new(name, MODULES).command([format!("/data/{name}")]);
            spec.mount_read_only(&scratch.join(""), "/data")
        };
        let container = pod.run(&program("whole")).await?;
        assert_eq!(container.exited(case.within(30)).await?.exit_code, 7);
        for length in [8, 64, code.len() / 2] {
            let name = format!("cut-{length}");
            let container = pod.run(&program(&name)).await?;
            let status = container.exited(case.within(30)).await?;
            let said = case.whole_log(&container).await?.stderr();
            ensure!(status.exit_code == 1 && said.contains(&name), "{name}: exit code {}, {said:?}", status.exit_code);
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn what_wasmedge_has_compiled_runs_as_an_images_library_with_that_engine_alone() {
    on_node(async |case| {
        clear()?;
        let pods = [on_wasmedge(case, "library").await?, pod(case, "no-library").await?];
        ends(case, &pods[0], "compiles", "exit.wat", 7).await?;
        // It is what the engine's own command line would have written.
        let code = fs::read(one_is_kept(case).await?)?;
        clear()?;
        let scratch = Scratch::new()?;
        fs::write(scratch.path().join("whole.so"), &code)?;
        for length in [16, 64, 400] {
            fs::write(scratch.path().join(format!("cut-{length}.so")), &code[..length])?;
        }
        fs::copy(library_of_c()?, scratch.path().join("other.so"))?;
        let run = async |pod: &Pod, name: &str| {
            let spec = ContainerSpec::new(name, MODULES).command([format!("/data/{name}")]).mount_read_only(&scratch.join(""), "/data");
            let container = pod.run(&spec).await?;
            let status = container.exited(case.within(30)).await?;
            anyhow::Ok((status.exit_code, case.whole_log(&container).await?.stderr()))
        };
        assert_eq!(run(&pods[0], "whole.so").await?, (7, String::new()));
        let (code_of_other, said) = run(&pods[1], "whole.so").await?;
        ensure!(code_of_other == 1 && said.contains("it is code that WasmEdge has compiled"), "{code_of_other}, {said:?}");
        for length in [16, 64, 400] {
            let (ended, said) = run(&pods[0], &format!("cut-{length}.so")).await?;
            ensure!(ended == 1 && said.contains("it is not a whole shared library"), "{length} bytes: {ended}, {said:?}");
        }
        let (ended, said) = run(&pods[0], "other.so").await?;
        ensure!(ended == 1 && said.contains("it is not code that WasmEdge 0.17 has compiled"), "another library: {ended}, {said:?}");
        ensure!(kept()?.is_empty(), "something was compiled");
        for pod in pods {
            pod.remove().await?;
        }
        Ok(())
    });
}

/// A library of the node that is no module's.
fn library_of_c() -> Result<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    folders.iter().map(|folder| Path::new(folder).join("libseccomp.so.2")).find(|path| path.exists()).context("there is no libseccomp")
}

#[test]
fn code_is_cached_for_a_pod_whose_containers_could_trace_each_other() {
    on_node(async |case| {
        clear()?;
        // None of them can reach what compiles.
        let shared = case.node().run_pod(&PodSpec::new("cache-shared", "magnetar-wasmtime").host_network()).await?;
        let tracing = ContainerSpec::new("tracing", MODULES).command(["/modules/exit.wat"]).capabilities(&["SYS_PTRACE"], &[]);
        let container = shared.run(&tracing).await?;
        assert_eq!(container.exited(case.within(30)).await?.exit_code, 7);
        container.remove().await?;
        one_is_kept(case).await?;
        Ok(shared.remove().await?)
    });
}

#[test]
fn a_large_module_starts_with_a_draft_where_the_pod_asks_and_full_code_is_kept() {
    on_node(async |case| {
        clear()?;
        let spec = PodSpec::new("quick", "magnetar-wasmtime").own_pid().host_network();
        let pod = case.node().run_pod(&spec.edit(|config| drop(config.annotations.insert(QUICK.into(), "true".into())))).await?;
        let scratch = Scratch::new()?;
        let functions = "(func (param i32) (result i32) local.get 0 i32.const 2 i32.mul)".repeat(40_000);
        fs::write(scratch.path().join("spins.wat"), format!("(module {functions} (func (export \"_start\") (loop (br 0))))"))?;
        let spins = |name: &str| {
            let spec = ContainerSpec::new(name, MODULES).command(["/data/spins.wat"]);
            spec.mount_read_only(&scratch.join(""), "/data")
        };
        for (name, code) in [("first", "memfd:compiled"), ("second", "")] {
            let container = pod.run(&spins(name)).await?;
            let inode = if code.is_empty() { fs::metadata(one_is_kept(case).await?)?.ino().to_string() } else { String::new() };
            let pid = container.pid().await?;
            eventually(&format!("{name}: its code to be mapped"), case.within(30), async || {
                let mapped = fs::read_to_string(format!("/proc/{pid}/maps"))?;
                let is_code = |line: &str| match code {
                    "" => line.split_whitespace().nth(4) == Some(&inode),
                    memory => line.contains(memory),
                };
                Ok(mapped.lines().any(is_code).then_some(()))
            })
            .await?;
            one_is_kept(case).await?;
            container.stop(10).await?;
            container.remove().await?;
        }
        Ok(pod.remove().await?)
    });
}

async fn on_wasmedge(case: &Case, name: &str) -> Result<Pod> {
    Ok(case.node().run_pod(&PodSpec::new(name, "magnetar-wasmedge").own_pid().host_network()).await?)
}

/// The files that a container's process has mapped.
async fn mapped(case: &Case, container: &Container) -> Result<String> {
    container.logged(case.within(30), |log| !log.stdout().is_empty()).await?;
    Ok(fs::read_to_string(format!("/proc/{}/maps", container.pid().await?))?)
}

#[test]
fn wasmedge_runs_compiled_code_without_llvm() {
    on_node(async |case| {
        clear()?;
        let pod = on_wasmedge(case, "edge-kept").await?;
        // The first is compiled beside its container, the second has the code.
        for name in ["first", "second"] {
            let container = pod.run(&ContainerSpec::new(name, MODULES)).await?;
            let (mapped, kept) = (mapped(case, &container).await?, one_is_kept(case).await?);
            let inode = fs::metadata(kept)?.ino().to_string();
            let is_mapped = mapped.lines().any(|line| line.split_whitespace().nth(4) == Some(&inode));
            ensure!(is_mapped, "{name}: its code is not mapped: {mapped}");
            ensure!(mapped.contains("stand-in.so") && !mapped.contains("libLLVM"), "{name}: {mapped}");
            container.stop(10).await?;
            container.remove().await?;
        }
        ends(case, &pod, "exits", "exit.wat", 7).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn wasmedges_damaged_code_is_compiled_again() {
    on_node(async |case| {
        clear()?;
        let pod = on_wasmedge(case, "edge-damaged").await?;
        ends(case, &pod, "compiles", "exit.wat", 7).await?;
        let file = one_is_kept(case).await?;
        let mut code = fs::read(&file)?;
        let middle = code.len() / 2;
        code[middle] ^= 1;
        fs::write(&file, &code)?;
        ends(case, &pod, "damaged", "exit.wat", 7).await?;
        ensure!(fs::read(one_is_kept(case).await?)? != code, "the damaged code is still there");
        Ok(pod.remove().await?)
    });
}

/// Puts other content in place of kept code, with its own digest.
fn put_in_place(file: &Path, content: &[u8]) -> Result<()> {
    fs::write(file, content)?;
    let sum = Command::new("sha256sum").arg(file).output()?;
    let sum = String::from_utf8(sum.stdout)?;
    let digest = (0..64).step_by(2).map(|at| u8::from_str_radix(sum.get(at..at + 2).unwrap_or_default(), 16));
    let name = file.file_name().context("no name")?.to_string_lossy();
    Ok(fs::write(file.with_file_name(format!("{name}.sha256")), digest.collect::<Result<Vec<u8>, _>>()?)?)
}

#[test]
fn kept_code_that_an_engine_rejects_is_not_run() {
    on_node(async |case| {
        // As of another version or processor: whole, and not for this engine.
        let engines = [
            (pod(case, "rejects").await?, 1, "empty /var/lib/magnetar/wasm"),
            (on_wasmedge(case, "edge-rejects").await?, 7, "it is interpreted"),
        ];
        for (pod, code, said) in engines {
            clear()?;
            ends(case, &pod, "compiles", "exit.wat", 7).await?;
            let file = one_is_kept(case).await?;
            let mut other = fs::read(&file)?;
            other[16..64].fill(0xff);
            put_in_place(&file, &other)?;
            let container = pod.run(&ContainerSpec::new("rejected", MODULES).command(["/modules/exit.wat"])).await?;
            assert_eq!(container.exited(case.soon()).await?.exit_code, code);
            container.logged(case.soon(), |log| log.stderr().contains(said)).await?;
            ensure!(fs::read(&file)? == other, "it was not found at all");
            pod.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn wasmedge_interprets_where_it_is_told_to() {
    on_node(async |case| {
        clear()?;
        let options = Path::new("/etc/magnetar/wasmedge.toml");
        let before = fs::read_to_string(options)?;
        fs::write(options, before.replace("interpret = false", "interpret = true"))?;
        let pod = on_wasmedge(case, "edge-interprets").await;
        fs::write(options, before)?;
        let pod = pod?;
        ends(case, &pod, "interprets", "exit.wat", 7).await?;
        ensure!(!Path::new(CACHE).exists() || kept()?.is_empty(), "something was compiled");
        Ok(pod.remove().await?)
    });
}

#[test]
fn wasmedge_interprets_what_it_has_no_memory_to_compile() {
    on_node(async |case| {
        clear()?;
        let pod = on_wasmedge(case, "edge-small").await?;
        let scratch = Scratch::new()?;
        let functions = "(func (result i32) i32.const 1 i32.const 2 i32.add)".repeat(100_000);
        fs::write(scratch.path().join("many.wat"), format!("(module {functions} (func (export \"_start\")))"))?;
        let spec = ContainerSpec::new("many", MODULES).command(["/data/many.wat"]).memory(128 << 20);
        let container = pod.run(&spec.mount_read_only(&scratch.join(""), "/data")).await?;
        let status = container.exited(case.within(60)).await?;
        let said = case.whole_log(&container).await?.stderr();
        ensure!(status.exit_code == 0, "exit code {}, {said:?}", status.exit_code);
        ensure!(said.contains("many.wat: it is interpreted, which is slow, because it is not compiled"), "{said:?}");
        Ok(pod.remove().await?)
    });
}
