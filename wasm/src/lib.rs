// SPDX-License-Identifier: Apache-2.0
//! Runs a WebAssembly module as the process of a container.
//!
//! ```text
//!   host      payload::find ──> is it Wasm? ──> program::WasmOrNative keeps the open file, and mounts a root without /proc
//!             cache::look ──> compiled code, or a process beside the container that compiles (compiler.rs)
//!   container WasmOrNative::exec ──> guest::Guest (arguments, environment, limits) ──> an engine::Engine ──> exit code
//!                                └─> a native program: execve
//! ```
//!
//! A module that computes with a language model has it from [`nn`]. `logging` is another function
//! that is lent to core modules.
//!
//! The module is opened before the container exists, beneath its root, and exactly that file runs.
//! The bytes of a file in a volume may still change, so the cache uses the digest of the bytes that
//! are compiled.

mod artifact;
pub mod cache;
mod compiler;
pub mod engine;
pub mod guest;
mod logging;
mod memory;
pub mod nn;
pub mod payload;
mod privileges;
pub mod program;
mod signals;

/// The argument that has a maker run modules without compiling them.
pub const INTERPRET: &str = "--interpret";
