// SPDX-License-Identifier: Apache-2.0
//! magnetar-wasmtime: makes one container, or one process in it, for magnetar-wasm. If that is a
//! Wasm module, it runs the module with Wasmtime, from code that was compiled before.

use magnetar_wasm::engine::wasmtime::Wasmtime;
use magnetar_wasm::program;
use std::process::ExitCode;

fn main() -> ExitCode {
    program::main::<Wasmtime>("magnetar-wasmtime")
}
