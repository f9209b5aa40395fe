// SPDX-License-Identifier: Apache-2.0
//! Modules that nobody has written: wasm-smith makes them of random numbers. Whatever they do, they
//! end in their container, the engine does not crash, and what is wrong is in the container's log.

use std::{env, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use arbitrary::Unstructured;
use magnetar_cri::ContainerSpec;
use magnetar_e2e::{Case, Scratch};
use wasm_smith::{Config, Module};

use super::engine::{Engine, MODULES, on_each_engine, pod};

on_each_engine! { generated_modules_end_in_their_containers, }

/// What all of them may import, and the function that they export. Calls into the engine get random
/// arguments. There is no `proc_exit`: an exit code has a cause that somebody has to name.
const SHAPE: &str = r#"(module
    (import "wasi_snapshot_preview1" "args_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "clock_time_get" (func (param i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_readdir" (func (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_seek" (func (param i32 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_renumber" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open" (func (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_readlink" (func (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_filestat_get" (func (param i32 i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")))"#;

/// How many steps a module may take: some end by a trap that says so.
const STEPS: u32 = 100_000;

/// How many modules of each engine are run if `MAGNETAR_ROUNDS_GENERATED` does not say another
/// number. `MAGNETAR_ROUNDS_GENERATED_FIRST` is the first one.
const COUNT: u64 = 25;

/// The memory limit of each module's container, in bytes.
const MEMORY: i64 = 256 << 20;

/// The module of a number: always the same.
fn generated(engine: Engine, number: u64) -> Result<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(number);
    let mut bytes = vec![0; random.usize(256..16384)];
    random.fill(&mut bytes);
    let all = engine == Engine::Wasmtime;
    let config = Config {
        module_shape: Some(wat::parse_str(SHAPE)?),
        allow_start_export: true,
        // As far as the engine has them: what it has not, another test has it refuse.
        gc_enabled: all,
        reference_types_enabled: true,
        exceptions_enabled: all,
        tail_call_enabled: all,
        relaxed_simd_enabled: false,
        memory64_enabled: false,
        shared_everything_threads_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        extended_const_enabled: all,
        max_memories: if all { 3 } else { 1 },
        max_memory32_bytes: 64 << 20,
        max_table_elements: 10_000,
        memory_max_size_required: true,
        ..Config::default()
    };
    let mut module = Module::new(config, &mut Unstructured::new(&bytes)).context("there is no module of these bytes")?;
    module.ensure_termination(STEPS)?;
    Ok(module.to_bytes())
}

async fn generated_modules_end_in_their_containers(case: &Case, engine: Engine) -> Result<()> {
    let asked = |name: &str, otherwise: u64| env::var(name).map_or(Ok(otherwise), |text| text.parse());
    let (first, count) = (asked("MAGNETAR_ROUNDS_GENERATED_FIRST", 0)?, asked("MAGNETAR_ROUNDS_GENERATED", COUNT)?);
    let pod = pod(case, engine, "generated").await?;
    let scratch = Scratch::new()?;
    for number in first..first + count {
        let name = format!("{number}.wasm");
        fs::write(scratch.path().join(&name), generated(engine, number)?)?;
        let spec = ContainerSpec::new(&format!("generated-{number}"), MODULES).command([format!("/data/{name}")]).memory(MEMORY);
        let container = pod.run(&spec.mount_read_only(&scratch.join(""), "/data")).await?;
        let status = container.exited(case.within(60)).await.with_context(|| format!("module {number} of {engine:?}"))?;
        let said = case.whole_log(&container).await?.stderr();
        let is_expected = match status.exit_code {
            0 => true,
            // A line by the engine's program, which names the module.
            1 | 134 => said.contains(&name),
            _ => false,
        };
        ensure!(is_expected, "module {number} of {engine:?}: exit code {}, {:?}, {said:?}", status.exit_code, status.reason);
        container.remove().await?;
        fs::remove_file(scratch.path().join(&name))?;
    }
    // The pod has taken no harm.
    let native = case.output(&pod, &ContainerSpec::new("after", magnetar_e2e::BUSYBOX).shell("echo after")).await?;
    ensure!(native == "after\n", "{native:?}");
    ensure!(tokio::time::timeout(Duration::from_secs(60), pod.remove()).await?.is_ok(), "the pod cannot be removed");
    Ok(())
}
