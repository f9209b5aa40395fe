// SPDX-License-Identifier: Apache-2.0
//! What an engine is to the rest: it runs a module to its end.

#[cfg(feature = "wasmtime")]
pub mod wasmtime;

use crate::guest::Guest;
use crate::payload::Module;

/// One Wasm engine.
pub trait Engine: Clone + 'static {
    /// As people call it.
    const NAME: &'static str;

    /// Runs a module to its end, in a process that has nothing else to do.
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
    /// The exit code, as Wasmtime's and WasmEdge's own command lines have it: 1 for what cannot be run, and for a trap 128 and
    /// the number of SIGABRT.
    pub fn code(&self) -> u8 {
        match self {
            Self::Exited(code) => *code,
            Self::Refused(_) => 1,
            Self::Trapped(_) => 134,
        }
    }
}
