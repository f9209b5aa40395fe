// SPDX-License-Identifier: Apache-2.0
//! Loads code that Wasmtime compiled earlier: from the cache of this engine, or from an image.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use wasmtime::component::Component;
use wasmtime::{Config, Engine, Error, Module, Precompiled, Result};

/// Compiled code.
pub enum Compiled {
    /// A core module.
    Module(Module),
    /// A component.
    Component(Component),
}

/// The engines for core modules and for components, which have other settings. Each is made when it
/// is needed.
pub struct Engines {
    settings: [fn() -> Config; 3],
    made: [OnceCell<Engine>; 3],
}

impl Engines {
    /// Engines with these settings. Code of components can be interrupted. `draft` is for core
    /// modules, and compiles quickly.
    pub fn new(core: fn() -> Config, component: fn() -> Config, draft: fn() -> Config) -> Self {
        Self { settings: [core, component, draft], made: [const { OnceCell::new() }; 3] }
    }

    /// The engine for core modules.
    ///
    /// # Errors
    /// When the engine does not work on this host.
    pub fn core(&self) -> Result<&Engine> {
        self.get(0)
    }

    /// The engine for components.
    ///
    /// # Errors
    /// When the engine does not work on this host.
    pub fn component(&self) -> Result<&Engine> {
        self.get(1)
    }

    /// The engine for core modules that are compiled quickly.
    ///
    /// # Errors
    /// When the engine does not work on this host.
    pub fn draft(&self) -> Result<&Engine> {
        self.get(2)
    }

    fn get(&self, which: usize) -> Result<&Engine> {
        if let Some(engine) = self.made[which].get() {
            return Ok(engine);
        }
        let engine = Engine::new(&self.settings[which]())?;
        Ok(self.made[which].get_or_init(|| engine))
    }
}

/// Loads code from the cache. The cache accepts only code that these engines compiled, and checks
/// the digest when it gives a file out. A core module is mapped, so containers that run the same
/// module share its pages. A component has to be read into memory. Returns `None` if the engine
/// rejects the code; the caller then compiles again.
pub fn from_cache(engines: &Engines, kept: &File) -> Option<Compiled> {
    if is_module(kept) {
        let mapped = kept.try_clone().ok()?;
        // SAFETY: only root can write the file, this engine wrote it with code it had compiled, and
        // its digest is unchanged (contract; `cache.rs` of magnetar-wasm). The engine itself checks
        // version and settings.
        return unsafe { Module::deserialize_open_file(engines.core().ok()?, mapped) }.ok().map(Compiled::Module);
    }
    let mut bytes = Vec::new();
    (&*kept).rewind().ok()?;
    (&*kept).read_to_end(&mut bytes).ok()?;
    // SAFETY: as for modules.
    unsafe { Component::deserialize(engines.component().ok()?, &bytes) }.ok().map(Compiled::Component)
}

/// Loads code that was compiled quickly for this container. Returns `None` if the engine rejects
/// it.
pub fn from_draft(engines: &Engines, draft: &File) -> Option<Compiled> {
    let mapped = draft.try_clone().ok()?;
    // SAFETY: the compiler is the only one who wrote the file, and it is sealed (contract;
    // `compiler.rs` of magnetar-wasm). The engine itself checks version and settings.
    unsafe { Module::deserialize_open_file(engines.draft().ok()?, mapped) }.ok().map(Compiled::Module)
}

/// Loads the code of a component into another engine, whose code is compiled with the same
/// settings.
///
/// # Errors
/// When it is not.
pub fn on_another_engine(engine: &Engine, component: &Component) -> Result<Component> {
    // SAFETY: the bytes were made by this process just now.
    unsafe { Component::deserialize(engine, component.serialize()?) }
}

/// Whether compiled code says that it is a core module's: by the flags in its ELF header, of which
/// Wasmtime sets the first for modules and the second for components (`EF_WASMTIME_MODULE` of
/// wasmtime-environ, obj.rs). If it is wrong, the engine rejects the code.
fn is_module(code: &File) -> bool {
    let mut flags = [0; 4];
    code.read_exact_at(&mut flags, E_FLAGS).is_ok() && u32::from_le_bytes(flags) & 1 != 0
}

/// Where `e_flags` is in the header of a 64-bit ELF file (elf(5)).
const E_FLAGS: u64 = 48;

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
pub fn from_image(engines: &Engines, bytes: &[u8]) -> Result<Compiled> {
    // SAFETY: nothing in this process needs protection from this code (see above). The image's
    // author answers for what it does.
    unsafe {
        match Engine::detect_precompiled(bytes) {
            Some(Precompiled::Module) => Module::deserialize(engines.core()?, bytes).map(Compiled::Module),
            Some(Precompiled::Component) => Component::deserialize(engines.component()?, bytes)
                .or_else(|_| Component::deserialize(engines.core()?, bytes))
                .map(Compiled::Component),
            None => Err(Error::msg("this is not a precompiled module, or it is damaged")),
        }
    }
}
