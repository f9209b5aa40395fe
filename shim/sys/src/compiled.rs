// SPDX-License-Identifier: Apache-2.0
//! Loads code that Wasmtime compiled earlier: from the cache of this engine, or from an image.

use std::fs::File;
use std::io::{Read, Seek};
use wasmtime::component::Component;
use wasmtime::{Engine, Error, Module, Precompiled, Result};

/// Compiled code.
pub enum Compiled {
    /// A core module.
    Module(Module),
    /// A component.
    Component(Component),
}

/// Loads code from the cache. The cache accepts only code that this engine compiled, and checks the
/// digest when it gives a file out. A core module is mapped, so containers that run the same module
/// share its pages. A component has to be read into memory. Returns `None` if the engine rejects
/// the code; the caller then compiles again.
pub fn from_cache(engine: &Engine, kept: &File) -> Option<Compiled> {
    let mapped = kept.try_clone().ok()?;
    // SAFETY: only root can write the file, this engine wrote it with code it had compiled, and its
    // digest is unchanged (contract; `cache.rs` of magnetar-wasm). The engine itself checks version
    // and settings.
    if let Ok(core) = unsafe { Module::deserialize_open_file(engine, mapped) } {
        return Some(Compiled::Module(core));
    }
    let mut bytes = Vec::new();
    (&*kept).rewind().ok()?;
    (&*kept).read_to_end(&mut bytes).ok()?;
    // SAFETY: as for modules.
    unsafe { Component::deserialize(engine, &bytes) }.ok().map(Compiled::Component)
}

/// Loads precompiled code from an image. This is native code, with no more rights than a native
/// program of the image has: this process is in the container, has the container's rights, and
/// holds nothing else. A rule of a security module breaks that equality, so do not call this for a
/// container that has one.
///
/// # Errors
/// When the code was compiled by another version, with other settings or for another processor, or
/// is damaged.
pub fn from_image(engine: &Engine, bytes: &[u8]) -> Result<Compiled> {
    // SAFETY: nothing in this process needs protection from this code (see above). The image's
    // author answers for what it does.
    unsafe {
        match Engine::detect_precompiled(bytes) {
            Some(Precompiled::Module) => Module::deserialize(engine, bytes).map(Compiled::Module),
            Some(Precompiled::Component) => Component::deserialize(engine, bytes).map(Compiled::Component),
            None => Err(Error::msg("this is not a precompiled module, or it is damaged")),
        }
    }
}
