// SPDX-License-Identifier: Apache-2.0
//! The API, as far as magnetar-vmm uses it. One request for each connection.

use super::Fault;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// Answers requests as long as the program runs.
pub fn serve(listener: &UnixListener, fault: Option<Fault>) {
    if let Err(error) = listener.set_nonblocking(false) {
        return eprintln!("clh-double: {error}");
    }
    for stream in listener.incoming().flatten() {
        if let Err(error) = answer(stream, fault) {
            eprintln!("clh-double: a request failed: {error}");
        }
    }
}

fn answer(mut stream: UnixStream, fault: Option<Fault>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    // The head ends with an empty line; no request of magnetar-vmm has a body.
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let (status, body) = match request.split(' ').nth(1) {
        Some("/api/v1/vmm.ping") => ("200 OK", ping(fault)),
        Some("/api/v1/vm.info") => ("200 OK", serde_json::json!({ "config": {}, "state": "Running" })),
        _ => ("404 Not Found", serde_json::json!(["clh-double has no such request"])),
    };
    match fault {
        Some(Fault::Silent) => std::thread::sleep(Duration::from_secs(3600)),
        Some(Fault::Rubbish) => stream.write_all(b"SSH-2.0-rubbish\r\n")?,
        Some(Fault::Old) | None => {
            let body = body.to_string();
            let head = format!("HTTP/1.1 {status}\r\nServer: clh-double\r\nContent-Type: application/json\r\n");
            write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len())?;
        }
    }
    Ok(())
}

fn ping(fault: Option<Fault>) -> serde_json::Value {
    let version = if fault == Some(Fault::Old) { "38.0.0" } else { "53.0.0" };
    serde_json::json!({ "build_version": format!("v{version}-double"), "version": version, "pid": std::process::id(), "features": [] })
}
