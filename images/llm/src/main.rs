// SPDX-License-Identifier: Apache-2.0
//! An inference server with OpenAI's interface, as one module of WebAssembly for any engine that
//! has `wasi_ephemeral_nn` with GGML, and WasmEdge's sockets.
//!
//! ```text
//! sockets ── connection ── http ──> server ── api ──> job ── engine ──> the host
//!                 ^                                    │
//!                 └──────────── answers ───────────────┘
//! ```
//!
//! It has one thread, as modules have: a loop that accepts, reads, computes one piece of each
//! answer that is under way, and writes. The host computes the answers' pieces together.
//! Deliberately absent: TLS and keys of users, which belong before it (an ingress), and tools.

mod api;
mod connection;
mod engine;
mod gguf;
mod http;
mod job;
mod metrics;
mod models;
mod net;
mod options;
mod routes;
mod server;
mod template;
mod unicode;

use models::Models;
use options::Options;
use server::Server;
use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("llm-server: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let options = Options::read(env::args().skip(1), env::vars())?;
    let mut engine = engine()?;
    // Nobody can connect before, so a probe fails at once.
    let models = Models::load(&mut engine, &options)?;
    let port = options.port;
    let listener = net::listen(port).map_err(|error| format!("port {port}: {error}"))?;
    println!("llm-server: {} at port {port}", models.names().join(", "));
    let mut server = Server::new(engine, models, options, listener);
    loop {
        if !server.turn() {
            server.wait().map_err(|error| format!("cannot wait for clients: {error}"))?;
        }
    }
}

#[cfg(target_arch = "wasm32")]
fn engine() -> Result<engine::wasi::Host, String> {
    Ok(engine::wasi::Host::new())
}

#[cfg(not(target_arch = "wasm32"))]
fn engine() -> Result<engine::absent::Absent, String> {
    Err("it computes as a module of WebAssembly only: compile it for wasm32-wasip1".into())
}
