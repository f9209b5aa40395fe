// SPDX-License-Identifier: Apache-2.0
//! What modules have to be, for all engines.

use crate::payload::{Format, Module};
use std::borrow::Cow;

/// The binary format of a module that is not compiled.
///
/// # Errors
/// What is wrong with its text, or that it is no module.
pub fn binary<'a>(module: &Module, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
    let binary = match module.format() {
        Format::Text => wat::parse_bytes(bytes).map_err(|error| error.to_string())?,
        Format::Binary | Format::Precompiled => Cow::Borrowed(bytes),
    };
    if binary.starts_with(b"\0asm") {
        Ok(binary)
    } else {
        Err("it is not a WebAssembly module: its first bytes are not those of one".into())
    }
}

/// Whether the header is a component's: its layer field is 1 (the component model's binary format).
pub fn is_component(binary: &[u8]) -> bool {
    binary.get(6..8) == Some(&[1, 0])
}

/// What is said of a module without the function that is to be called.
pub fn no_function(name: &str) -> String {
    format!("it exports no function {name:?}")
}

/// What is said of a function that cannot be called by its name alone.
pub fn with_parameters(name: &str) -> String {
    format!("its function {name:?} takes parameters: only one that takes none can be called")
}
