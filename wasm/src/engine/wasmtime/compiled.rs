// SPDX-License-Identifier: Apache-2.0
//! Code that was compiled before. `None` where the engine does not take it: then it is compiled again.

use std::fs::File;
use std::io::Read;
use wasmtime::Engine;
use wasmtime::component::Component;

/// A core module, mapped: containers that run the same share its pages.
#[allow(unsafe_code, reason = "what is mapped comes from the cache, which only takes what this engine has compiled")]
pub fn module(engine: &Engine, code: File) -> Option<wasmtime::Module> {
    // SAFETY: the file is root's alone, was written by this engine of what it had compiled, and has its digest still (see
    // `crate::cache`); the engine itself checks the version and the settings.
    unsafe { wasmtime::Module::deserialize_open_file(engine, code) }.ok()
}

/// A component, which the engine takes from memory only.
#[allow(unsafe_code, reason = "as above")]
pub fn component(engine: &Engine, mut code: File) -> Option<Component> {
    let mut bytes = Vec::new();
    code.read_to_end(&mut bytes).ok()?;
    // SAFETY: as for modules.
    unsafe { Component::deserialize(engine, &bytes) }.ok()
}
