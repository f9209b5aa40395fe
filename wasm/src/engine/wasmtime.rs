// SPDX-License-Identifier: Apache-2.0
//! Wasmtime: core modules with WASI preview 1, components with WASI 0.2.
//!
//! One thread runs a command and all its input and output. The engine's compiler uses more threads
//! while it compiles.

mod http;
mod limits;

use super::format::{self, PREVIEW1, binary, is_component};
use super::{COMMAND, End, Engine};
use crate::cache::Found;
use crate::guest::Guest;
use crate::payload::{Format, Module};
use crate::program::GUEST_ROOT;
use limits::{Budget, Limits, OutOfMemory};
use magnetar_core::error::{Error, Result};
use magnetar_sys::compiled::{self, Compiled};
use std::hash::{DefaultHasher, Hash, Hasher};
use wasmtime::component::{Component, ResourceTable};
use wasmtime::{Config, Store, Trap};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::bindings::Command;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// The engine.
#[derive(Debug, Clone, Copy)]
pub struct Wasmtime;

/// The state of one running module.
struct State<W> {
    wasi: W,
    limits: Limits,
}

/// The WASI state of one running component.
struct Preview2 {
    context: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
}

impl Preview2 {
    fn new(context: WasiCtx) -> Self {
        Self { context, http: WasiHttpCtx::new(), table: ResourceTable::new() }
    }
}

impl WasiView for State<Preview2> {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi.context, table: &mut self.wasi.table }
    }
}

impl WasiHttpView for State<Preview2> {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.wasi.http, table: &mut self.wasi.table, hooks: Default::default() }
    }
}

impl Engine for Wasmtime {
    const NAME: &'static str = "wasmtime";

    // 128 plus the number of SIGABRT.
    const TRAPPED: u8 = 134;

    fn load() -> Result<()> {
        Ok(())
    }

    fn compatibility() -> Result<Option<String>> {
        let engine = engine().map_err(|error| Error::precondition(format!("Wasmtime does not work on this host: {error:#}")))?;
        let mut hash = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hash);
        Ok(Some(format!("wasmtime-{:016x}", hash.finish())))
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
    let engine = engine()?;
    let code = code(&engine, module, guest)?;
    let answers = matches!(&code, Code::Component(component) if http::answers(&engine, component));
    // A command has one thread, and nothing else runs in this process. HTTP requests are answered
    // in parallel.
    let mut event_loop = if answers { tokio::runtime::Builder::new_multi_thread() } else { tokio::runtime::Builder::new_current_thread() };
    let event_loop =
        event_loop.enable_all().build().map_err(|error| wasmtime::Error::msg(format!("cannot start the event loop: {error}")))?;
    event_loop.block_on(async {
        match &code {
            Code::Core(core) => run_core(&engine, core, module, guest).await,
            Code::Component(_) if module.function().is_some() => {
                Err(wasmtime::Error::msg("it is a component: functions of components cannot be called by name"))
            }
            Code::Component(component) if answers => http::serve(&engine, component, guest).await.map(|never| match never {}),
            Code::Component(component) => run_component(&engine, component, guest).await,
        }
    })
}

/// A module's code: precompiled, from the cache, or freshly compiled and offered to the cache.
fn code(engine: &wasmtime::Engine, module: &Module, guest: &Guest) -> wasmtime::Result<Code> {
    let offer = match module.take_cached() {
        Some(Found::Code(kept)) => match compiled::from_cache(engine, &kept) {
            Some(code) => return Ok(code.into()),
            None => None,
        },
        Some(Found::Missing(offer)) => Some(offer),
        None => None,
    };
    let bytes = module.read(guest.memory).map_err(wasmtime::Error::new)?;
    if module.format() == Format::Precompiled {
        return compiled::from_image(engine, &bytes).map(Code::from);
    }
    let binary = binary(module, &bytes).map_err(wasmtime::Error::msg)?;
    let code = if is_component(&binary) {
        Component::new(engine, &binary).map(Code::Component)?
    } else {
        wasmtime::Module::new(engine, &binary).map(Code::Core)?
    };
    // If it fails, the next container compiles again. A container has nowhere to report it.
    let _kept = offer.map(|offer| code.serialize().map(|code| offer.deliver(&bytes, &code)));
    Ok(code)
}

impl From<Compiled> for Code {
    fn from(compiled: Compiled) -> Self {
        match compiled {
            Compiled::Module(core) => Self::Core(core),
            Compiled::Component(component) => Self::Component(component),
        }
    }
}

impl Code {
    fn serialize(&self) -> wasmtime::Result<Vec<u8>> {
        match self {
            Self::Core(core) => core.serialize(),
            Self::Component(component) => component.serialize(),
        }
    }
}

fn engine() -> wasmtime::Result<wasmtime::Engine> {
    wasmtime::Engine::new(&Config::new())
}

async fn run_core(engine: &wasmtime::Engine, core: &wasmtime::Module, module: &Module, guest: &Guest) -> wasmtime::Result<u8> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut State<WasiP1Ctx>| &mut state.wasi)?;
    // The engine's own function refuses codes above 125, which are any other for a container.
    linker.allow_shadowing(true);
    linker.func_wrap(PREVIEW1, "proc_exit", |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code).into()) })?;
    linker.allow_shadowing(false);
    let mut store = store(engine, command(guest)?.build_p1(), &Budget::new(guest.memory));
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

async fn run_component(engine: &wasmtime::Engine, component: &Component, guest: &Guest) -> wasmtime::Result<u8> {
    let mut linker = wasmtime::component::Linker::new(engine);
    add_interfaces(engine, component, &mut linker)?;
    let wasi = Preview2::new(command(guest)?.build());
    let mut store = store(engine, wasi, &Budget::new(guest.memory));
    let command = Command::instantiate_async(&mut store, component, &linker).await?;
    let result = command.wasi_cli_run().call_run(&mut store).await?;
    Ok(u8::from(result.is_err()))
}

/// Adds all interfaces that a component can import.
fn add_interfaces(
    engine: &wasmtime::Engine,
    component: &Component,
    linker: &mut wasmtime::component::Linker<State<Preview2>>,
) -> wasmtime::Result<()> {
    let imports = component.component_type();
    let unknown = imports.imports(engine).map(|(name, _)| name).filter(|name| !format::is_known_interface(name));
    if let Some(unknown) = format::unknown_interfaces(unknown) {
        return Err(wasmtime::Error::msg(unknown));
    }
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)
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
    if error.downcast_ref::<OutOfMemory>().is_some() {
        return End::Trapped(error.root_cause().to_string());
    }
    match error.downcast_ref::<Trap>() {
        // The debug format has the backtrace.
        Some(_) => End::Trapped(format!("{error:?}")),
        None => End::Refused(format!("{error:#}")),
    }
}
