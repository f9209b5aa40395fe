// SPDX-License-Identifier: Apache-2.0
//! Checks of modules that all engines need.

use crate::payload::{Format, Module};
use std::borrow::Cow;

/// A module in the binary format; text is converted.
///
/// # Errors
/// The error in its text, or that it is not a module.
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

/// The error for a module that lacks the function to call.
pub fn no_function(name: &str) -> String {
    format!("it exports no function {name:?}")
}

/// The error for a function that takes parameters.
pub fn with_parameters(name: &str) -> String {
    format!("its function {name:?} takes parameters: only one that takes none can be called")
}
