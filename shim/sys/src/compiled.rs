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

/// The engines for core modules and for components, which have other settings.
pub struct Engines<'a> {
    /// For core modules.
    pub core: &'a Engine,
    /// For components: their code can be interrupted.
    pub component: &'a Engine,
}

/// Loads code from the cache. The cache accepts only code that these engines compiled, and checks
/// the digest when it gives a file out. A core module is mapped, so containers that run the same
/// module share its pages. A component has to be read into memory. Returns `None` if the engine
/// rejects the code; the caller then compiles again.
pub fn from_cache(engines: &Engines<'_>, kept: &File) -> Option<Compiled> {
    let mapped = kept.try_clone().ok()?;
    // SAFETY: only root can write the file, this engine wrote it with code it had compiled, and its
    // digest is unchanged (contract; `cache.rs` of magnetar-wasm). The engine itself checks version
    // and settings.
    if let Ok(core) = unsafe { Module::deserialize_open_file(engines.core, mapped) } {
        return Some(Compiled::Module(core));
    }
    let mut bytes = Vec::new();
    (&*kept).rewind().ok()?;
    (&*kept).read_to_end(&mut bytes).ok()?;
    // SAFETY: as for modules.
    unsafe { Component::deserialize(engines.component, &bytes) }.ok().map(Compiled::Component)
}

/// Loads precompiled code from an image. This is native code, with no more rights than a native
/// program of the image has: this process is in the container, has the container's rights, and
/// holds nothing else. A rule of a security module breaks that equality, so do not call this for a
/// container that has one.
///
/// A component that cannot be interrupted, as `wasmtime compile` makes it by default, is loaded by
/// the engine for core modules.
///
/// # Errors
/// When the code was compiled by another version, with other settings or for another processor, or
/// is damaged.
pub fn from_image(engines: &Engines<'_>, bytes: &[u8]) -> Result<Compiled> {
    // SAFETY: nothing in this process needs protection from this code (see above). The image's
    // author answers for what it does.
    unsafe {
        match Engine::detect_precompiled(bytes) {
            Some(Precompiled::Module) => Module::deserialize(engines.core, bytes).map(Compiled::Module),
            Some(Precompiled::Component) => Component::deserialize(engines.component, bytes)
                .or_else(|_| Component::deserialize(engines.core, bytes))
                .map(Compiled::Component),
            None => Err(Error::msg("this is not a precompiled module, or it is damaged")),
        }
    }
}
