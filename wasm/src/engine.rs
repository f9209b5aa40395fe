// SPDX-License-Identifier: Apache-2.0
//! The interface of a Wasm engine: it runs a module to its end.

#[cfg(any(feature = "wasmedge", feature = "wasmtime-compiler"))]
mod binary;
#[cfg(any(feature = "wasmedge", feature = "wasmtime"))]
mod format;
#[cfg(any(feature = "wasmedge", feature = "wasmtime"))]
mod processor;
#[cfg(feature = "wasmedge")]
pub mod wasmedge;
#[cfg(feature = "wasmtime")]
pub mod wasmtime;

use crate::guest::Guest;
use crate::payload::{Format, Module};
use magnetar_core::error::Result;
use std::fs::File;

/// The function that a WASI command exports (the application ABI of WASI preview 1).
pub const COMMAND: &str = "_start";

/// One Wasm engine.
pub trait Engine: Clone + 'static {
    /// The engine's usual name.
    const NAME: &'static str;

    /// The exit code of its own command line for a module that was stopped by a trap.
    const TRAPPED: u8;

    /// Whether this program has the engine's compiler.
    const COMPILES: bool;

    /// Makes the engine ready, on the host and before the container is made.
    ///
    /// # Errors
    /// `FailedPrecondition` if it is not installed.
    fn load() -> Result<()>;

    /// A name for everything on which compiled code depends: the engine, its version, its settings
    /// and the processor.
    ///
    /// # Errors
    /// When the engine does not work on this host.
    fn compatibility() -> Result<String>;

    /// Loads what compiling needs from the node, before the process is confined.
    ///
    /// # Errors
    /// `FailedPrecondition` if it is not installed.
    fn prepare_to_compile() -> Result<()> {
        Ok(())
    }

    /// Compiles a module into a file, in a process that is confined already (`compiler.rs`).
    ///
    /// # Errors
    /// Why the module cannot be run, or could not be compiled. An engine without a compiler for
    /// [`Effort::Draft`] has no drafts.
    fn compile(module: &[u8], format: Format, effort: Effort, into: &mut File) -> std::result::Result<(), Failure>;

    /// Runs a module to its end, in a process that does nothing else, from compiled code where
    /// there is some ([`Module::take_cached`]).
    fn run(module: &Module, guest: &Guest) -> End;
}

/// How a module is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Quickly, to code that runs more slowly. It is for one container only, and is not kept.
    Draft,
    /// To the fastest code that the engine can make.
    Full,
}

/// Why there is no compiled code of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It is not a module, or this engine cannot run it.
    Refused(String),
    /// It could not be compiled.
    Failed(String),
}

/// How a module ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It returned, or exited with a code.
    Exited(u8),
    /// It could not be run: it is not a module, or this engine cannot run it.
    Refused(String),
    /// A trap stopped it.
    Trapped(String),
}

impl End {
    /// The exit code, the same as that of the engine's own command line.
    pub fn code<E: Engine>(&self) -> u8 {
        match self {
            Self::Exited(code) => *code,
            Self::Refused(_) => 1,
            Self::Trapped(_) => E::TRAPPED,
        }
    }
}
