// SPDX-License-Identifier: Apache-2.0
//! magnetar-wasmedge: makes one container, or one process in it, for magnetar-wasm. If that is a
//! Wasm module, it runs the module with WasmEdge.

use magnetar_wasm::engine::wasmedge::WasmEdge;
use magnetar_wasm::program;
use std::process::ExitCode;

fn main() -> ExitCode {
    program::main::<WasmEdge>("magnetar-wasmedge")
}
