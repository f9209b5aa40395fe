// SPDX-License-Identifier: Apache-2.0
//! For unit tests on the machine that compiles: the server looks again after a short while.

use super::Interest;
use std::io;
use std::net::TcpListener;
use std::time::Duration;

/// The least that a test waits for an answer.
const SHORT: Duration = Duration::from_millis(1);

pub fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", port))
}

pub fn wait(_: &[Interest], timeout: Option<Duration>) -> io::Result<()> {
    std::thread::sleep(timeout.map_or(SHORT, |timeout| timeout.min(SHORT)));
    Ok(())
}
