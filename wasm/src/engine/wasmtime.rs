// SPDX-License-Identifier: Apache-2.0
//! Wasmtime: core modules with WASI preview 1, components with WASI 0.2 and 0.3.
//!
//! One thread runs a command and all its input and output. The engine's compiler uses more threads
//! while it compiles.

#[cfg(feature = "wasmtime-compiler")]
mod compile;
mod http;
mod limits;
mod logging;
mod models;
mod sockets;
mod world;

use super::format::{self, PREVIEW1};
use super::processor;
use super::{COMMAND, Effort, End, Engine, Failure};
use crate::guest::Guest;
use crate::logging::Misuse;
use crate::payload::{Format, Module};
use crate::program::GUEST_ROOT;
use limits::{Budget, Limits, OutOfMemory};
use magnetar_core::error::Result;
use magnetar_sys::compiled::{self, Compiled, Engines};
use sockets::Sockets;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use wasmtime::component::{Component, ResourceTable};
use wasmtime::{Config, Store, Trap, WasmBacktraceDetails};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi::{p2, p3};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};
use world::{Version, World};

/// The version of the engine, whose code no other version takes.
const VERSION: &str = "48.0.8";

/// Changes with how modules are compiled, which makes all code in the cache another engine's.
const FORMAT: u32 = 1;

/// The engine.
#[derive(Debug, Clone, Copy)]
pub struct Wasmtime;

/// The state of one running module.
pub struct State<W> {
    wasi: W,
    limits: Limits,
}

/// The WASI state of one running core module.
pub struct CoreWasi {
    preview1: WasiP1Ctx,
    sockets: Sockets,
}

/// The WASI state of one running component.
pub struct ComponentWasi {
    context: WasiCtx,
    config: WasiConfigVariables,
    http: WasiHttpCtx,
    table: ResourceTable,
}

impl ComponentWasi {
    fn new(context: WasiCtx, config: WasiConfigVariables) -> Self {
        Self { context, config, http: WasiHttpCtx::new(), table: ResourceTable::new() }
    }
}

impl WasiView for State<ComponentWasi> {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi.context, table: &mut self.wasi.table }
    }
}

impl WasiHttpView for State<ComponentWasi> {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.wasi.http, table: &mut self.wasi.table, hooks: Default::default() }
    }
}

impl Engine for Wasmtime {
    const NAME: &'static str = "wasmtime";

    // 128 plus the number of SIGABRT.
    const TRAPPED: u8 = 134;

    const COMPILES: bool = cfg!(feature = "wasmtime-compiler");

    fn load() -> Result<()> {
        Ok(())
    }

    fn compatibility() -> Result<String> {
        let mut hash = DefaultHasher::new();
        // Not the engine's own hash, which only a program with the compiler has.
        (VERSION, FORMAT, processor::abilities()?).hash(&mut hash);
        Ok(format!("wasmtime-{:016x}", hash.finish()))
    }

    #[cfg(feature = "wasmtime-compiler")]
    fn compile(module: &[u8], format: Format, effort: Effort, into: &mut File) -> std::result::Result<(), Failure> {
        compile::compile(module, format, effort, into)
    }

    #[cfg(not(feature = "wasmtime-compiler"))]
    fn compile(_: &[u8], _: Format, _: Effort, _: &mut File) -> std::result::Result<(), Failure> {
        Err(Failure::Failed("this program has no compiler".into()))
    }

    fn run(module: &Module, guest: &Guest) -> End {
        execute(module, guest).map_or_else(|error| ended(&error), End::Exited)
    }
}

/// The code to run.
enum Code {
    Core(wasmtime::Module),
    Component(Component),
}

fn execute(module: &Module, guest: &Guest) -> wasmtime::Result<u8> {
    match code(module, guest)? {
        Code::Core(core) => event_loop(false)?.block_on(run_core(&core, module, guest)),
        Code::Component(_) if module.function().is_some() => {
            Err(wasmtime::Error::msg("it is a component: functions of components cannot be called by name"))
        }
        Code::Component(component) => match World::of(&component)? {
            World::Command(version) => event_loop(false)?.block_on(run_component(&component, version, guest)),
            // HTTP requests are answered in parallel.
            World::Http(version) => event_loop(true)?.block_on(http::serve(&component, version, guest)).map(|()| 0),
        },
    }
}

/// After how many steps of its tasks a thread looks for input. Tokio's 61 would be 0.6 s where all
/// threads compute, each step as long as the engine lets code compute at a time.
const STEPS: u32 = 2;

/// What runs a module: one thread for a command, beside which nothing runs in this process, or one
/// for each processor if work is to be done in parallel.
fn event_loop(parallel: bool) -> wasmtime::Result<tokio::runtime::Runtime> {
    let mut event_loop = if parallel { tokio::runtime::Builder::new_multi_thread() } else { tokio::runtime::Builder::new_current_thread() };
    event_loop.event_interval(STEPS);
    event_loop.enable_all().build().map_err(|error| wasmtime::Error::msg(format!("cannot start the event loop: {error}")))
}

/// A module's code: precompiled, from the cache, or, in a program with the compiler, freshly
/// compiled.
fn code(module: &Module, guest: &Guest) -> wasmtime::Result<Code> {
    let engines = engines();
    let kept = module.take_cached().map(|found| found.code(None)).transpose();
    let kept = kept.map_err(|(Failure::Refused(why) | Failure::Failed(why))| wasmtime::Error::msg(why))?;
    let code = match kept {
        Some((kept, Effort::Full)) => compiled::from_cache(&engines, &kept),
        Some((draft, Effort::Draft)) => compiled::from_draft(&engines, &draft),
        None => None,
    };
    if let Some(code) = code {
        return Ok(code.into());
    }
    let bytes = module.read(guest.memory).map_err(wasmtime::Error::new)?;
    match module.format() {
        Format::Precompiled => return compiled::from_image(&engines, &bytes).map(Code::from),
        Format::Library => return Err(wasmtime::Error::msg("it is code that WasmEdge has compiled, for that engine alone")),
        Format::Binary | Format::Text => {}
    }
    #[cfg(feature = "wasmtime-compiler")]
    return compile::fresh(&engines, module.format(), &bytes);
    // Its digest was checked, so the file is what somebody has stored.
    #[cfg(not(feature = "wasmtime-compiler"))]
    Err(wasmtime::Error::msg(format!("this engine does not take its code in the cache of the node: empty {}", crate::cache::ROOT)))
}

fn engines() -> Engines {
    #[cfg(feature = "wasmtime-compiler")]
    let draft_settings = compile::draft_settings;
    // Without the compiler no container waits for a draft.
    #[cfg(not(feature = "wasmtime-compiler"))]
    let draft_settings = core_settings;
    Engines::new(core_settings, component_settings, draft_settings)
}

impl From<Compiled> for Code {
    fn from(compiled: Compiled) -> Self {
        match compiled {
            Compiled::Module(core) => Self::Core(core),
            Compiled::Component(component) => Self::Component(component),
        }
    }
}

fn core_settings() -> Config {
    let mut settings = Config::new();
    // Where a module says in which file and line its code is, a trap's message does, too.
    settings.wasm_backtrace_details(WasmBacktraceDetails::Enable);
    settings
}

/// A component may serve HTTP, where one request that computes without end must not stop others.
/// That costs its code a check in each loop.
fn component_settings() -> Config {
    let mut settings = core_settings();
    settings.wasm_component_model_async(true).epoch_interruption(true);
    settings
}

async fn run_core(core: &wasmtime::Module, module: &Module, guest: &Guest) -> wasmtime::Result<u8> {
    let engine = core.engine();
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut State<CoreWasi>| &mut state.wasi.preview1)?;
    // The engine's own function refuses codes above 125, which are any other for a container.
    linker.allow_shadowing(true);
    linker.func_wrap(PREVIEW1, "proc_exit", |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code).into()) })?;
    linker.allow_shadowing(false);
    models::add_to_linker(&mut linker, core, module)?;
    logging::add_to_linker(&mut linker, core)?;
    sockets::add_to_linker(&mut linker, core)?;
    let wasi = CoreWasi { preview1: command(guest)?.build_p1(), sockets: Sockets::default() };
    let mut store = store(engine, wasi, &Budget::new(guest.memory));
    let missing = core.imports().filter(|import| linker.get_by_import(&mut store, import).is_none());
    if let Some(unknown) = format::unknown_imports(missing.map(|import| (import.name(), import.module()))) {
        return Err(wasmtime::Error::msg(unknown));
    }
    let instance = linker.instantiate_async(&mut store, core).await?;
    let name = module.function().unwrap_or(COMMAND);
    let Some(function) = instance.get_func(&mut store, name) else {
        return Err(wasmtime::Error::msg(format::no_function(name)));
    };
    let mut results = vec![wasmtime::Val::I32(0); function.ty(&store).results().len()];
    if function.ty(&store).params().len() != 0 {
        return Err(wasmtime::Error::msg(format::with_parameters(name)));
    }
    function.call_async(&mut store, &[], &mut results).await?;
    Ok(0)
}

async fn run_component(component: &Component, version: Version, guest: &Guest) -> wasmtime::Result<u8> {
    let linker = linker(component)?;
    let mut store = component_store(component.engine(), command(guest)?, guest, &Budget::new(guest.memory));
    let result = match version {
        Version::V2 => {
            let command = p2::bindings::Command::instantiate_async(&mut store, component, &linker).await?;
            command.wasi_cli_run().call_run(&mut store).await?
        }
        Version::V3 => {
            let command = p3::bindings::Command::instantiate_async(&mut store, component, &linker).await?;
            store.run_concurrent(async move |store| command.wasi_cli_run().call_run(store).await).await??
        }
    };
    Ok(u8::from(result.is_err()))
}

/// All interfaces that a component can import.
fn linker(component: &Component) -> wasmtime::Result<wasmtime::component::Linker<State<ComponentWasi>>> {
    let engine = component.engine();
    let imports = component.component_type();
    let unknown = imports.imports(engine).map(|(name, _)| name).filter(|name| !format::is_known_interface(name));
    if let Some(unknown) = format::unknown_interfaces(unknown) {
        return Err(wasmtime::Error::msg(unknown));
    }
    let mut linker = wasmtime::component::Linker::new(engine);
    p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi_config::add_to_linker(&mut linker, |state: &mut State<ComponentWasi>| WasiConfig::from(&state.wasi.config))?;
    p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// A store for one instance. Its configuration (`wasi:config`) is the container's environment.
fn component_store(engine: &wasmtime::Engine, mut wasi: WasiCtxBuilder, guest: &Guest, budget: &Budget) -> Store<State<ComponentWasi>> {
    let config = WasiConfigVariables::from_iter(guest.env.iter().cloned());
    let mut store = store(engine, ComponentWasi::new(wasi.build(), config), budget);
    // Of an engine whose code is not interrupted, this has no effect.
    store.epoch_deadline_async_yield_and_update(1);
    store
}

fn store<W: Send + 'static>(engine: &wasmtime::Engine, wasi: W, budget: &Budget) -> Store<State<W>> {
    let mut store = Store::new(engine, State { wasi, limits: budget.limits() });
    store.limiter(|state| &mut state.limits);
    store
}

/// The module's environment: that of the container. Its root is the container's, with the volumes
/// mounted in it. Where that is read-only, the kernel refuses writes.
fn surroundings(guest: &Guest) -> wasmtime::Result<WasiCtxBuilder> {
    let mut wasi = WasiCtxBuilder::new();
    wasi.inherit_stdio().args(&guest.args).envs(&guest.env).initial_cwd(&guest.directory);
    // The pod's network namespace is the boundary.
    wasi.inherit_network().allow_ip_name_lookup(true).allow_tcp(true).allow_udp(true);
    wasi.preopened_dir(GUEST_ROOT, "/", FsPerms::ReadWrite)?;
    Ok(wasi)
}

/// The environment of a command, which has the thread for itself.
fn command(guest: &Guest) -> wasmtime::Result<WasiCtxBuilder> {
    let mut wasi = surroundings(guest)?;
    wasi.allow_blocking_current_thread(true);
    Ok(wasi)
}

fn ended(error: &wasmtime::Error) -> End {
    if let Some(I32Exit(code)) = error.downcast_ref() {
        // The kernel truncates larger exit codes as well.
        return End::Exited(*code as u8);
    }
    if error.downcast_ref::<Misuse>().is_some() {
        return End::Trapped(format!("{error:?}"));
    }
    if error.downcast_ref::<OutOfMemory>().is_some() {
        return End::Trapped(error.root_cause().to_string());
    }
    match error.downcast_ref::<Trap>() {
        // The debug format has the backtrace.
        Some(_) => End::Trapped(format!("{error:?}")),
        None => End::Refused(format!("{error:#}")),
    }
}
