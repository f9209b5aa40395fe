// SPDX-License-Identifier: Apache-2.0
//! magnetar-wasmtime-compiler: what magnetar-wasmtime is, with Wasmtime's compilers. It makes the
//! containers whose module is still to be compiled.

use magnetar_core::runtime::libcontainer::run_if_asked;
use magnetar_wasm::engine::wasmtime::Wasmtime;
use magnetar_wasm::program::WasmOrNative;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    run_if_asked(WasmOrNative::<Wasmtime>::of_arguments()).unwrap_or_else(|| {
        let _unheard = writeln!(std::io::stderr(), "magnetar-wasmtime-compiler: this program is started by magnetar-wasm");
        ExitCode::FAILURE
    })
}
