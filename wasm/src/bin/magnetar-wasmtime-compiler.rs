// SPDX-License-Identifier: Apache-2.0
//! magnetar-wasmtime-compiler: what magnetar-wasmtime is, with Wasmtime's compilers. It makes the
//! containers whose module is still to be compiled.

use magnetar_wasm::engine::wasmtime::Wasmtime;
use magnetar_wasm::program;
use std::process::ExitCode;

fn main() -> ExitCode {
    program::main::<Wasmtime>("magnetar-wasmtime-compiler")
}
