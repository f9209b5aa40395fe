// SPDX-License-Identifier: Apache-2.0
//! Wasm modules as containers. These tests have a handler of their own, whichever one the others are run with.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, ensure};
use magnetar_cri::{Container, ContainerSpec, Pod, PodSpec, v1::ContainerStatus};
use magnetar_e2e::{BUSYBOX, Case, Scratch, on_node};

const WASMTIME: &str = "magnetar-wasmtime";
/// Modules and nothing else.
const MODULES: &str = "localhost/magnetar/wasm:1";
/// The same beside busybox.
const WITH_TOOLS: &str = "localhost/magnetar/wasm-tools:1";

/// Numbers of errors in WASI preview 1 (`errno`).
const IO: i32 = 29;
const NOENT: i32 = 44;
const ROFS: i32 = 69;
const NOTCAPABLE: i32 = 76;
const PERM: i32 = 63;

fn module<const N: usize>(name: &str, args: [&str; N]) -> ContainerSpec {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let words = [format!("/modules/{name}")].into_iter().chain(args.map(String::from));
    // A name of its own for each: containers of one name share a log.
    let name = format!("{}-{}", name.replace(['.', '#'], "-"), COUNT.fetch_add(1, Ordering::Relaxed));
    ContainerSpec::new(&name, MODULES).command(words)
}

async fn pod(case: &Case, name: &str) -> Result<Pod> {
    Ok(case.node().run_pod(&PodSpec::new(name, WASMTIME).own_pid()).await?)
}

/// Runs a container to its end: how it ended, and what it said on standard output and standard error.
async fn ends(case: &Case, pod: &Pod, spec: &ContainerSpec) -> Result<(ContainerStatus, String, String)> {
    let container = pod.run(spec).await?;
    let status = container.exited(case.within(30)).await?;
    let log = case.whole_log(&container).await?;
    container.remove().await?;
    Ok((status, log.stdout(), log.stderr()))
}

/// A module ends with this code, and its log names the cause.
async fn fails<const N: usize>(case: &Case, pod: &Pod, name: &str, args: [&str; N], code: i32, words: &[&str]) -> Result<()> {
    let (status, _, said) = ends(case, pod, &module(name, args)).await?;
    ensure!(status.exit_code == code, "{name}: exit code {}, not {code}; it said {said:?}", status.exit_code);
    for word in words {
        ensure!(said.contains(word), "{name}: {word:?} is not in {said:?}");
    }
    Ok(())
}

async fn running(case: &Case, pod: &Pod, spec: &ContainerSpec) -> Result<Container> {
    let container = pod.run(spec).await?;
    container.logged(case.soon(), |log| !log.entries.is_empty()).await?;
    Ok(container)
}

#[test]
fn a_module_runs_and_says_hello_and_is_stopped() {
    on_node(async |case| {
        let pod = pod(case, "hello").await?;
        let container = running(case, &pod, &ContainerSpec::new("hello", MODULES)).await?;
        assert_eq!(container.log()?.stdout(), "hello from WebAssembly\n");
        let used = container.stats().await?.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |bytes| bytes.value);
        ensure!(used > 0, "no memory is counted");
        container.stop(10).await?;
        assert_eq!(container.status().await?.exit_code, 143);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_busy_loop_ends_when_it_is_stopped() {
    on_node(async |case| {
        let pod = pod(case, "spin").await?;
        let container = running(case, &pod, &module("spin.wat", [])).await?;
        // No grace is needed: it ends by SIGTERM.
        container.stop(60).await?;
        assert_eq!(container.status().await?.exit_code, 143);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_module_gets_its_arguments_and_environment_and_says_how_it_ended() {
    on_node(async |case| {
        let pod = pod(case, "surroundings").await?;
        let spec = module("surroundings.wat", ["one", "two words"]).env("COLOUR", "blue=green");
        let (status, said, _) = ends(case, &pod, &spec).await?;
        assert_eq!(status.exit_code, 0);
        ensure!(said.starts_with("/modules/surroundings.wat\0one\0two words\0"), "{said:?}");
        ensure!(said.contains("\0COLOUR=blue=green\0"), "{said:?}");
        fails(case, &pod, "exit.wat", [], 7, &[]).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_function_can_be_called_by_its_name() {
    on_node(async |case| {
        let pod = pod(case, "function").await?;
        let (status, said, _) = ends(case, &pod, &module("library.wat#greet", [])).await?;
        assert_eq!((status.exit_code, said.as_str()), (0, "called by name\n"));
        fails(case, &pod, "library.wat#nonesuch", [], 1, &["nonesuch"]).await?;
        fails(case, &pod, "library.wat#add", [], 1, &["add", "parameters"]).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_component_is_a_command_too() {
    on_node(async |case| {
        let pod = pod(case, "component").await?;
        fails(case, &pod, "component.wat", [], 0, &[]).await?;
        fails(case, &pod, "component-fails.wat", [], 1, &[]).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn what_goes_wrong_ends_the_container_alone_and_is_named_in_its_log() {
    on_node(async |case| {
        let pod = pod(case, "wrong").await?;
        let neighbour = running(case, &pod, &ContainerSpec::new("neighbour", MODULES)).await?;
        let expected: [(&str, i32, &[&str]); 7] = [
            ("unreachable.wat", 134, &["unreachable"]),
            ("overflow.wat", 134, &["call stack exhausted"]),
            ("invalid.wasm", 1, &["invalid.wasm", "section"]),
            ("truncated.wasm", 1, &["truncated.wasm", "unexpected end"]),
            ("text.wasm", 1, &["text.wasm", "not a WebAssembly module"]),
            ("library.wat", 1, &["_start"]),
            ("preview0.wat", 1, &["wasi_unstable_of_old", "fd_write"]),
        ];
        for (name, code, words) in expected {
            fails(case, &pod, name, [], code, words).await?;
        }
        let (status, ..) = ends(case, &pod, &module("exit.wat", []).named("after")).await?;
        assert_eq!(status.exit_code, 7);
        neighbour.stop(10).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn why_a_module_has_ended_is_in_its_termination_message() {
    on_node(async |case| {
        let scratch = Scratch::new()?;
        let file = scratch.path().join("termination-log");
        fs::write(&file, "")?;
        let pod = pod(case, "termination").await?;
        let spec = module("unreachable.wat", []).mount(&scratch.join("termination-log"), "/dev/termination-log");
        ends(case, &pod, &spec).await?;
        let text = fs::read_to_string(&file)?;
        ensure!(text.contains("unreachable"), "{text:?}");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_module_that_takes_too_much_memory_is_told_so_before_the_kernel_kills_it() {
    on_node(async |case| {
        let pod = pod(case, "greedy").await?;
        let (status, _, said) = ends(case, &pod, &module("grow.wat", []).memory(96 << 20)).await?;
        ensure!(status.reason != "OOMKilled", "the kernel was first");
        assert_eq!(status.exit_code, 134, "{said}");
        ensure!(said.contains("out of memory"), "{said:?}");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_module_sees_its_image_and_its_volumes_and_nothing_else() {
    on_node(async |case| {
        let pod = pod(case, "files").await?;
        let scratch = Scratch::new()?;
        fs::write(scratch.path().join("given"), "given\n")?;
        std::os::unix::fs::symlink("/etc/shadow", scratch.path().join("link"))?;
        std::os::unix::fs::symlink("../../../../etc/shadow", scratch.path().join("climb"))?;
        let read =
            |path: &'static str| module("read.wat", [path]).mount(&scratch.join(""), "/data").mount_read_only(&scratch.join(""), "/fixed");
        let (status, said, _) = ends(case, &pod, &read("data/given")).await?;
        assert_eq!((status.exit_code, said.as_str()), (0, "given\n"));
        let (status, said, _) = ends(case, &pod, &read("modules/text.wasm")).await?;
        assert_eq!((status.exit_code, said.as_str()), (0, "no module\n"));
        let (status, said, _) = ends(case, &pod, &read("etc/hosts")).await?;
        ensure!(status.exit_code == 0 && said.contains("localhost"), "{} {said:?}", status.exit_code);

        for hidden in ["proc/self/mem", "proc/1/root/etc/shadow", "sys/kernel/mm", "dev/null", "dev/wasm/modules/text.wasm"] {
            let (status, said, _) = ends(case, &pod, &module("read.wat", [hidden])).await?;
            ensure!(status.exit_code == NOENT, "{hidden}: {} {said:?}", status.exit_code);
        }
        for way in ["../etc/shadow", "data/../../etc/shadow", "/etc/shadow", "data/link", "data/climb"] {
            let (status, said, _) = ends(case, &pod, &module("read.wat", [way]).mount(&scratch.join(""), "/data")).await?;
            ensure!([NOENT, NOTCAPABLE, PERM].contains(&status.exit_code), "{way}: {} {said:?}", status.exit_code);
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_module_holds_nothing_of_what_made_its_container() {
    on_node(async |case| {
        let pod = pod(case, "descriptors").await?;
        let container = running(case, &pod, &ContainerSpec::new("hello", MODULES)).await?;
        let mut open = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", container.pid().await?))? {
            open.push(fs::read_link(entry?.path())?.to_string_lossy().into_owned());
        }
        let expected = |target: &String| {
            let ends = ["-stdout", "-stderr", "/dev/null", "/dev/wasm", "/modules/hello.wat", "/dev/urandom"];
            let own = target.starts_with("anon_inode:") || target.starts_with("/memfd:wasm-memory-image");
            own || ends.iter().any(|end| target.ends_with(end))
        };
        // The event loop watches for signals through a pair of sockets of its own.
        let sockets = open.iter().filter(|target| target.starts_with("socket:")).count();
        let others: Vec<_> = open.iter().filter(|target| !expected(target) && !target.starts_with("socket:")).collect();
        ensure!(others.is_empty() && sockets <= 3, "open: {open:?}");
        container.stop(10).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_module_writes_where_it_may() {
    on_node(async |case| {
        let pod = pod(case, "writes").await?;
        let scratch = Scratch::new()?;
        let write =
            |path: &'static str| module("write.wat", [path]).mount(&scratch.join(""), "/data").mount_read_only(&scratch.join(""), "/fixed");
        let (status, ..) = ends(case, &pod, &write("data/new")).await?;
        assert_eq!(status.exit_code, 0);
        assert_eq!(fs::read_to_string(scratch.path().join("new"))?, "/modules/write.wat");
        // Wasmtime's WASI 0.2, which its preview 1 is built on, has no name for the kernel's refusal.
        let read_only = |code: i32| {
            ensure!([IO, ROFS].contains(&code), "exit code {code}");
            Ok(())
        };
        let (status, ..) = ends(case, &pod, &write("fixed/other")).await?;
        read_only(status.exit_code)?;
        let (status, ..) = ends(case, &pod, &write("tmp/own")).await?;
        assert_eq!(status.exit_code, 0);
        let (status, ..) = ends(case, &pod, &write("tmp/own").read_only_rootfs()).await?;
        read_only(status.exit_code)?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn native_programs_run_beside_modules_and_in_their_containers() {
    on_node(async |case| {
        let pod = pod(case, "sidecar").await?;
        let wasm = running(case, &pod, &ContainerSpec::new("wasm", WITH_TOOLS)).await?;
        assert_eq!(case.output(&pod, &ContainerSpec::new("native", BUSYBOX).shell("echo native")).await?, "native\n");
        assert_eq!(wasm.exec(["echo", "inside"]).await?.stdout, "inside\n");
        let bare = running(case, &pod, &ContainerSpec::new("bare", MODULES)).await?;
        let refused = bare.exec(["sh", "-c", "true"]).await.map(|output| format!("{output:?}"));
        let message = refused.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(message.contains("\"sh\"") && message.contains("Wasm module"), "the refusal says {message:?}");
        wasm.stop(10).await?;
        bare.stop(10).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn kinds_run_side_by_side() {
    on_node(async |case| {
        let mut pods = Vec::new();
        for handler in ["magnetar-runc", WASMTIME, "magnetar-runc", WASMTIME] {
            pods.push(case.node().run_pod(&PodSpec::new(&format!("kind-{}", pods.len()), handler).own_pid()).await?);
        }
        for pod in &pods {
            assert_eq!(case.output(pod, &ContainerSpec::new("native", BUSYBOX).shell("echo native")).await?, "native\n");
        }
        for pod in [&pods[1], &pods[3]] {
            let (status, ..) = ends(case, pod, &module("exit.wat", [])).await?;
            assert_eq!(status.exit_code, 7);
        }
        for pod in pods {
            pod.remove().await?;
        }
        Ok(())
    });
}
