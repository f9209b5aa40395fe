// SPDX-License-Identifier: Apache-2.0
//! Lends the function for logging ([`crate::logging`]) to modules. libwasmedge has one of its own,
//! which opens files of the host.

use super::memory::{Linear, numbers};
use crate::logging::{FUNCTION, MODULE, log};
use magnetar_core::error::{Error, Result};
use std::io::Write;
use wasmedge_sdk::error::{CoreError, CoreExecutionError};
use wasmedge_sdk::{CallingFrame, ImportObject, ImportObjectBuilder, Instance, WasmValue};

/// The function, if the module imports it.
///
/// # Errors
/// Those of the engine.
pub fn for_module(core: &wasmedge_sdk::Module) -> Result<Option<ImportObject<()>>> {
    if core.imports().iter().all(|import| import.module_name() != MODULE) {
        return Ok(None);
    }
    let build = || {
        let mut builder = ImportObjectBuilder::new(MODULE, ())?;
        builder.with_func::<(i32, i32, i32, i32, i32), ()>(FUNCTION, host)?;
        wasmedge_sdk::WasmEdgeResult::Ok(builder.build())
    };
    build().map(Some).map_err(|error| Error::internal(format!("cannot lend functions to the module: {error}")))
}

fn host(_: &mut (), _: &mut Instance, frame: &mut CallingFrame, arguments: Vec<WasmValue>) -> Result<Vec<WasmValue>, CoreError> {
    log(&numbers(&arguments), &Linear(frame)).map(|()| Vec::new()).map_err(|why| {
        // The engine has no place for a reason. The container may have closed its standard error.
        let _unheard = writeln!(std::io::stderr(), "{why}");
        CoreError::Execution(CoreExecutionError::HostFuncFailed)
    })
}
