// SPDX-License-Identifier: Apache-2.0
//! One request of HTTP/1.1 over a connection that is open already, and its answer (RFC 9112).
//!
//! It blocks, as the module does that waits for the answer. A client with an event loop would need
//! a thread, and hand each token over.

use chunked_transfer::Decoder;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

/// The longest head of an answer, in bytes.
const MAX_HEAD: u64 = 16 << 10;

/// The most fields in it.
const MAX_FIELDS: usize = 64;

/// The longest line of an answer that comes in lines, in bytes.
const MAX_LINE: u64 = 4 << 20;

/// An answer whose head has come.
pub struct Answer {
    /// Its status code.
    pub status: u16,
    body: BufReader<Box<dyn Read + Send>>,
}

/// Sends a request with a JSON body, and waits for the head of the answer. The server closes the
/// connection after it.
///
/// # Errors
/// Those of the connection, and `InvalidData` for an answer that is none.
pub fn post(mut connection: UnixStream, path: &str, body: &[u8]) -> io::Result<Answer> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: model\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes())?;
    connection.write_all(body)?;
    answer(connection)
}

fn answer(connection: impl Read + Send + 'static) -> io::Result<Answer> {
    let mut reader = BufReader::new(connection);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let room = MAX_HEAD - head.len() as u64;
        if (&mut reader).take(room).read_until(b'\n', &mut head)? == 0 {
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
    let body: Box<dyn Read + Send> = match length {
        _ if is_chunked => Box::new(Decoder::new(reader)),
        Some(length) => Box::new(reader.take(length.ok_or(io::ErrorKind::InvalidData)?)),
        None => Box::new(reader),
    };
    Ok(Answer { status, body: BufReader::new(body) })
}

impl Answer {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(text: &str) -> io::Result<Answer> {
        answer(io::Cursor::new(text.as_bytes().to_vec()))
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
            if let Ok(mut answer) = answer(io::Cursor::new([head.as_bytes(), &rest].concat())) {
                while let Ok(Some(_)) = answer.line() {}
            }
        }
    }
}
