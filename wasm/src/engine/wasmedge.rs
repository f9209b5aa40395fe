// SPDX-License-Identifier: Apache-2.0
//! WasmEdge: core modules with WASI preview 1 and WasmEdge's own sockets.
//!
//! Its library need not be installed on nodes where no pod uses this engine. Only the process that
//! runs a module loads it, because it loads LLVM as well.

use super::format::{self, PREVIEW1, binary, is_component};
use super::{COMMAND, End, Engine};
use crate::guest::Guest;
use crate::payload::{Format, Module};
use crate::program::{self, GUEST_ROOT};
use magnetar_core::error::{Context, Error, Result};
use magnetar_sys::{abort, library};
use rustix::process::{Resource, Rlimit};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use wasmedge_sdk::config::{CommonConfigOptions, Config, ConfigBuilder, RuntimeConfigOptions};
use wasmedge_sdk::error::{CoreError, WasmEdgeError};
use wasmedge_sdk::wasi::WasiModule;
use wasmedge_sdk::{AsInstance, ExternalInstanceType, Instance, LogManager, Store, Vm};

/// The library's file name, with the version of its C interface since WasmEdge 0.15.
const LIBRARY: &str = "libwasmedge.so.0";

/// A function that version 0.17 has and earlier ones lack.
const NEWEST: &str = "WasmEdge_ConfigureSetRunMode";

/// The unit of linear memory, in bytes (the WebAssembly specification, memory instances).
const PAGE: u64 = 64 << 10;

/// How much memory the engine may have beside a module's if the container has no limit, in bytes.
/// Its interpreter does not limit the call stack, so endless recursion would take all memory of the
/// host.
const UNLIMITED: u64 = 5 << 30;

/// The exit code as after abort(3).
const ABORTED: i32 = 134;

/// The engine.
#[derive(Debug, Clone, Copy)]
pub struct WasmEdge;

impl Engine for WasmEdge {
    const NAME: &'static str = "wasmedge";

    const TRAPPED: u8 = 1;

    fn load() -> Result<()> {
        library::load(LIBRARY, NEWEST)
            .map_err(|error| Error::precondition(format!("WasmEdge 0.17 is not installed on this node, or does not work: {error}")))
    }

    fn compatibility() -> Result<Option<String>> {
        Ok(None)
    }

    fn run(module: &Module, guest: &Guest) -> End {
        execute(module, guest).unwrap_or_else(|end| end)
    }
}

fn execute(module: &Module, guest: &Guest) -> std::result::Result<End, End> {
    if module.format() == Format::Precompiled {
        return Err(End::Refused("it is code that Wasmtime has compiled, for that engine alone".into()));
    }
    // The log would go to the module's standard output.
    LogManager::log_off();
    bound_memory(module, guest).map_err(|error| End::Refused(error.to_string()))?;
    let bytes = module.read(guest.memory).map_err(|error| End::Refused(error.to_string()))?;
    let binary = binary(module, &bytes).map_err(End::Refused)?;
    if is_component(&binary) {
        return Err(End::Refused("it is a component, and this engine runs core modules only".into()));
    }
    let config = config(guest).map_err(refused)?;
    let core = wasmedge_sdk::Module::from_bytes(Some(&config), &binary).map_err(refused)?;
    drop(binary);
    drop(bytes);
    let name = module.function().unwrap_or(COMMAND);
    check_function(&core, name)?;
    let mut wasi = surroundings(guest)?;
    check_imports(&core, wasi.as_ref())?;
    {
        let instances: HashMap<String, &mut Instance> = HashMap::from([(PREVIEW1.into(), wasi.as_mut())]);
        let mut vm = Vm::new(Store::new(Some(&config), instances).map_err(refused)?);
        vm.register_module(None, core).map_err(ended)?;
        vm.run_func(None, name, []).map_err(ended)?;
    }
    // The kernel truncates larger exit codes as well.
    Ok(End::Exited(wasi.exit_code() as u8))
}

/// Makes the engine run out of memory before the container does, so that it can report that, before
/// the kernel kills it. The limit is on data memory (RLIMIT_DATA), beyond what the process has now.
fn bound_memory(module: &Module, guest: &Guest) -> Result<()> {
    let what = || "cannot bound the engine's memory".to_string();
    let sizes = std::fs::read_to_string("/proc/self/statm").context(what)?;
    // Data and stack, in pages (proc_pid_statm(5)).
    let now: u64 = sizes.split(' ').nth(5).and_then(|pages| pages.parse().ok()).ok_or_else(|| Error::internal(what()))?;
    let limit = now * rustix::param::page_size() as u64 + guest.memory.unwrap_or(UNLIMITED);
    // The container may have a lower limit already.
    let before = rustix::process::getrlimit(Resource::Data);
    let limit = [before.current, before.maximum].into_iter().flatten().fold(limit, u64::min);
    let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
    rustix::process::setrlimit(Resource::Data, limit).context(what)?;
    let text =
        program::last_words::<WasmEdge>(module, "the engine has given up, as it does out of memory, which calls without end take too");
    let log = program::termination_log().map(OwnedFd::from).into_iter().collect();
    abort::explain(text, log, ABORTED).context(what)
}

fn config(guest: &Guest) -> wasmedge_sdk::WasmEdgeResult<Config> {
    let mut runtime = RuntimeConfigOptions::default();
    if let Some(pages) = guest.memory.and_then(|limit| u32::try_from(limit / PAGE).ok()) {
        runtime = runtime.max_memory_pages(pages.max(1));
    }
    ConfigBuilder::new(CommonConfigOptions::default()).with_runtime_config(runtime).build()
}

/// The module's environment: that of the container.
fn surroundings(guest: &Guest) -> std::result::Result<WasiModule, End> {
    let env: Vec<String> = guest.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let root = format!("/:{GUEST_ROOT}");
    // The library's crate cannot handle zero bytes.
    if guest.args.iter().chain(&env).any(|text| text.contains('\0')) {
        return Err(End::Refused("an argument or a variable of its environment has a zero byte".into()));
    }
    let args = guest.args.iter().map(String::as_str).collect();
    let env = env.iter().map(String::as_str).collect();
    WasiModule::create(Some(args), Some(env), Some(vec![&root])).map_err(refused)
}

fn check_function(core: &wasmedge_sdk::Module, name: &str) -> std::result::Result<(), End> {
    match core.get_export(name) {
        Some(ExternalInstanceType::Func(kind)) if kind.args_len() == 0 => Ok(()),
        Some(ExternalInstanceType::Func(_)) => Err(End::Refused(format::with_parameters(name))),
        _ => Err(End::Refused(format::no_function(name))),
    }
}

/// Checks the imports, because the engine's own message does not name the missing ones.
fn check_imports(core: &wasmedge_sdk::Module, wasi: &Instance) -> std::result::Result<(), End> {
    let imports: Vec<_> = core.imports().iter().map(|import| (import.name().to_string(), import.module_name().to_string())).collect();
    let missing = imports.iter().filter(|(name, module)| module != PREVIEW1 || wasi.get_func(name).is_err());
    match format::unknown_imports(missing.map(|(name, module)| (name.as_str(), module.as_str()))) {
        Some(unknown) => Err(End::Refused(unknown)),
        None => Ok(()),
    }
}

fn refused(error: Box<WasmEdgeError>) -> End {
    End::Refused(error.to_string())
}

/// How the module was stopped while it ran, or while it was instantiated, which runs its start
/// function.
fn ended(error: Box<WasmEdgeError>) -> End {
    match &*error {
        WasmEdgeError::Core(CoreError::Execution(error)) => End::Trapped(error.to_string()),
        _ => refused(error),
    }
}
