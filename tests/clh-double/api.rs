// SPDX-License-Identifier: Apache-2.0
//! The API, as far as magnetar-vmm uses it. One request for each connection.

use super::Fault;
use super::disks::Disks;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Error, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// How late [`Fault::Late`] answers.
const LATE: Duration = Duration::from_secs(3);

/// Answers requests as long as the program runs.
pub fn serve(listener: &UnixListener, fault: Option<Fault>, mut disks: Disks) {
    if let Err(error) = listener.set_nonblocking(false) {
        return eprintln!("clh-double: {error}");
    }
    for stream in listener.incoming().flatten() {
        if let Err(error) = answer(stream, fault, &mut disks) {
            eprintln!("clh-double: a request failed: {error}");
        }
    }
}

fn answer(mut stream: UnixStream, fault: Option<Fault>, disks: &mut Disks) -> std::io::Result<()> {
    let (request, order) = read(&stream)?;
    let done = |outcome: std::io::Result<()>| match outcome {
        Ok(()) => ("200 OK", json!({})),
        Err(error) => ("500 Internal Server Error", json!([error.to_string()])),
    };
    let (status, body) = match request.split(' ').nth(1) {
        Some("/api/v1/vmm.ping") => ("200 OK", ping(fault)),
        Some("/api/v1/vm.info") => ("200 OK", json!({ "config": {}, "state": "Running", "device_tree": disks.tree() })),
        Some("/api/v1/vm.counters") => ("200 OK", json!({})),
        Some("/api/v1/vm.add-disk") => done(disks.add(&order)),
        Some("/api/v1/vm.remove-device") => done(disks.remove(&order)),
        _ => ("404 Not Found", json!(["clh-double has no such request"])),
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

/// A request's first line, and its body.
fn read(stream: &UnixStream) -> std::io::Result<(String, Value)> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request)?;
    // The head ends with an empty line.
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(Error::other)?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let order = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(Error::other)? };
    Ok((request, order))
}

fn ping(fault: Option<Fault>) -> Value {
    let version = if fault == Some(Fault::Old) { "38.0.0" } else { "53.0.0" };
    json!({ "build_version": format!("v{version}-double"), "version": version, "pid": std::process::id(), "features": [] })
}
