// SPDX-License-Identifier: Apache-2.0
//! magnetar-wasmtime: makes one container, or one process in it, for magnetar-wasm. If that is a
//! Wasm module, it runs the module with Wasmtime, from code that was compiled before.

use magnetar_core::runtime::libcontainer::run_if_asked;
use magnetar_wasm::engine::wasmtime::Wasmtime;
use magnetar_wasm::program::WasmOrNative;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    run_if_asked(WasmOrNative::<Wasmtime>::of_arguments()).unwrap_or_else(|| {
        let _unheard = writeln!(std::io::stderr(), "magnetar-wasmtime: this program is started by magnetar-wasm");
        ExitCode::FAILURE
    })
}
