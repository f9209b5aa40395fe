// SPDX-License-Identifier: Apache-2.0
//! Loads a shared library that only some processes of a program need, and that a node may lack.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use std::path::Path;

/// Loads a library and keeps it for as long as the process lives: by its name on the loader's usual
/// path, or by its own path. The program's undefined functions are found in it from then on. They
/// are bound at their first call; the program must be linked for that, see `wasm/cargo-engines`.
/// The library must have `function`: name the newest of the functions that the program calls, so
/// that an older library is refused.
///
/// # Errors
/// The loader's message, when the library is missing or cannot be used.
pub fn load(name: &Path, function: Option<&str>) -> Result<(), String> {
    // SAFETY: a library of the system, or one that only root could have written. Its initialisers
    // may run at any time.
    let library = unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_GLOBAL) }.map_err(|error| error.to_string())?;
    if let Some(function) = function {
        // SAFETY: this only asks whether the symbol exists; its address is not used.
        unsafe { library.get::<*const ()>(function.as_bytes()) }.map_err(|error| error.to_string())?;
    }
    std::mem::forget(library);
    Ok(())
}
