// SPDX-License-Identifier: Apache-2.0
//! A server over TCP, as a core module: it sends back what clients send. WASI preview 1 has no
//! call that makes a socket, so this one is made by calls that WasmEdge has added (wasmedge.rs),
//! and that Magnetar has for Wasmtime. After that it is a listener of the standard library.

mod wasmedge;

use std::{env, io, net::TcpListener, process::ExitCode};

fn main() -> ExitCode {
    let port = env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(7000);
    match wasmedge::listen(port).and_then(|listener| serve(&listener, port)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One client at a time: a module has one thread.
fn serve(listener: &TcpListener, port: u16) -> io::Result<()> {
    println!("listening on port {port}");
    loop {
        let (client, _) = listener.accept()?;
        // A client that breaks off is no reason to end.
        if let Err(error) = io::copy(&mut &client, &mut &client) {
            eprintln!("a client: {error}");
        }
    }
}
