// SPDX-License-Identifier: Apache-2.0
//! Lends the function for logging ([`crate::logging`]) to core modules.

use crate::logging::{FUNCTION, MODULE, PARAMETERS, log};
use crate::memory::Linear;
use wasmtime::{Extern, FuncType, Linker, ValType};

/// Adds the function if the module imports it.
///
/// # Errors
/// Those of the engine.
pub fn add_to_linker<T: 'static>(linker: &mut Linker<T>, core: &wasmtime::Module) -> wasmtime::Result<()> {
    if core.imports().all(|import| import.module() != MODULE) {
        return Ok(());
    }
    let kind = FuncType::new(core.engine(), vec![ValType::I32; PARAMETERS], []);
    linker.func_new(MODULE, FUNCTION, kind, |mut caller, arguments, _| {
        let arguments: Vec<u32> = arguments.iter().map(|argument| argument.i32().unwrap_or_default() as u32).collect();
        match caller.get_export("memory") {
            Some(Extern::Memory(memory)) => log(&arguments, &Linear(memory.data_mut(&mut caller))).map_err(wasmtime::Error::new),
            _ => Err(wasmtime::Error::msg("log: the module exports no memory")),
        }
    })?;
    Ok(())
}
