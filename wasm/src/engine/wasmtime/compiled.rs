// SPDX-License-Identifier: Apache-2.0
//! Code that was compiled before: by this engine, kept in the cache; or by whoever made the image.

use super::Code;
use std::fs::File;
use std::io::Read;
use wasmtime::component::Component;
use wasmtime::{Engine, Error, Module, Precompiled, Result};

/// Code of the cache. A core module is mapped, so that containers that run the same share its pages; a component the engine
/// takes from memory only. `None` where the engine does not take it: then it is compiled again.
#[allow(unsafe_code, reason = "what is mapped comes from the cache, which only takes what this engine has compiled")]
pub fn of_cache(engine: &Engine, kept: &File) -> Option<Code> {
    let mapped = kept.try_clone().ok()?;
    // SAFETY: the file is root's alone, was written by this engine of what it had compiled, and has its digest still (see
    // `crate::cache`); the engine itself checks the version and the settings.
    if let Ok(core) = unsafe { Module::deserialize_open_file(engine, mapped) } {
        return Some(Code::Core(core));
    }
    let mut bytes = Vec::new();
    (&*kept).read_to_end(&mut bytes).ok()?;
    // SAFETY: as for modules.
    unsafe { Component::deserialize(engine, &bytes) }.ok().map(Code::Component)
}

/// Code of the image. It is native code, and gets no more than a native program of the image would: this process is in the
/// container, with its rights, and holds nothing else.
///
/// # Errors
/// Where it was compiled by another version, with other settings or for another processor, or is damaged.
#[allow(unsafe_code, reason = "the image may run native code anyway")]
pub fn of_image(engine: &Engine, bytes: &[u8]) -> Result<Code> {
    // SAFETY: nothing in this process is to be protected from it (see above). That it is what the image says, is its own affair.
    unsafe {
        match Engine::detect_precompiled(bytes) {
            Some(Precompiled::Module) => Module::deserialize(engine, bytes).map(Code::Core),
            Some(Precompiled::Component) => Component::deserialize(engine, bytes).map(Code::Component),
            None => Err(Error::msg("it is no precompiled module, or a damaged one")),
        }
    }
}
