// SPDX-License-Identifier: Apache-2.0
//! A client's connection: bytes in, bytes out, neither of which waits.
//!
//! ```text
//! Reading ──> Answering ──> Reading …          (a request after the other)
//!    └──────────────┴─────> Closing            (what is written is still sent)
//! ```

use crate::http::{Arrived, Parser, Refusal, Request};
use crate::net::{Interest, Number};
use serde_json::Value;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// While an answer is under way, so many bytes of further requests are read: it is for noticing
/// that the client leaves.
const MAX_AHEAD: usize = 64 << 10;
/// How much is read of one connection before the others get their turn.
const TURN: usize = 256 << 10;
/// With more bytes than these unsent, no more of an answer is computed.
const MAX_UNSENT: usize = 256 << 10;
/// How long a client may stay without doing anything: between requests, in the middle of one, or
/// while it should be reading.
const IDLE: Duration = Duration::from_secs(60);
/// How long a client may take for a whole request.
const SLOWEST: Duration = Duration::from_secs(300);
/// How long the rest of a refused request is read. If it were not, the client might not see why.
const LINGER: Duration = Duration::from_secs(5);

/// What is done with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A request is read.
    Reading,
    /// A request is answered.
    Answering,
    /// What is written is sent. Then it is closed.
    Closing,
    /// All is sent. What still comes is dropped until this time.
    Lingering(Instant),
}

/// The connection.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    number: Number,
    parser: Parser,
    state: State,
    unsent: Vec<u8>,
    /// The client has closed its side.
    ended: bool,
    /// The connection is of no use any more.
    broken: bool,
    /// The current request was refused before it was complete.
    lingers: bool,
    keep_alive: bool,
    chunks: bool,
    without_body: bool,
    streaming: bool,
    /// When something has moved last, and when the current request has begun.
    moved: Instant,
    begun: Option<Instant>,
}

impl Connection {
    /// A client that was accepted.
    pub fn new(socket: TcpStream, number: Number) -> Self {
        Self {
            socket,
            number,
            parser: Parser::default(),
            state: State::Reading,
            unsent: Vec::new(),
            ended: false,
            broken: false,
            lingers: false,
            keep_alive: false,
            chunks: false,
            without_body: false,
            streaming: false,
            moved: Instant::now(),
            begun: None,
        }
    }

    /// Reads what is there, and returns whether anything was.
    pub fn receive(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        let (mut taken, had_ended) = (0, self.ended);
        while taken < TURN && self.reads() {
            match self.socket.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => {
                    taken += length;
                    if matches!(self.state, State::Reading | State::Answering) {
                        self.parser.feed(&buffer[..length]);
                        self.begun.get_or_insert_with(Instant::now);
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => break,
                    ErrorKind::Interrupted => {}
                    _ => self.broken = true,
                },
            }
        }
        if taken > 0 {
            self.moved = Instant::now();
        }
        taken > 0 || self.ended != had_ended
    }

    /// Whether more is read.
    fn reads(&self) -> bool {
        let has_room = match self.state {
            State::Reading => true,
            State::Answering => self.parser.kept() < MAX_AHEAD,
            State::Closing => self.lingers,
            State::Lingering(_) => true,
        };
        has_room && !self.ended && !self.broken
    }

    /// Takes the next request. After one, there is no other until it is answered.
    ///
    /// # Errors
    /// Why a request is refused. The connection is closed after the answer.
    pub fn request(&mut self) -> Result<Option<Request>, Refusal> {
        if self.state != State::Reading {
            return Ok(None);
        }
        loop {
            match self.parser.next() {
                Ok(Arrived::Request(request)) => {
                    self.state = State::Answering;
                    (self.chunks, self.keep_alive) = (request.chunks, request.keep_alive);
                    self.without_body = request.method == "HEAD";
                    return Ok(Some(request));
                }
                Ok(Arrived::Expectation) => self.write(b"HTTP/1.1 100 Continue\r\n\r\n"),
                Ok(Arrived::Nothing) => return Ok(None),
                Err(refusal) => {
                    self.refuse();
                    return Err(refusal);
                }
            }
        }
    }

    /// Prepares the answer to a request that is not read to its end.
    pub fn refuse(&mut self) {
        (self.state, self.keep_alive, self.lingers) = (State::Answering, false, true);
        self.without_body = false;
    }

    /// How many bytes are kept of a request that is not complete.
    pub fn kept(&self) -> usize {
        self.parser.kept()
    }

    /// Writes a whole answer.
    pub fn answer(&mut self, status: u16, kind: &str, headers: &str, body: &[u8]) {
        self.head(status, kind, headers, &format!("Content-Length: {}\r\n", body.len()));
        if !self.without_body {
            self.write(body);
        }
        self.done();
    }

    /// Begins an answer of server-sent events.
    pub fn begin_events(&mut self) {
        // Without chunks, the end of the connection is the end of the answer.
        self.keep_alive &= self.chunks;
        let encoding = if self.chunks { "Transfer-Encoding: chunked\r\n" } else { "" };
        self.head(200, "text/event-stream; charset=utf-8", "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n", encoding);
        self.streaming = true;
    }

    /// Writes an event.
    pub fn event(&mut self, data: &Value) {
        self.event_text(&data.to_string());
    }

    fn event_text(&mut self, data: &str) {
        // "data: ", and two ends of lines.
        if self.chunks {
            self.write(format!("{:x}\r\n", data.len() + 8).as_bytes());
        }
        self.write(b"data: ");
        self.write(data.as_bytes());
        self.write(if self.chunks { b"\n\n\r\n" } else { b"\n\n" });
    }

    /// Ends an answer of events. If it is not complete, the connection ends without its last chunk.
    pub fn end_events(&mut self, complete: bool) {
        if complete {
            self.event_text("[DONE]");
        }
        if complete && self.chunks {
            self.write(b"0\r\n\r\n");
        }
        self.keep_alive &= complete;
        self.streaming = false;
        self.done();
    }

    /// Whether events are being sent.
    pub fn is_streaming(&self) -> bool {
        self.streaming
    }

    fn head(&mut self, status: u16, kind: &str, headers: &str, length: &str) {
        self.keep_alive &= !self.ended;
        let close = if self.keep_alive { "" } else { "Connection: close\r\n" };
        let head = format!("HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\n{headers}{length}{close}\r\n", reason(status));
        self.write(head.as_bytes());
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.unsent.is_empty() {
            // From now on the client should be reading.
            self.moved = Instant::now();
        }
        self.unsent.extend(bytes);
    }

    fn done(&mut self) {
        self.state = if self.keep_alive { State::Reading } else { State::Closing };
        self.moved = Instant::now();
        self.begun = self.parser.has_begun().then(Instant::now);
    }

    /// Sends what there is room for, and returns whether anything was sent.
    pub fn send(&mut self) -> bool {
        let mut sent = 0;
        while sent < self.unsent.len() && !self.broken {
            match self.socket.write(&self.unsent[sent..]) {
                Ok(0) => self.broken = true,
                Ok(length) => sent += length,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => break,
                    ErrorKind::Interrupted => {}
                    _ => self.broken = true,
                },
            }
        }
        self.unsent.drain(..sent);
        if sent > 0 {
            self.moved = Instant::now();
        }
        if self.state == State::Closing && self.unsent.is_empty() && self.lingers {
            // If it fails, the client has left.
            self.broken |= self.socket.shutdown(Shutdown::Write).is_err();
            self.state = State::Lingering(Instant::now() + LINGER);
        }
        sent > 0
    }

    /// Whether so much is unsent that no more should be computed.
    pub fn is_full(&self) -> bool {
        self.unsent.len() > MAX_UNSENT
    }

    /// Whether the connection can be forgotten.
    pub fn is_over(&self, now: Instant) -> bool {
        let idle = now.duration_since(self.moved) > IDLE;
        let slow = self.begun.is_some_and(|begun| now.duration_since(begun) > SLOWEST);
        self.broken
            || match self.state {
                State::Reading => self.ended && self.unsent.is_empty() || slow || idle,
                // A client that closes its side does not wait for the answer.
                State::Answering => self.ended || !self.unsent.is_empty() && idle,
                State::Closing => self.unsent.is_empty() || idle,
                State::Lingering(until) => self.ended || now > until,
            }
    }

    /// Whether it waits for a request, and has done so for a while.
    pub fn is_idle(&self, now: Instant) -> bool {
        let waits = self.state == State::Reading && !self.parser.has_begun() && self.unsent.is_empty();
        waits && now.duration_since(self.moved) > Duration::from_secs(1)
    }

    /// What to wait for.
    pub fn interest(&self) -> Interest {
        Interest { socket: self.number, read: self.reads(), write: !self.unsent.is_empty() }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}
