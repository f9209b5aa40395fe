// SPDX-License-Identifier: Apache-2.0
//! WasmEdge: core modules with WASI preview 1 and WasmEdge's own sockets.
//!
//! Its library need not be installed on nodes where no pod uses this engine. Modules are compiled
//! by LLVM, beside their containers (`compiler.rs`); the process that runs one has the library
//! without LLVM (`library.rs`). A module that cannot be compiled is interpreted.

mod library;
mod logging;
mod memory;
mod models;
mod stand_in;

use super::binary::{binary, is_component};
use super::format::{self, PREVIEW1};
use super::processor;
use super::{COMMAND, Effort, End, Engine, Failure};
use crate::guest::Guest;
use crate::nn::{self, Graphs};
use crate::payload::{Format, Module};
use crate::program::{self, GUEST_ROOT};
use magnetar_core::error::{Context, Error, Result};
use magnetar_sys::{abort, overflow};
use object::Endianness;
use object::elf::{FileHeader64, ProgramHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use rustix::fs::FileType;
use rustix::process::{Resource, Rlimit};
use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use wasmedge_sdk::config::{CommonConfigOptions, CompilerConfigOptions, Config, ConfigBuilder, RuntimeConfigOptions};
use wasmedge_sdk::error::{CoreCommonError, CoreError, WasmEdgeError};
use wasmedge_sdk::vm::SyncInst;
use wasmedge_sdk::wasi::WasiModule;
use wasmedge_sdk::{
    AsInstance, Compiler, CompilerOutputFormat, ExternalInstanceType, ImportObject, Instance, LogManager, RunMode, Store, Vm,
};

/// The unit of linear memory, in bytes (the WebAssembly specification, memory instances).
const PAGE: u64 = 64 << 10;

/// How much memory the engine may have beside a module's if the container has no limit, in bytes.
/// Its interpreter does not limit the call stack, so endless recursion would take all memory of the
/// host.
const UNLIMITED: u64 = 5 << 30;

/// How long a container waits until its module is compiled. Then it is interpreted, and the next
/// container has the code.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits for a module that is not [`LARGE`]. Interpreted, it would take many times as
/// long for all that it does, for as long as it runs.
const MUCH_PATIENCE: Duration = Duration::from_secs(90);

/// The size in bytes from which on a module is not worth [`MUCH_PATIENCE`]: LLVM takes about 18 s
/// for one of 1 MiB, and may have half a processor.
const LARGE: u64 = 2 << 20;

/// Changes with how modules are compiled, which makes all code in the cache another engine's.
const FORMAT: u32 = 1;

/// The error for a component.
const COMPONENT: &str = "it is a component, and this engine runs core modules only";

/// The exit code as after abort(3).
const ABORTED: i32 = 134;

/// The engine.
#[derive(Debug, Clone, Copy)]
pub struct WasmEdge;

impl Engine for WasmEdge {
    const NAME: &'static str = "wasmedge";

    const TRAPPED: u8 = 1;

    const COMPILES: bool = true;

    fn load() -> Result<()> {
        // Without a cache there is no stand-in either, which has been reported.
        library::found().map_or_else(|_| library::load_with_llvm(), library::Found::load)
    }

    fn compatibility() -> Result<String> {
        let mut hash = DefaultHasher::new();
        (library::found()?, processor::abilities()?, FORMAT).hash(&mut hash);
        Ok(format!("wasmedge-{:016x}", hash.finish()))
    }

    fn prepare_to_compile() -> Result<()> {
        library::load_with_llvm()
    }

    fn compile(module: &[u8], format: Format, effort: Effort, into: &mut File) -> std::result::Result<(), Failure> {
        if effort == Effort::Draft {
            return Err(Failure::Failed("this engine has no quicker compiler".into()));
        }
        LogManager::log_off();
        let binary = binary(format, module).map_err(Failure::Refused)?;
        if is_component(&binary) {
            return Err(Failure::Refused(COMPONENT.into()));
        }
        // Without enough memory it has another error, and may be interpreted with less.
        let refused = |error: Box<WasmEdgeError>| match &*error {
            WasmEdgeError::Core(CoreError::Load(_) | CoreError::Validation(_)) => Failure::Refused(error.to_string()),
            _ => Failure::Failed(said(&error)),
        };
        let failed = |error: Box<WasmEdgeError>| Failure::Failed(error.to_string());
        let options = CompilerConfigOptions::new().out_format(CompilerOutputFormat::Native);
        let config = ConfigBuilder::new(CommonConfigOptions::default()).with_compiler_config(options).build().map_err(failed)?;
        wasmedge_sdk::Module::from_bytes(Some(&config), &binary).map_err(refused)?;
        // In the folder in memory that this process has alone.
        let file = Compiler::new(Some(&config)).and_then(|compiler| compiler.compile_from_bytes(&binary, "module", "/")).map_err(failed)?;
        File::open(file)
            .and_then(|mut code| std::io::copy(&mut code, into))
            .map(drop)
            .map_err(|error| Failure::Failed(format!("its code cannot be copied: {error}")))
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
    module.check_size(guest.memory).map_err(|error| End::Refused(error.to_string()))?;
    if module.format() == Format::Library {
        let (code, config) = library(module, guest)?;
        return call(module, guest, code, &config);
    }
    let code = match module.take_cached().map(|found| found.code(Some(patience(module)))) {
        Some(Ok((code, _))) => Some(code),
        Some(Err(Failure::Refused(why))) => return Err(End::Refused(why)),
        Some(Err(Failure::Failed(why))) => {
            interprets(module, &why);
            None
        }
        None => None,
    };
    wait_for_nothing().and_then(|()| bound_memory(module, guest)).map_err(|error| End::Refused(error.to_string()))?;
    let (core, config) = match code.map(|code| compiled(code.as_fd(), guest)) {
        Some(Ok(compiled)) => {
            explain_overflow(module).map_err(|error| End::Refused(error.to_string()))?;
            compiled
        }
        Some(Err(error)) => {
            interprets(module, &error.to_string());
            interpreted(module, guest)?
        }
        None => interpreted(module, guest)?,
    };
    call(module, guest, core, &config)
}

/// How long a container waits until this module is compiled.
fn patience(module: &Module) -> Duration {
    if module.size().is_ok_and(|size| size < LARGE) { MUCH_PATIENCE } else { PATIENCE }
}

/// Calls the module's function.
fn call(module: &Module, guest: &Guest, core: wasmedge_sdk::Module, config: &Config) -> std::result::Result<End, End> {
    let name = module.function().unwrap_or(COMMAND);
    check_function(&core, name)?;
    let mut wasi = surroundings(guest)?;
    let mut models = models::for_module(&core, module).map_err(|error| End::Refused(error.to_string()))?;
    let mut logging = logging::for_module(&core).map_err(|error| End::Refused(error.to_string()))?;
    check_imports(&core, wasi.as_ref(), models.as_ref(), logging.as_ref())?;
    {
        let mut instances: HashMap<String, &mut dyn SyncInst> = HashMap::from([(PREVIEW1.into(), wasi.as_mut() as &mut dyn SyncInst)]);
        instances.extend(models.as_mut().map(|models| (nn::functions::MODULE.into(), models as &mut dyn SyncInst)));
        instances.extend(logging.as_mut().map(|logging| (crate::logging::MODULE.into(), logging as &mut dyn SyncInst)));
        let mut vm = Vm::new(Store::new(Some(config), instances).map_err(refused)?);
        vm.register_module(None, core).map_err(ended)?;
        vm.run_func(None, name, []).map_err(ended)?;
    }
    // The kernel truncates larger exit codes as well.
    Ok(End::Exited(wasi.exit_code() as u8))
}

/// Makes compiled code that calls without end say so.
fn explain_overflow(module: &Module) -> Result<()> {
    let text = program::last_words::<WasmEdge>(module.name(), "call stack exhausted, as calls without end do");
    let log = program::termination_log().map(OwnedFd::from).into_iter().collect();
    overflow::explain(text, log, WasmEdge::TRAPPED.into()).context(|| "cannot watch the call stack".into())
}

/// A module whose code is compiled, and the configuration to run it with.
fn compiled(code: BorrowedFd<'_>, guest: &Guest) -> wasmedge_sdk::WasmEdgeResult<(wasmedge_sdk::Module, Config)> {
    let config = config(guest, RunMode::Aot)?;
    // The library takes a path only. It maps the file, as the loader does with any library.
    let core = wasmedge_sdk::Module::from_file(Some(&config), format!("/proc/self/fd/{}", code.as_raw_fd()))?;
    Ok((core, config))
}

/// A module that is compiled in the image, which is native code with no more rights than a native
/// program of the image has.
fn library(module: &Module, guest: &Guest) -> std::result::Result<(wasmedge_sdk::Module, Config), End> {
    let refused = |error: Error| End::Refused(error.to_string());
    let bytes = module.read(guest.memory).map_err(refused)?;
    // The loader would map what is not there, and end the process when it is touched.
    if !is_whole(&bytes) {
        return Err(End::Refused("it is not a whole shared library".into()));
    }
    drop(bytes);
    wait_for_nothing().and_then(|()| bound_memory(module, guest)).map_err(refused)?;
    let loaded = compiled(module.as_fd(), guest)
        .map_err(|error| End::Refused(format!("it is not code that WasmEdge 0.17 has compiled (`wasmedge compile`): {error}")))?;
    explain_overflow(module).map_err(refused)?;
    Ok(loaded)
}

/// Whether an ELF file has all that it says is to be loaded (elf(5)).
fn is_whole(bytes: &[u8]) -> bool {
    let Ok(header) = FileHeader64::<Endianness>::parse(bytes) else { return false };
    let endian = header.endian().unwrap_or_default();
    let Ok(parts) = header.program_headers(endian, bytes) else { return false };
    let end = |part: &ProgramHeader64<Endianness>| part.p_offset(endian).checked_add(part.p_filesz(endian));
    parts.iter().all(|part| end(part).is_some_and(|end| end <= bytes.len() as u64))
}

/// A module to interpret, and the configuration to run it with.
fn interpreted(module: &Module, guest: &Guest) -> std::result::Result<(wasmedge_sdk::Module, Config), End> {
    let bytes = module.read(guest.memory).map_err(|error| End::Refused(error.to_string()))?;
    let binary = binary(module.format(), &bytes).map_err(End::Refused)?;
    if is_component(&binary) {
        return Err(End::Refused(COMPONENT.into()));
    }
    let config = config(guest, RunMode::Interpreter).map_err(refused)?;
    let core = wasmedge_sdk::Module::from_bytes(Some(&config), &binary).map_err(refused)?;
    Ok((core, config))
}

/// Writes to the container's log that a module runs more slowly than it could, and why.
fn interprets(module: &Module, why: &str) {
    let text =
        program::last_words::<WasmEdge>(module.name(), &format!("it is interpreted, which is slow, because it is not compiled: {why}"));
    // The container may have closed its standard error.
    let _unheard = std::io::stderr().write_all(text.as_bytes());
}

/// Gives the module a pipe without a writer as its standard input where that is /dev/null: read, it
/// is at its end as well, but it can also be waited for. WasmEdge waits with epoll(7), which
/// refuses devices.
fn wait_for_nothing() -> Result<()> {
    let what = || "cannot give the module a standard input that can be waited for".to_string();
    let input = rustix::fs::fstat(rustix::stdio::stdin());
    // A closed standard input stays closed.
    let is_null = input.is_ok_and(|input| {
        FileType::from_raw_mode(input.st_mode) == FileType::CharacterDevice && input.st_rdev == rustix::fs::makedev(1, 3)
    });
    if is_null {
        let (nothing, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(what)?;
        rustix::stdio::dup2_stdin(&nothing).context(what)?;
    }
    Ok(())
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
    let text = program::last_words::<WasmEdge>(
        module.name(),
        "the engine has given up, as it does out of memory, which calls without end take too",
    );
    let log = program::termination_log().map(OwnedFd::from).into_iter().collect();
    abort::explain(text, log, ABORTED).context(what)
}

fn config(guest: &Guest, mode: RunMode) -> wasmedge_sdk::WasmEdgeResult<Config> {
    let mut runtime = RuntimeConfigOptions::default();
    if let Some(pages) = guest.memory.and_then(|limit| u32::try_from(limit / PAGE).ok()) {
        runtime = runtime.max_memory_pages(pages.max(1));
    }
    ConfigBuilder::new(CommonConfigOptions::default().run_mode(mode)).with_runtime_config(runtime).build()
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
fn check_imports(
    core: &wasmedge_sdk::Module,
    wasi: &Instance,
    models: Option<&ImportObject<Graphs>>,
    logging: Option<&ImportObject<()>>,
) -> std::result::Result<(), End> {
    let imports: Vec<_> = core.imports().iter().map(|import| (import.name().to_string(), import.module_name().to_string())).collect();
    let is_missing = |name: &str, module: &str| match module {
        PREVIEW1 => wasi.get_func(name).is_err(),
        nn::functions::MODULE => models.is_none_or(|models| models.get_func(name).is_err()),
        crate::logging::MODULE => logging.is_none_or(|logging| logging.get_func(name).is_err()),
        _ => true,
    };
    let missing = imports.iter().filter(|(name, module)| is_missing(name, module));
    match format::unknown_imports(missing.map(|(name, module)| (name.as_str(), module.as_str()))) {
        Some(unknown) => Err(End::Refused(unknown)),
        None => Ok(()),
    }
}

fn refused(error: Box<WasmEdgeError>) -> End {
    End::Refused(said(&error))
}

/// What the engine says. Where it could not get memory, it does not say that.
fn said(error: &WasmEdgeError) -> String {
    match error {
        WasmEdgeError::Core(CoreError::Common(CoreCommonError::RuntimeError)) => {
            format!("the engine has failed, as it does when memory is short: {error}")
        }
        _ => error.to_string(),
    }
}

/// How the module was stopped while it ran, or while it was instantiated, which runs its start
/// function.
fn ended(error: Box<WasmEdgeError>) -> End {
    match &*error {
        WasmEdgeError::Core(CoreError::Execution(error)) => End::Trapped(error.to_string()),
        _ => refused(error),
    }
}
