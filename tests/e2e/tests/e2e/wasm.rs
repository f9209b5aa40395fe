// SPDX-License-Identifier: Apache-2.0
//! Wasm modules as containers. These tests have a handler of their own, whichever one the others
//! are run with.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use magnetar_cri::{Container, ContainerSpec, Pod, PodSpec};
use magnetar_e2e::{BUSYBOX, Case, Scratch, eventually, on_node, refused, taken_over::TakenOver};
use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use super::engine::{Engine, MODULES, ends, module, on_each_engine, pod, running};

/// The modules beside busybox.
const WITH_TOOLS: &str = "localhost/magnetar/wasm-tools:1";

/// Numbers of errors in WASI preview 1 (`errno`).
const IO: i32 = 29;
const NOENT: i32 = 44;
const ROFS: i32 = 69;
const NOTCAPABLE: i32 = 76;
const PERM: i32 = 63;

on_each_engine! {
    a_component_runs_where_the_engine_supports_components,
    a_module_runs_and_writes_its_output_and_is_stopped,
    a_module_in_a_busy_loop_ends_by_sigterm,
    a_module_gets_its_arguments_and_environment_and_returns_its_exit_code,
    a_function_can_be_called_by_its_name,
    a_failing_module_ends_only_its_container_and_its_log_has_the_cause,
    a_module_with_100000_functions_runs,
    the_cause_of_a_trap_is_in_the_termination_message,
    a_module_over_its_memory_limit_gets_an_error_before_the_kernel_kills_it,
    a_module_sees_only_its_image_and_its_volumes,
    a_volume_with_the_kernels_proc_is_refused_for_a_module,
    a_module_holds_no_descriptors_from_the_creation_of_its_container,
    no_process_of_the_container_can_access_the_engine,
    a_large_module_runs_or_ends_with_an_out_of_memory_error,
    a_busy_module_stays_within_its_cpu_quota,
    a_module_connects_to_its_pods_network,
    an_artifact_is_run_as_a_module,
    a_module_has_the_credentials_that_a_native_program_would_have,
    a_module_that_escapes_its_engine_is_under_the_containers_seccomp_filter,
    a_module_writes_only_to_writable_folders,
    native_programs_run_beside_modules_and_in_their_containers,
    modules_are_executed_in_a_modules_container,
    an_executed_module_has_the_rights_of_an_executed_native_program,
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

async fn a_module_runs_and_writes_its_output_and_is_stopped(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "hello").await?;
    let container = running(case, &pod, &ContainerSpec::new("hello", MODULES)).await?;
    assert_eq!(container.log()?.stdout(), "hello from WebAssembly\n");
    let used = container.stats().await?.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |bytes| bytes.value);
    ensure!(used > 0, "no memory is counted");
    container.stop(10).await?;
    assert_eq!(container.status().await?.exit_code, 143);
    Ok(pod.remove().await?)
}

async fn a_module_in_a_busy_loop_ends_by_sigterm(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "spin").await?;
    let container = running(case, &pod, &module("spin.wat", [])).await?;
    // No grace is needed: it ends by SIGTERM.
    container.stop(60).await?;
    assert_eq!(container.status().await?.exit_code, 143);
    Ok(pod.remove().await?)
}

async fn a_module_gets_its_arguments_and_environment_and_returns_its_exit_code(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "surroundings").await?;
    let spec = module("surroundings.wat", ["one", "two words"]).env("COLOUR", "blue=green");
    let (status, said, _) = ends(case, &pod, &spec).await?;
    assert_eq!(status.exit_code, 0);
    ensure!(said.starts_with("/modules/surroundings.wat\0one\0two words\0"), "{said:?}");
    ensure!(said.contains("\0COLOUR=blue=green\0"), "{said:?}");
    fails(case, &pod, "exit.wat", [], 7, &[]).await?;
    Ok(pod.remove().await?)
}

async fn a_function_can_be_called_by_its_name(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "function").await?;
    let (status, said, _) = ends(case, &pod, &module("library.wat#greet", [])).await?;
    assert_eq!((status.exit_code, said.as_str()), (0, "called by name\n"));
    fails(case, &pod, "library.wat#nonesuch", [], 1, &["nonesuch"]).await?;
    fails(case, &pod, "library.wat#add", [], 1, &["add", "parameters"]).await?;
    Ok(pod.remove().await?)
}

async fn a_component_runs_where_the_engine_supports_components(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "component").await?;
    match engine {
        Engine::Wasmtime => {
            fails(case, &pod, "component.wat", [], 0, &[]).await?;
            fails(case, &pod, "component-fails.wat", [], 1, &[]).await?;
            fails(case, &pod, "component-exits.wat", [], 200, &[]).await?;
            fails(case, &pod, "component3.wat", [], 0, &[]).await?;
        }
        Engine::WasmEdge => fails(case, &pod, "component.wat", [], 1, &["component", "core modules only"]).await?,
    }
    Ok(pod.remove().await?)
}

async fn a_failing_module_ends_only_its_container_and_its_log_has_the_cause(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "wrong").await?;
    let neighbour = running(case, &pod, &ContainerSpec::new("neighbour", MODULES)).await?;
    let trapped = engine.trapped();
    let expected: [(&str, i32, &[&str]); 9] = [
        ("unreachable.wat", trapped, &["unreachable"]),
        ("overflow.wat", trapped, &["overflow.wat", "call stack exhausted"]),
        ("invalid.wasm", 1, &["invalid.wasm", "section"]),
        ("truncated.wasm", 1, &["truncated.wasm", "unexpected end"]),
        ("text.wasm", 1, &["text.wasm", "not a WebAssembly module"]),
        ("start.wat", trapped, &["start.wat", "unreachable"]),
        ("threads.wat", 1, &["threads.wat", "no engine here runs threads"]),
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
}

async fn a_module_with_100000_functions_runs(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "functions").await?;
    let scratch = Scratch::new()?;
    let functions = "(func (param i32) (result i32) local.get 0 i32.const 2 i32.mul)".repeat(100_000);
    fs::write(
        scratch.path().join("many.wat"),
        format!("(module {functions} (func (export \"_start\") (drop (call 99999 (i32.const 1)))))"),
    )?;
    let spec = ContainerSpec::new("many", MODULES).command(["/data/many.wat"]).mount_read_only(&scratch.join(""), "/data");
    let container = pod.run(&spec).await?;
    let status = container.exited(case.within(60)).await?;
    assert_eq!(status.exit_code, 0, "{}", case.whole_log(&container).await?.stderr());
    Ok(pod.remove().await?)
}

async fn the_cause_of_a_trap_is_in_the_termination_message(case: &Case, engine: Engine) -> Result<()> {
    let scratch = Scratch::new()?;
    let file = scratch.path().join("termination-log");
    fs::write(&file, "")?;
    let pod = pod(case, engine, "termination").await?;
    let spec = module("unreachable.wat", []).mount(&scratch.join("termination-log"), "/dev/termination-log");
    ends(case, &pod, &spec).await?;
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains("unreachable"), "{text:?}");
    Ok(pod.remove().await?)
}

async fn a_module_over_its_memory_limit_gets_an_error_before_the_kernel_kills_it(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "greedy").await?;
    let (status, _, said) = ends(case, &pod, &module("grow.wat", []).memory(96 << 20)).await?;
    ensure!(status.reason != "OOMKilled", "the kernel was first");
    assert_eq!(status.exit_code, engine.trapped(), "{said}");
    // WasmEdge refuses the memory, and the module itself gives up.
    ensure!(said.contains(if engine == Engine::Wasmtime { "out of memory" } else { "unreachable" }), "{said:?}");
    Ok(pod.remove().await?)
}

async fn a_module_sees_only_its_image_and_its_volumes(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "files").await?;
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

    for hidden in ["proc/self/mem", "proc/1/environ", "sys/kernel/mm", "dev/null", "dev/wasm/modules/text.wasm"] {
        let (status, said, _) = ends(case, &pod, &module("read.wat", [hidden])).await?;
        ensure!(status.exit_code == NOENT, "{hidden}: {} {said:?}", status.exit_code);
    }
    for way in ["../etc/shadow", "data/../../etc/shadow", "/etc/shadow", "data/link", "data/climb"] {
        let (status, said, _) = ends(case, &pod, &module("read.wat", [way]).mount(&scratch.join(""), "/data")).await?;
        ensure!([NOENT, NOTCAPABLE, PERM].contains(&status.exit_code), "{way}: {} {said:?}", status.exit_code);
    }
    Ok(pod.remove().await?)
}

/// By `/proc/self/mem` it could write to its engine's memory.
async fn a_volume_with_the_kernels_proc_is_refused_for_a_module(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "proc").await?;
    refused(pod.run(&module("read.wat", ["host/self/mem"]).mount("/proc", "/host")).await, &["/host", "the kernel's /proc"])?;
    let scratch = Scratch::new()?;
    let below = scratch.path().join("below");
    fs::create_dir(&below)?;
    mount(Some("proc"), &below, Some("proc"), MsFlags::empty(), None::<&str>)?;
    let ended = ends(case, &pod, &module("read.wat", ["host/below/self/mem"]).mount(&scratch.join(""), "/host")).await;
    umount2(&below, MntFlags::MNT_DETACH)?;
    let (status, _, said) = ended?;
    ensure!(status.exit_code != 0 && said.contains("/host/below is or has the kernel's /proc"), "{}: {said:?}", status.exit_code);
    Ok(pod.remove().await?)
}

async fn a_module_holds_no_descriptors_from_the_creation_of_its_container(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "descriptors").await?;
    let container = running(case, &pod, &ContainerSpec::new("hello", MODULES)).await?;
    let events = match engine {
        // Of the event loop.
        Engine::Wasmtime => ["anon_inode:[eventpoll]", "anon_inode:[eventfd]"],
        // Waiting for a clock is done with these.
        Engine::WasmEdge => ["anon_inode:[eventpoll]", "anon_inode:[timerfd]"],
    };
    let ends = ["-stdout", "-stderr", "/dev/null", "/dev/wasm", "/dev/urandom"];
    for entry in fs::read_dir(format!("/proc/{}/fd", container.pid().await?))? {
        let path = entry?.path();
        let target = fs::read_link(&path)?.to_string_lossy().into_owned();
        let expected = match target.as_str() {
            // The module, and the code of the cache, on mounts that are nowhere. A folder would be
            // the host's.
            "/" => fs::metadata(&path)?.is_file(),
            // WasmEdge's standard input, if there is none, can be waited for.
            other if engine == Engine::WasmEdge && path.ends_with("0") => other.starts_with("pipe:"),
            other => {
                other.starts_with("/memfd:wasm-memory-image") || events.contains(&other) || ends.iter().any(|end| other.ends_with(end))
            }
        };
        ensure!(expected, "{target} is open");
    }
    container.stop(10).await?;
    Ok(pod.remove().await?)
}

async fn no_process_of_the_container_can_access_the_engine(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "apart").await?;
    let container = running(case, &pod, &ContainerSpec::new("hello", WITH_TOOLS)).await?;
    for attempt in ["cat < /proc/1/fd/3", "head -c1 /proc/1/environ", "head -c1 /proc/1/maps", "echo > /proc/1/mem"] {
        let output = container.exec(["sh", "-c", attempt]).await?;
        ensure!(output.code != 0 && output.stderr.contains("ermission denied"), "{attempt}: {output:?}");
    }
    // What it has open cannot be written to, even by the host's root.
    let mut files = 0;
    for entry in fs::read_dir(format!("/proc/{}/fd", container.pid().await?))? {
        let path = entry?.path();
        // An instance's memory is the process's own.
        let memory = fs::read_link(&path)?.starts_with("/memfd:wasm-memory-image");
        if !memory && fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            let error = fs::OpenOptions::new().write(true).open(&path).err();
            ensure!(error.as_ref().is_some_and(|error| error.kind() == ErrorKind::ReadOnlyFilesystem), "{path:?}: {error:?}");
            files += 1;
        }
    }
    ensure!(files > 0, "the module is not open");
    container.stop(10).await?;
    Ok(pod.remove().await?)
}

/// A module of 100 MiB: all of it the contents of its memory.
fn large_module() -> Vec<u8> {
    const SIZE: u32 = 100 << 20;
    let number = |mut number: u32| {
        let mut bytes = Vec::new();
        while number > 127 {
            bytes.push(number as u8 | 128);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let section = |id: u8, content: &[u8]| [&[id], &*number(content.len() as u32), content].concat();
    let memory = [&[1, 0], &*number(SIZE / 65536)].concat();
    let data = [&[1, 0, 0x41, 0, 0x0b], &*number(SIZE), &vec![1; SIZE as usize]].concat();
    [
        b"\0asm\x01\0\0\0".to_vec(),
        // One function without parameters, exported as _start, whose code is its end.
        section(1, b"\x01\x60\0\0"),
        section(3, b"\x01\0"),
        section(5, &memory),
        section(7, b"\x01\x06_start\0\0"),
        section(10, b"\x01\x02\0\x0b"),
        section(11, &data),
    ]
    .concat()
}

async fn a_large_module_runs_or_ends_with_an_out_of_memory_error(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "large").await?;
    let scratch = Scratch::new()?;
    fs::write(scratch.path().join("large.wasm"), large_module())?;
    let spec = |name: &str| ContainerSpec::new(name, MODULES).command(["/data/large.wasm"]).mount_read_only(&scratch.join(""), "/data");
    let (status, _, said) = ends(case, &pod, &spec("large")).await?;
    assert_eq!(status.exit_code, 0, "{said}");
    let (status, _, said) = ends(case, &pod, &spec("limited").memory(64 << 20)).await?;
    // Where its code was kept, it is only its memory that there is no room for.
    ensure!([1, engine.trapped()].contains(&status.exit_code) && status.reason == "Error", "{status:?} {said}");
    ensure!(said.contains("large.wasm: out of memory: it "), "{said:?}");
    Ok(pod.remove().await?)
}

async fn a_busy_module_stays_within_its_cpu_quota(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "quota").await?;
    let limited = module("spin.wat", []).resources(|limits| {
        limits.cpu_period = 100_000;
        limits.cpu_quota = 20_000;
    });
    let begin = Instant::now();
    let container = pod.run(&limited).await?;
    let mut used = 0;
    eventually("half a second of processor time", case.within(30), async || {
        used = container.stats().await?.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |nanoseconds| nanoseconds.value);
        Ok((used >= 500_000_000).then_some(()))
    })
    .await?;
    // A fifth of a processor, and what it had at once in the first period.
    let most = begin.elapsed().as_nanos() / 5 + 100_000_000;
    ensure!(u128::from(used) <= most, "{used} ns of processor time in {:?}", begin.elapsed());
    container.stop(10).await?;
    Ok(pod.remove().await?)
}

async fn a_module_connects_to_its_pods_network(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "sockets").await?;
    let server =
        pod.run(&ContainerSpec::new("server", BUSYBOX).shell("while :; do echo hello from the sidecar | nc -l -p 9000; done")).await?;
    let listens = "for i in $(seq 100); do netstat -ltn | grep -q :9000 && exit 0; sleep 0.1; done; exit 1";
    // A component, and a core module with WasmEdge's sockets.
    let names: &[&str] = match engine {
        Engine::Wasmtime => &["connect.wat", "connect-wasmedge.wat"],
        Engine::WasmEdge => &["connect-wasmedge.wat"],
    };
    for name in names {
        // The server listens anew for each client.
        assert_eq!(server.exec(["sh", "-c", listens]).await?.code, 0);
        let (status, said, errors) = ends(case, &pod, &module(name, [])).await?;
        assert_eq!((status.exit_code, said.as_str()), (0, "hello from the sidecar\n"), "{name}: {errors}");
    }
    Ok(pod.remove().await?)
}

async fn an_artifact_is_run_as_a_module(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "artifact").await?;
    let image = "localhost/magnetar/wasm-artifact-image:1";
    let own = ContainerSpec::new("own-command", image);
    let given = ContainerSpec::new("given-command", "localhost/magnetar/wasm-artifact:1").command(["/hello.wasm"]);
    for spec in [own, given] {
        let (status, said, errors) = ends(case, &pod, &spec).await?;
        assert_eq!((status.exit_code, said.as_str()), (0, "hello from an artifact\n"), "{errors}");
    }
    // Where the image is no artifact, all is as ever.
    let missing = pod.run(&ContainerSpec::new("missing", BUSYBOX).command(["/nonesuch.wasm"])).await;
    let message = missing.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(message.contains("cannot run \"/nonesuch.wasm\""), "{message:?}");
    Ok(pod.remove().await?)
}

/// What the kernel allows a container's process.
async fn allowed(case: &Case, pod: &Pod, spec: &ContainerSpec) -> Result<Vec<String>> {
    let container = running(case, pod, spec).await?;
    let allowed = rights(container.pid().await?)?;
    container.stop(0).await?;
    container.remove().await?;
    Ok(allowed)
}

/// What the kernel allows a process, from its `/proc/PID/status`.
fn rights(pid: i32) -> Result<Vec<String>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let names =
        ["Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:", "Seccomp_filters:"];
    Ok(status
        .lines()
        .filter(|line| names.iter().any(|name| line.starts_with(name)))
        .map(|line| line.trim_end().replace('\t', " "))
        .collect())
}

/// What a container is asked to have.
type Kind = fn(ContainerSpec) -> ContainerSpec;

/// There is no execve between the container's making and the module, which would have taken
/// capabilities away.
async fn a_module_has_the_credentials_that_a_native_program_would_have(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "credentials").await?;
    let kinds: [(&str, Kind); 8] = [
        ("root", |spec| spec),
        ("root-without", |spec| spec.capabilities(&[], &["ALL"])),
        ("user", |spec| spec.user(1000).group(1000).supplemental_groups(&[2000])),
        ("user-without", |spec| spec.user(1000).capabilities(&[], &["ALL"])),
        ("user-with-more", |spec| spec.user(1000).capabilities(&["NET_ADMIN"], &["CHOWN"])),
        ("no-new-privileges", |spec| spec.user(1000).no_new_privs()),
        ("seccomp", |spec| spec.user(1000).seccomp_default()),
        ("no-seccomp", |spec| spec.seccomp_unconfined()),
    ];
    let mut differences = Vec::new();
    for (name, kind) in kinds {
        let native =
            allowed(case, &pod, &kind(ContainerSpec::new(&format!("{name}-native"), BUSYBOX).shell("echo ready; sleep 1000"))).await?;
        let module = allowed(case, &pod, &kind(ContainerSpec::new(&format!("{name}-module"), MODULES))).await?;
        assert_eq!(native.len(), 11, "{native:?}");
        differences.extend(native.iter().zip(&module).filter(|(a, b)| a != b).map(|(a, b)| format!("{name}: native {a}, module {b}")));
    }
    ensure!(differences.is_empty(), "{differences:#?}");
    Ok(pod.remove().await?)
}

/// Whoever breaks out of the engine finds the container's seccomp filter.
async fn a_module_that_escapes_its_engine_is_under_the_containers_seccomp_filter(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "break-out").await?;
    for confined in [true, false] {
        let spec = ContainerSpec::new(if confined { "confined" } else { "unconfined" }, MODULES).user(1000);
        let container = running(case, &pod, &if confined { spec.seccomp_default() } else { spec.seccomp_unconfined() }).await?;
        // Keys are in no namespace, so containerd's default profile keeps them from containers.
        let asked = TakenOver::begin(container.pid().await?)?.call(libc::SYS_keyctl, [0; 6])?;
        ensure!((asked == Err(Errno::EPERM)) == confined, "confined: {confined}, and its keys: {asked:?}");
        container.stop(0).await?;
        container.remove().await?;
    }
    Ok(pod.remove().await?)
}

async fn a_module_writes_only_to_writable_folders(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "writes").await?;
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
}

async fn native_programs_run_beside_modules_and_in_their_containers(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "sidecar").await?;
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
}

/// As exec probes, lifecycle hooks and `kubectl exec` do.
async fn modules_are_executed_in_a_modules_container(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "exec").await?;
    let container = running(case, &pod, &ContainerSpec::new("own", MODULES).env("COLOUR", "blue")).await?;
    let output = container.exec(["/modules/surroundings.wat", "one", "two words"]).await?;
    ensure!(output.stdout.starts_with("/modules/surroundings.wat\0one\0two words\0"), "{output:?}");
    ensure!(output.stdout.contains("\0COLOUR=blue\0") && output.code == 0, "{output:?}");
    assert_eq!(container.exec(["/modules/exit.wat"]).await?.code, 7);
    assert_eq!(container.exec(["/modules/library.wat#greet"]).await?.stdout, "called by name\n");
    let trapped = container.exec(["/modules/unreachable.wat"]).await?;
    ensure!(trapped.code == engine.trapped() && trapped.stderr.contains("unreachable"), "{trapped:?}");
    // A probe that computes for ever.
    let late = container.exec_within(["/modules/spin.wat"], 1).await.map(|output| format!("{output:?}"));
    ensure!(late.as_ref().is_err_and(|error| error.to_string().contains("timeout 1s exceeded")), "{late:?}");
    let missing = container.exec(["/modules/nonesuch.wat"]).await.map(|output| format!("{output:?}"));
    ensure!(missing.as_ref().is_err_and(|error| error.to_string().contains("nonesuch.wat")), "{missing:?}");
    container.stop(10).await?;
    let status = container.status().await?;
    assert_eq!((status.exit_code, status.message.as_str()), (143, ""), "what is executed says nothing for its container");

    let native = running(case, &pod, &ContainerSpec::new("native", WITH_TOOLS).shell("echo ready; sleep 1000")).await?;
    let refused = native.exec(["/modules/hello.wat"]).await.map(|output| format!("{output:?}"));
    ensure!(refused.as_ref().is_err_and(|error| error.to_string().contains("only in containers of modules")), "{refused:?}");
    native.stop(0).await?;

    Ok(pod.remove().await?)
}

async fn an_executed_module_has_the_rights_of_an_executed_native_program(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "exec-rights").await?;
    let kinds: [(&str, Kind); 3] = [
        ("root", |spec| spec),
        ("user", |spec| spec.user(1000).group(1000).supplemental_groups(&[2000]).seccomp_default()),
        ("no-new-privileges", |spec| spec.user(1000).no_new_privs().capabilities(&["NET_ADMIN"], &["CHOWN"])),
    ];
    for (name, kind) in kinds {
        let container = running(case, &pod, &kind(ContainerSpec::new(name, WITH_TOOLS))).await?;
        let mut found = Vec::new();
        for (command, program) in [(["sleep", "1000"].as_slice(), "sleep"), (&["/modules/spin.wat"], "spin.wat")] {
            let _session = container.exec_stream(command.iter().copied(), false, false).await?;
            let pid = eventually("it runs in the container's cgroup", case.soon(), async || executed(&container, program)).await?;
            found.push(rights(pid)?);
        }
        assert_eq!(found[0], found[1], "{name}: native, and module");
        container.stop(0).await?;
        container.remove().await?;
    }
    Ok(pod.remove().await?)
}

/// A process with this name in the container's cgroup.
fn executed(container: &Container, name: &str) -> Result<Option<i32>> {
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|number| number.parse().ok()) else { continue };
        // It may have ended meanwhile.
        let is_named = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|is| is.trim_end() == name);
        if is_named && fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroup| cgroup.contains(container.id())) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

#[test]
fn pods_of_different_kinds_run_side_by_side() {
    on_node(async |case| {
        let handlers = ["magnetar-runc", Engine::Wasmtime.handler(), Engine::WasmEdge.handler()];
        let mut pods = Vec::new();
        for (number, handler) in handlers.into_iter().cycle().take(6).enumerate() {
            let pod = case.node().run_pod(&PodSpec::new(&format!("kind-{number}"), handler).own_pid()).await?;
            let native = pod.run(&ContainerSpec::new("native", BUSYBOX).shell("echo native; sleep 1000")).await?;
            let wasm = if handler == "magnetar-runc" { None } else { Some(pod.run(&ContainerSpec::new("hello", MODULES)).await?) };
            pods.push((pod, native, wasm));
        }
        for (_, native, wasm) in &pods {
            native.logged(case.soon(), |log| log.stdout() == "native\n").await?;
            if let Some(wasm) = wasm {
                wasm.logged(case.soon(), |log| log.stdout() == "hello from WebAssembly\n").await?;
            }
        }
        for (pod, ..) in pods {
            pod.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn a_trap_names_the_function_and_its_line() {
    on_node(async |case| {
        let pod = pod(case, Engine::Wasmtime, "trap").await?;
        // The second time from the cache.
        for _ in 0..2 {
            fails(case, &pod, "trap.wasm", [], 134, &["divide by zero", " - divide\n", "trap.c:5:"]).await?;
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_components_configuration_is_its_environment() {
    on_node(async |case| {
        let pod = pod(case, Engine::Wasmtime, "configuration").await?;
        for (colour, code) in [("red", 1), ("blue", 0)] {
            let (status, _, said) = ends(case, &pod, &module("component-config.wat", []).env("COLOUR", colour)).await?;
            assert_eq!((status.exit_code, said.as_str()), (code, ""), "{colour}");
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_module_of_webassembly_3_runs_with_wasmtime() {
    on_node(async |case| {
        let pod = pod(case, Engine::Wasmtime, "webassembly-3").await?;
        for name in ["gc.wat", "exceptions.wat"] {
            let (status, _, said) = ends(case, &pod, &module(name, [])).await?;
            assert_eq!((status.exit_code, said.as_str()), (7, ""), "{name}");
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_missing_libwasmedge_is_named_in_the_error_and_other_handlers_run() {
    on_node(async |case| {
        let library = library("libwasmedge.so.0")?;
        let pods = [pod(case, Engine::WasmEdge, "missing").await?, pod(case, Engine::Wasmtime, "there").await?];
        // The loader finds no library in it.
        mount(Some("/dev/null"), &library, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        let refused = pods[0].run(&module("exit.wat", [])).await;
        let native = case.output(&pods[0], &ContainerSpec::new("native", BUSYBOX).shell("echo native")).await;
        let other = ends(case, &pods[1], &module("exit.wat", [])).await;
        umount2(&library, MntFlags::empty())?;

        let message = refused.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(message.contains("WasmEdge 0.17 is not installed on this node") && message.contains("libwasmedge.so.0"), "{message:?}");
        assert_eq!(native?, "native\n");
        assert_eq!(other?.0.exit_code, 7);
        let (status, ..) = ends(case, &pods[0], &module("exit.wat", [])).await?;
        assert_eq!(status.exit_code, 7);
        for pod in pods {
            pod.remove().await?;
        }
        Ok(())
    });
}

/// Where the loader finds a library.
fn library(name: &str) -> Result<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];
    let found = folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is not installed"))
}
