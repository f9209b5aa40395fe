// SPDX-License-Identifier: Apache-2.0
//! The engine's compilers: one for fast code, and one that is fast itself.

use super::super::binary::{binary, is_component};
use super::super::{Effort, Failure};
use super::{Code, core_settings, engines};
use crate::payload::Format;
use magnetar_sys::compiled::Engines;
use std::fs::File;
use std::io::Write as _;
use wasmtime::component::Component;
use wasmtime::{Config, Strategy};

/// A compiler that takes a fraction of the time (Winch), for core modules.
pub fn draft_settings() -> Config {
    let mut settings = core_settings();
    settings.strategy(Strategy::Winch);
    settings
}

/// Compiles a module into a file.
///
/// # Errors
/// Why the module cannot be run, or could not be compiled.
pub fn compile(module: &[u8], format: Format, effort: Effort, into: &mut File) -> Result<(), Failure> {
    let refused = |error: wasmtime::Error| Failure::Refused(format!("{error:#}"));
    let engines = engines();
    let binary = binary(format, module).map_err(Failure::Refused)?;
    let code = match (effort, is_component(&binary)) {
        (Effort::Full, false) => engines.core().and_then(|engine| engine.precompile_module(&binary)),
        (Effort::Full, true) => engines.component().and_then(|engine| engine.precompile_component(&binary)),
        (Effort::Draft, false) => engines.draft().and_then(|engine| engine.precompile_module(&binary)),
        (Effort::Draft, true) => return Err(Failure::Failed("components are compiled by one compiler only".into())),
    };
    into.write_all(&code.map_err(refused)?).map_err(|error| Failure::Failed(format!("its code cannot be written: {error}")))
}

/// Compiles a module in the process that runs it, where there is no cache.
///
/// # Errors
/// Why the module cannot be run.
pub fn fresh(engines: &Engines, format: Format, bytes: &[u8]) -> wasmtime::Result<Code> {
    let binary = binary(format, bytes).map_err(wasmtime::Error::msg)?;
    if is_component(&binary) {
        Component::new(engines.component()?, &binary).map(Code::Component)
    } else {
        wasmtime::Module::new(engines.core()?, &binary).map(Code::Core)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FORMAT, VERSION, Wasmtime, component_settings};
    use super::*;
    use crate::engine::Engine as _;
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    fn compiled(module: &[u8]) -> std::result::Result<usize, Failure> {
        let mut code = tempfile::tempfile().unwrap();
        Wasmtime::compile(module, Format::Binary, Effort::Full, &mut code).map(|()| code.metadata().unwrap().len() as usize)
    }

    #[test]
    fn a_module_that_was_cut_is_refused_wherever_that_was() {
        let functions = "(func (param i32) (result i32) local.get 0 i32.const 2 i32.mul)".repeat(1000);
        let module = wat::parse_str(format!("(module {functions})")).unwrap();
        assert!(compiled(&module).unwrap() > 0);
        for length in (0..module.len()).step_by(1000) {
            assert!(matches!(compiled(&module[..length]), Err(Failure::Refused(_))), "{length} bytes of {}", module.len());
        }
    }

    #[test]
    fn types_without_an_end_are_refused() {
        // Each type has the one before it twice.
        let mut types = "(type $t0 (tuple u8 u8))".to_owned();
        for n in 1..64 {
            types.push_str(&format!("(type $t{n} (tuple $t{} $t{}))", n - 1, n - 1));
        }
        let huge = wat::parse_str(format!("(component {types})")).unwrap();
        assert!(matches!(compiled(&huge), Err(Failure::Refused(why)) if why.contains("type")));
    }

    #[test]
    fn code_is_kept_under_the_version_of_the_engine() {
        let lock = include_str!("../../../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"wasmtime\"\nversion = \"{VERSION}\"\n")), "VERSION is not that of Cargo.lock");
    }

    // What is on by default differs between kinds of processors.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn other_settings_have_another_format() {
        let settings = [core_settings(), component_settings(), draft_settings()].map(|settings| format!("{settings:?}"));
        let mut hash = DefaultHasher::new();
        settings.hash(&mut hash);
        assert_eq!(
            (FORMAT, hash.finish()),
            (1, 14_503_173_090_291_260_447),
            "code in caches was compiled with other settings: raise FORMAT, and note this hash here"
        );
    }
}
