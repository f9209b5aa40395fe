// SPDX-License-Identifier: Apache-2.0
//! Wasmtime's code that was compiled before: by this engine, kept in a cache; or by whoever made an image.

use std::fs::File;
use std::io::{Read, Seek};
use wasmtime::component::Component;
use wasmtime::{Engine, Error, Module, Precompiled, Result};

/// What was compiled.
pub enum Compiled {
    /// A core module.
    Module(Module),
    /// A component.
    Component(Component),
}

/// Code of the cache, which takes only what this engine has compiled, and checks that it is that still. A core module is mapped,
/// so that containers that run the same share its pages; a component the engine takes from memory only. `None` where the engine
/// does not take it: then it is compiled again.
pub fn of_cache(engine: &Engine, kept: &File) -> Option<Compiled> {
    let mapped = kept.try_clone().ok()?;
    // SAFETY: the file is root's alone, was written by this engine of what it had compiled, and has its digest still
    // (contract; `cache.rs` of magnetar-wasm); the engine itself checks the version and the settings.
    if let Ok(core) = unsafe { Module::deserialize_open_file(engine, mapped) } {
        return Some(Compiled::Module(core));
    }
    let mut bytes = Vec::new();
    (&*kept).rewind().ok()?;
    (&*kept).read_to_end(&mut bytes).ok()?;
    // SAFETY: as for modules.
    unsafe { Component::deserialize(engine, &bytes) }.ok().map(Compiled::Component)
}

/// Code of the image. It is native code, and gets no more than a native program of the image would: this process is in the
/// container, with its rights, and holds nothing else. (Not so with a rule of a security module, for which it must not be called.)
///
/// # Errors
/// Where it was compiled by another version, with other settings or for another processor, or is damaged.
pub fn of_image(engine: &Engine, bytes: &[u8]) -> Result<Compiled> {
    // SAFETY: nothing in this process is to be protected from it (see above). That it is what the image says, is its own affair.
    unsafe {
        match Engine::detect_precompiled(bytes) {
            Some(Precompiled::Module) => Module::deserialize(engine, bytes).map(Compiled::Module),
            Some(Precompiled::Component) => Component::deserialize(engine, bytes).map(Compiled::Component),
            None => Err(Error::msg("it is no precompiled module, or a damaged one")),
        }
    }
}
