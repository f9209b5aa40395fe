// SPDX-License-Identifier: Apache-2.0
//! magnetar-wasm: the sandbox process of a pod whose containers run WebAssembly modules, and native
//! programs beside them.
//!
//! ```text
//!   this process ── in the pod's namespaces, as magnetar-runc is; holds no engine
//!    └── containers  made by magnetar-wasmtime or magnetar-wasmedge, which then becomes the container's process 1;
//!                    where a module was never compiled, by magnetar-wasmtime-compiler
//!    └── llama-server, for a container that has loaded a language model
//! ```
//!
//! Deliberately absent: an engine. Only the process that runs a module has one.

use magnetar_core::config::RuntimeConfig;
use magnetar_core::error::{Context, Error, Result};
use magnetar_core::host_pod::HostPod;
use magnetar_core::runtime::libcontainer::{Images, Libcontainer};
use magnetar_core::server;
use magnetar_core::task::Containers;
use magnetar_wasm::nn::service::ModelEngines;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    server::main("magnetar-wasm", |inherited| {
        inherited.serve(|dir, record, parts| {
            record.config.refuse_vm()?;
            let (engine, compiler) = programs(&record.config.runtime)?;
            let images = Images { address: record.config.containerd.address.clone(), namespace: record.namespace.to_string() };
            let runtime = Libcontainer::new(&record.config.runtime, dir, parts.reaper.clone(), beside_this(engine)?)?;
            let runtime = runtime.with_companions(Box::new(ModelEngines::new(dir, parts, record.config.runtime.llama_server.clone())));
            let argument = record.config.runtime.interpret.then_some(magnetar_wasm::INTERPRET);
            let runtime = runtime.with_helper(&beside_this(MAKER)?)?.with_images(images).with_argument(argument);
            let runtime = match compiler {
                Some(compiler) => runtime.with_other(&beside_this(compiler)?)?,
                None => runtime,
            };
            let containers = Containers::new(runtime, dir.clone(), parts);
            Ok((HostPod::new(dir.clone(), record, containers.clone(), parts.reaper.clone()), containers))
        })
    })
}

/// The program that does what needs no engine. It is smaller than those that have one.
const MAKER: &str = "magnetar-maker";

/// The program of the engine that `runtime.name` names; and the same engine with its compiler, for
/// containers whose module was never compiled. WasmEdge's compiler is a library, which is loaded
/// where it is needed.
fn programs(config: &RuntimeConfig) -> Result<(&'static str, Option<&'static str>)> {
    match config.name.as_str() {
        "auto" | "wasmtime" => Ok(("magnetar-wasmtime", Some("magnetar-wasmtime-compiler"))),
        "wasmedge" => Ok(("magnetar-wasmedge", None)),
        other => Err(Error::invalid(format!("runtime.name = {other:?} is no Wasm engine: \"wasmtime\" and \"wasmedge\" are"))),
    }
}

/// The path of a program in the folder of this one.
fn beside_this(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context(|| "cannot find this program".into())?;
    let program = own.with_file_name(name);
    if !program.exists() {
        return Err(Error::precondition(format!("a program that Wasm pods need is not installed: there is no {}", program.display())));
    }
    Ok(program)
}
