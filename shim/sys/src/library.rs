// SPDX-License-Identifier: Apache-2.0
//! A library that only some of a program's processes need, and that need not be installed.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};

/// Loads a library, for as long as the process lives: functions that the program names and does not have are found in it from
/// here on. (They are bound when they are first called; the program must be linked so, see `wasm/cargo-engines`.) It has to
/// have `function`: the youngest of those that are called.
///
/// # Errors
/// The loader's words, where there is no such library, or none that works.
pub fn load(name: &'static str, function: &str) -> Result<(), String> {
    // SAFETY: it is a system's library, found where the loader finds all, whose initialisers may run at any time.
    let library = unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_GLOBAL) }.map_err(|error| error.to_string())?;
    // SAFETY: only whether it is there is asked; the address, of whatever type, is not used.
    unsafe { library.get::<*const ()>(function.as_bytes()) }.map_err(|error| error.to_string())?;
    std::mem::forget(library);
    Ok(())
}
