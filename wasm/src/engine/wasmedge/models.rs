// SPDX-License-Identifier: Apache-2.0
//! Lends the functions for language models ([`crate::nn`]) to modules.

use super::WasmEdge;
use super::memory::{Linear, numbers};
use crate::nn::functions::{Function, MODULE, call};
use crate::nn::{self, Code, Graphs};
use crate::payload::Module;
use magnetar_core::error::{Context, Error, Result};
use wasmedge_sdk::error::CoreError;
use wasmedge_sdk::{CallingFrame, ImportObject, ImportObjectBuilder, Instance, WasmValue};

/// The functions, if the module imports some.
///
/// # Errors
/// Those of the engine, and when no thread can be started.
pub fn for_module(core: &wasmedge_sdk::Module, module: &Module) -> Result<Option<ImportObject<Graphs>>> {
    if core.imports().iter().all(|import| import.module_name() != MODULE) {
        return Ok(None);
    }
    let graphs = nn::graphs::<WasmEdge>(module).context(|| "cannot listen to the pod's process".into())?;
    build(graphs).map(Some).map_err(|error| Error::internal(format!("cannot lend functions to the module: {error}")))
}

fn build(graphs: Graphs) -> wasmedge_sdk::WasmEdgeResult<ImportObject<Graphs>> {
    let mut builder = ImportObjectBuilder::new(MODULE, graphs)?;
    // One function of the host for each, since the library takes no closures.
    lend::<0>(&mut builder)?;
    lend::<1>(&mut builder)?;
    lend::<2>(&mut builder)?;
    lend::<3>(&mut builder)?;
    lend::<4>(&mut builder)?;
    lend::<5>(&mut builder)?;
    lend::<6>(&mut builder)?;
    lend::<7>(&mut builder)?;
    lend::<8>(&mut builder)?;
    lend::<9>(&mut builder)?;
    lend::<10>(&mut builder)?;
    lend::<11>(&mut builder)?;
    Ok(builder.build())
}

/// Adds the function with this number in [`Function::ALL`].
fn lend<const NUMBER: usize>(builder: &mut ImportObjectBuilder<Graphs>) -> wasmedge_sdk::WasmEdgeResult<()> {
    let name = Function::ALL[NUMBER].name();
    match Function::ALL[NUMBER].parameters() {
        1 => builder.with_func::<i32, i32>(name, host::<NUMBER>),
        2 => builder.with_func::<(i32, i32), i32>(name, host::<NUMBER>),
        3 => builder.with_func::<(i32, i32, i32), i32>(name, host::<NUMBER>),
        _ => builder.with_func::<(i32, i32, i32, i32, i32), i32>(name, host::<NUMBER>),
    }
    .map(drop)
}

fn host<const NUMBER: usize>(
    graphs: &mut Graphs,
    _: &mut Instance,
    frame: &mut CallingFrame,
    arguments: Vec<WasmValue>,
) -> Result<Vec<WasmValue>, CoreError> {
    let arguments = numbers(&arguments);
    let errno = if frame.memory_ref(0).is_some() {
        call(Function::ALL[NUMBER], &arguments, &mut Linear(frame), graphs)
    } else {
        Code::MissingMemory as u32
    };
    Ok(vec![WasmValue::from_i32(errno as i32)])
}
