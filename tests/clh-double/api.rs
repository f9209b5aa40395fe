// SPDX-License-Identifier: Apache-2.0
//! The API, as far as magnetar-vmm uses it. One request for each connection.

use super::Fault;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// How late [`Fault::Late`] answers.
const LATE: Duration = Duration::from_secs(3);

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
    let is_ping = request.contains("/vmm.ping ");
    let (status, body) = match fault {
        Some(Fault::Silent) => return silence(),
        Some(Fault::Stalls) if !is_ping => return silence(),
        Some(Fault::Rubbish) => return stream.write_all(b"SSH-2.0-rubbish\r\n"),
        Some(Fault::Endless) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                // Until the other side has had enough.
                stream.write_all(&[b'['; 4096])?;
            }
        }
        Some(Fault::Fails) => ("500 Internal Server Error", serde_json::json!(["Error from API", "the double fails\u{7}"])),
        Some(Fault::Late) => {
            std::thread::sleep(LATE);
            (status, body)
        }
        Some(Fault::Old | Fault::Stalls) | None => (status, body),
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nServer: clh-double\r\nContent-Type: application/json\r\n");
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Keeps the connection and says nothing, as long as any test runs.
fn silence() -> std::io::Result<()> {
    std::thread::sleep(Duration::from_secs(3600));
    Ok(())
}

fn ping(fault: Option<Fault>) -> serde_json::Value {
    let version = if fault == Some(Fault::Old) { "38.0.0" } else { "53.0.0" };
    serde_json::json!({ "build_version": format!("v{version}-double"), "version": version, "pid": std::process::id(), "features": [] })
}
