// SPDX-License-Identifier: Apache-2.0
//! What an engine is to the rest: it runs a module to its end.

#[cfg(any(feature = "wasmedge", feature = "wasmtime"))]
mod format;
#[cfg(feature = "wasmedge")]
pub mod wasmedge;
#[cfg(feature = "wasmtime")]
pub mod wasmtime;

use crate::guest::Guest;
use crate::payload::Module;
use magnetar_core::error::Result;

/// What a WASI command exports (the application ABI of WASI preview 1).
pub const COMMAND: &str = "_start";

/// One Wasm engine.
pub trait Engine: Clone + 'static {
    /// As people call it.
    const NAME: &'static str;

    /// The exit code that its own command line has for a module that was stopped by a trap.
    const TRAPPED: u8;

    /// Makes the engine ready, on the host and before the container is made.
    ///
    /// # Errors
    /// `FailedPrecondition` where it is not installed.
    fn load() -> Result<()>;

    /// A name for all that compiled code depends on: the engine, its version, its settings and the processor. `None` for an
    /// engine that compiles nothing.
    ///
    /// # Errors
    /// Where the engine does not work on this host.
    fn compatibility() -> Result<Option<String>>;

    /// Runs a module to its end, in a process that has nothing else to do. Compiled code is taken from the cache, or offered to
    /// it: [`Module::take_cached`].
    fn run(module: &Module, guest: &Guest) -> End;
}

/// How a module has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It has returned, or exited with a code.
    Exited(u8),
    /// It could not be run: no module, or not one that this engine can run.
    Refused(String),
    /// It was stopped: a trap.
    Trapped(String),
}

impl End {
    /// The exit code, meant to be that of the engine's own command line.
    pub fn code<E: Engine>(&self) -> u8 {
        match self {
            Self::Exited(code) => *code,
            Self::Refused(_) => 1,
            Self::Trapped(_) => E::TRAPPED,
        }
    }
}
