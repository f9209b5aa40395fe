// SPDX-License-Identifier: Apache-2.0
//! One request of HTTP/1.1 over a connection that is open already, and its answer (RFC 9112).
//!
//! It blocks, as the module does that waits for the answer. A client with an event loop would need
//! a thread, and hand each token over.

use chunked_transfer::Decoder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The longest head of an answer, in bytes.
const MAX_HEAD: u64 = 16 << 10;

/// The most fields in it.
const MAX_FIELDS: usize = 64;

/// The longest line of an answer that comes in lines, in bytes.
const MAX_LINE: u64 = 4 << 20;

/// A connection with what has come through it and was not looked at yet.
type Incoming<C> = Arc<Mutex<BufReader<C>>>;

/// An answer whose head has not been read.
pub struct Awaited<C = UnixStream> {
    incoming: Incoming<C>,
}

/// An answer whose head has come.
pub struct Answer<C = UnixStream> {
    /// Its status code.
    pub status: u16,
    incoming: Incoming<C>,
    body: BufReader<Box<dyn Read + Send>>,
}

/// Sends a request with a JSON body. The server closes the connection after its answer.
///
/// # Errors
/// Those of the connection.
pub fn post(mut connection: UnixStream, path: &str, body: &[u8]) -> io::Result<Awaited> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: model\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes())?;
    connection.write_all(body)?;
    Ok(Awaited::of(connection))
}

impl<C: Read + Send + 'static> Awaited<C> {
    fn of(connection: C) -> Self {
        Self { incoming: Arc::new(Mutex::new(BufReader::new(connection))) }
    }

    /// Waits for the head.
    ///
    /// # Errors
    /// Those of the connection, and `InvalidData` for an answer that is none.
    pub fn answer(self) -> io::Result<Answer<C>> {
        answer(self.incoming)
    }
}

impl Awaited {
    /// Whether the answer has begun, so that it is not waited for.
    pub fn has_begun(&self) -> bool {
        has_come(&self.incoming)
    }
}

/// Whether something can be read without waiting; that includes the end.
fn has_come(incoming: &Incoming<UnixStream>) -> bool {
    let incoming = lock(incoming);
    if !incoming.buffer().is_empty() {
        return true;
    }
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // If it cannot be asked, reading has the error.
    poll(&mut [PollFd::new(incoming.get_ref(), PollFlags::IN)], Some(&now)) != Ok(0)
}

fn lock<C>(incoming: &Incoming<C>) -> MutexGuard<'_, BufReader<C>> {
    incoming.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rest of a connection.
struct Rest<C>(Incoming<C>);

impl<C: Read> Read for Rest<C> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        lock(&self.0).read(into)
    }
}

fn answer<C: Read + Send + 'static>(incoming: Incoming<C>) -> io::Result<Answer<C>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let room = MAX_HEAD - head.len() as u64;
        if (&mut *lock(&incoming)).take(room).read_until(b'\n', &mut head)? == 0 {
            let end = if room == 0 { io::ErrorKind::InvalidData } else { io::ErrorKind::UnexpectedEof };
            return Err(end.into());
        }
    }
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    parsed.parse(&head).map_err(invalid)?;
    let status = parsed.code.ok_or(io::ErrorKind::InvalidData)?;
    let field = |name: &str| parsed.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value);
    let is_chunked = field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case(b"chunked"));
    let length = field("content-length").map(|value| std::str::from_utf8(value).ok().and_then(|value| value.parse().ok()));
    let reader = Rest(incoming.clone());
    let body: Box<dyn Read + Send> = match length {
        _ if is_chunked => Box::new(Decoder::new(reader)),
        Some(length) => Box::new(reader.take(length.ok_or(io::ErrorKind::InvalidData)?)),
        None => Box::new(reader),
    };
    Ok(Answer { status, incoming, body: BufReader::new(body) })
}

impl<C> Answer<C> {
    /// The rest of the answer.
    ///
    /// # Errors
    /// Those of the connection; `InvalidData` if it is longer than `most` bytes.
    pub fn read(&mut self, most: u64) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        (&mut self.body).take(most + 1).read_to_end(&mut body)?;
        if body.len() as u64 > most { Err(io::ErrorKind::InvalidData.into()) } else { Ok(body) }
    }

    /// The next line without its end; `None` at the end of the answer.
    ///
    /// # Errors
    /// Those of the connection; `InvalidData` for a line that is too long.
    pub fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        if (&mut self.body).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.len() as u64 == MAX_LINE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let end = line.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
        line.truncate(end);
        Ok(Some(line))
    }
}

impl Answer {
    /// Whether some of the rest has come, so that it is not waited for.
    pub fn has_come(&self) -> bool {
        !self.body.buffer().is_empty() || has_come(&self.incoming)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(text: &str) -> io::Result<Answer<io::Cursor<Vec<u8>>>> {
        Awaited::of(io::Cursor::new(text.as_bytes().to_vec())).answer()
    }

    #[test]
    fn an_answer_has_a_length_or_chunks_or_ends_with_its_connection() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nhello",
        ] {
            let mut answer = said(text).unwrap();
            assert_eq!((answer.status, answer.read(5).unwrap()), (200, b"hello".to_vec()), "{text}");
            assert!(said(text).unwrap().read(4).is_err());
        }
    }

    #[test]
    fn what_has_not_come_is_known_without_waiting() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let awaited = post(ours, "/", b"{}").unwrap();
        assert!(!awaited.has_begun());
        theirs.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n4\r\ntwo\n\r\n").unwrap();
        assert!(awaited.has_begun());
        let mut answer = awaited.answer().unwrap();
        for line in [b"one", b"two"] {
            assert!(answer.has_come());
            assert_eq!(answer.line().unwrap().unwrap(), line);
        }
        assert!(!answer.has_come());
        theirs.write_all(b"0\r\n\r\n").unwrap();
        assert!(answer.has_come());
        assert_eq!(answer.line().unwrap(), None);
    }

    #[test]
    fn lines_come_one_by_one() {
        let mut answer = said("HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n7\r\none\r\ntw\r\n3\r\no\n\n\r\n0\r\n\r\n").unwrap();
        assert_eq!(answer.status, 503);
        let mut lines = Vec::new();
        while let Some(line) = answer.line().unwrap() {
            lines.push(String::from_utf8(line).unwrap());
        }
        assert_eq!(lines, ["one", "two", ""]);
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "a".repeat(MAX_HEAD as usize));
        for text in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", &endless] {
            assert!(said(text).is_err(), "{text:.40}");
        }
        let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "a".repeat(MAX_LINE as usize + 1));
        assert!(said(&long).unwrap().line().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(
            head in proptest::sample::select(vec!["", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]), rest in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            if let Ok(mut answer) = Awaited::of(io::Cursor::new([head.as_bytes(), &rest].concat())).answer() {
                while let Ok(Some(_)) = answer.line() {}
            }
        }
    }
}
