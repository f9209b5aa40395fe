// SPDX-License-Identifier: Apache-2.0
//! Lends the functions for language models ([`crate::nn`]) to core modules.

use super::Wasmtime;
use crate::memory::Linear;
use crate::nn::functions::{Function, MODULE, call};
use crate::nn::{self, Code};
use crate::payload::Module;
use std::sync::{Arc, Mutex, PoisonError};
use wasmtime::{Extern, FuncType, Linker, Val, ValType};

/// Adds the functions if the module imports some.
///
/// # Errors
/// Those of the engine, and when no thread can be started.
pub fn add_to_linker<T: 'static>(linker: &mut Linker<T>, core: &wasmtime::Module, module: &Module) -> wasmtime::Result<()> {
    if core.imports().all(|import| import.module() != MODULE) {
        return Ok(());
    }
    let graphs = Arc::new(Mutex::new(nn::graphs::<Wasmtime>(module)?));
    for function in Function::ALL {
        let graphs = graphs.clone();
        let kind = FuncType::new(core.engine(), vec![ValType::I32; function.parameters()], [ValType::I32]);
        linker.func_new(MODULE, function.name(), kind, move |mut caller, arguments, results| {
            let arguments: Vec<u32> = arguments.iter().map(|argument| argument.i32().unwrap_or_default() as u32).collect();
            let errno = match caller.get_export("memory") {
                Some(Extern::Memory(memory)) => {
                    let mut graphs = graphs.lock().unwrap_or_else(PoisonError::into_inner);
                    call(function, &arguments, &mut Linear(memory.data_mut(&mut caller)), &mut graphs)
                }
                _ => Code::MissingMemory as u32,
            };
            results[0] = Val::I32(errno as i32);
            Ok(())
        })?;
    }
    Ok(())
}
