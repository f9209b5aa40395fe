// SPDX-License-Identifier: Apache-2.0
//! HTTP/1.1 as a server reads it: requests out of a stream of bytes that arrives in pieces.
//!
//! ```text
//! feed ──> head ──> body by its length, or in chunks ──> Request
//! ```
//!
//! All that a client sends is bounded before it is kept. Where two readers could understand a
//! request differently (two lengths, a folded header), it is refused.

/// The most bytes of a request line and its headers.
const MAX_HEAD: usize = 32 << 10;
/// The most headers.
const MAX_HEADERS: usize = 100;
/// The most bytes of a line that says how long a chunk is, and of all trailers.
const MAX_CHUNK_LINE: usize = 4 << 10;
/// The most bytes of a body. Prompts are text.
pub const MAX_BODY: usize = 8 << 20;

/// A complete request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// As the client writes it, which is in capitals.
    pub method: String,
    /// Without what follows a question mark.
    pub path: String,
    /// Whether an answer may come in chunks, as in HTTP/1.1.
    pub chunks: bool,
    /// Whether the client wants to send another request afterwards.
    pub keep_alive: bool,
    /// Complete, and not in chunks any more.
    pub body: Vec<u8>,
}

/// What has arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// A request.
    Request(Request),
    /// A client waits for `100 Continue` before it sends a body.
    Expectation,
    /// More bytes are needed.
    Nothing,
}

/// A request that is refused. Nothing that follows it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer.
    pub status: u16,
    /// Why, in words.
    pub why: &'static str,
}

/// The stream of one client.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    /// How much of the buffer was read. Removing each small part of it would move all the rest.
    read: usize,
    request: Option<Request>,
    body: Body,
}

#[derive(Debug, Default)]
enum Body {
    /// The head comes first.
    #[default]
    Head,
    /// So many bytes are missing.
    Length(usize),
    /// The line with the length of a chunk comes next.
    ChunkLine,
    /// So many bytes of a chunk are missing, and the end of its line.
    Chunk(usize),
    /// Lines come until an empty one; so many bytes of them were there.
    Trailers(usize),
}

/// What the headers say.
#[derive(Default)]
struct Headers {
    length: Option<usize>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects: bool,
    host: bool,
}

impl Parser {
    /// Adds bytes that have arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// How many bytes are kept of requests that are not complete.
    pub fn kept(&self) -> usize {
        self.unread().len() + self.request.as_ref().map_or(0, |request| request.body.len())
    }

    /// Whether a request has begun.
    pub fn has_begun(&self) -> bool {
        self.kept() > 0 || self.request.is_some()
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.read..).unwrap_or_default()
    }

    /// Takes what is complete.
    ///
    /// # Errors
    /// When the request is refused.
    pub fn next(&mut self) -> Result<Arrived, Refusal> {
        let arrived = self.arrived();
        self.buffer.drain(..self.read);
        self.read = 0;
        arrived
    }

    fn arrived(&mut self) -> Result<Arrived, Refusal> {
        if matches!(self.body, Body::Head) {
            let expects = match self.head()? {
                None => return Ok(Arrived::Nothing),
                Some(expects) => expects,
            };
            // A client that has sent some of the body does not wait.
            if expects && self.unread().is_empty() && !matches!(self.body, Body::Length(0)) {
                return Ok(Arrived::Expectation);
            }
        }
        if !self.read_body()? {
            return Ok(Arrived::Nothing);
        }
        self.body = Body::Head;
        Ok(self.request.take().map_or(Arrived::Nothing, Arrived::Request))
    }

    /// Reads the head, and returns whether the client waits for permission to go on.
    fn head(&mut self) -> Result<Option<bool>, Refusal> {
        // Some clients send an empty line after a body.
        while self.unread().starts_with(b"\r\n") {
            self.read += 2;
        }
        let unread = self.unread();
        let window = &unread[..unread.len().min(MAX_HEAD)];
        let Some(end) = find(window, b"\r\n\r\n") else {
            if unread.len() >= MAX_HEAD {
                return refuse(431, "the headers are too long");
            }
            return Ok(None);
        };
        let Ok(text) = std::str::from_utf8(&window[..end]) else { return refuse(400, "the headers are no text") };
        let mut lines = text.split("\r\n");
        let mut request = request_line(lines.next().unwrap_or_default())?;
        let headers = headers(lines)?;
        if request.chunks && !headers.host {
            return refuse(400, "there is no header Host");
        }
        if headers.chunked && headers.length.is_some() {
            return refuse(400, "the body has a length and comes in chunks as well");
        }
        if headers.length.is_some_and(|length| length > MAX_BODY) {
            return refuse(413, "the body is longer than 8 MiB");
        }
        request.keep_alive = !headers.close && (request.chunks || headers.keep_alive);
        self.body = if headers.chunked { Body::ChunkLine } else { Body::Length(headers.length.unwrap_or(0)) };
        self.request = Some(request);
        self.read += end + 4;
        Ok(Some(headers.expects))
    }

    /// Reads what is there of the body, and returns whether that is all.
    fn read_body(&mut self) -> Result<bool, Refusal> {
        let Some(request) = &mut self.request else { return Ok(false) };
        loop {
            let unread = self.buffer.get(self.read..).unwrap_or_default();
            match &mut self.body {
                Body::Head => return Ok(false),
                Body::Length(missing) => {
                    let taken = unread.len().min(*missing);
                    request.body.extend(&unread[..taken]);
                    self.read += taken;
                    *missing -= taken;
                    return Ok(*missing == 0);
                }
                Body::ChunkLine => {
                    let Some(line) = line(unread)? else { return Ok(false) };
                    let size = chunk_size(line)?;
                    self.read += line.len() + 2;
                    if request.body.len() + size > MAX_BODY {
                        return refuse(413, "the body is longer than 8 MiB");
                    }
                    self.body = if size == 0 { Body::Trailers(0) } else { Body::Chunk(size) };
                }
                Body::Chunk(0) => {
                    if unread.len() < 2 {
                        return Ok(false);
                    }
                    if !unread.starts_with(b"\r\n") {
                        return refuse(400, "a chunk of the body is longer than it says");
                    }
                    self.read += 2;
                    self.body = Body::ChunkLine;
                }
                Body::Chunk(missing) => {
                    let taken = unread.len().min(*missing);
                    request.body.extend(&unread[..taken]);
                    self.read += taken;
                    *missing -= taken;
                    if *missing > 0 {
                        return Ok(false);
                    }
                }
                Body::Trailers(length) => {
                    let Some(line) = line(unread)? else { return Ok(false) };
                    self.read += line.len() + 2;
                    *length += line.len();
                    if line.is_empty() {
                        return Ok(true);
                    }
                    if *length > MAX_CHUNK_LINE {
                        return refuse(431, "the trailers are too long");
                    }
                }
            }
        }
    }
}

fn refuse<T>(status: u16, why: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, why })
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A line that is complete, without its end.
fn line(unread: &[u8]) -> Result<Option<&[u8]>, Refusal> {
    match find(&unread[..unread.len().min(MAX_CHUNK_LINE)], b"\r\n") {
        Some(end) => Ok(Some(&unread[..end])),
        None if unread.len() >= MAX_CHUNK_LINE => refuse(400, "a line of the body's chunks is too long"),
        None => Ok(None),
    }
}

/// The length of a chunk; what follows it after a semicolon says nothing to us.
fn chunk_size(line: &[u8]) -> Result<usize, Refusal> {
    const WRONG: &str = "the length of a chunk is no hexadecimal number";
    let text = std::str::from_utf8(line).map_err(|_| Refusal { status: 400, why: WRONG })?;
    let digits = text.split(';').next().unwrap_or_default().trim_end_matches([' ', '\t']);
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return refuse(400, WRONG);
    }
    let size = u32::from_str_radix(digits, 16).map_err(|_| Refusal { status: 400, why: WRONG })?;
    // Anything beyond is too long for a body, and the sum stays a number.
    Ok((size as usize).min(MAX_BODY + 1))
}

fn request_line(line: &str) -> Result<Request, Refusal> {
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next()) else {
        return refuse(400, "the first line is no request");
    };
    let chunks = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ if version.starts_with("HTTP/") => return refuse(505, "the version of HTTP is neither 1.0 nor 1.1"),
        _ => return refuse(400, "the first line is no request"),
    };
    if method.is_empty() || !method.bytes().all(|letter| letter.is_ascii_alphabetic()) {
        return refuse(400, "the method is no word");
    }
    // Proxies may write the whole address.
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let path = path.split('?').next().unwrap_or_default();
    Ok(Request { method: method.into(), path: path.into(), chunks, keep_alive: false, body: Vec::new() })
}

fn headers<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Headers, Refusal> {
    let mut headers = Headers::default();
    for (number, line) in lines.enumerate() {
        if number >= MAX_HEADERS {
            return refuse(431, "there are too many headers");
        }
        let Some((name, value)) = line.split_once(':') else { return refuse(400, "a header has no colon") };
        if name.is_empty() || name.bytes().any(|letter| letter.is_ascii_whitespace() || letter.is_ascii_control()) {
            return refuse(400, "a header has no proper name");
        }
        let value = value.trim_matches([' ', '\t']);
        headers.take(&name.to_ascii_lowercase(), value)?;
    }
    Ok(headers)
}

impl Headers {
    fn take(&mut self, name: &str, value: &str) -> Result<(), Refusal> {
        match name {
            "host" => self.host = true,
            "content-length" => {
                let is_number = !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit());
                // A number that is too large for us is too long a body.
                let length = if is_number { value.parse().unwrap_or(usize::MAX) } else { return refuse(400, "the length is no number") };
                if self.length.is_some_and(|other| other != length) {
                    return refuse(400, "there are two lengths");
                }
                self.length = Some(length);
            }
            "transfer-encoding" => {
                if self.chunked || !value.eq_ignore_ascii_case("chunked") {
                    return refuse(501, "the only transfer encoding is chunked");
                }
                self.chunked = true;
            }
            "connection" => {
                for word in value.split(',').map(str::trim) {
                    self.close |= word.eq_ignore_ascii_case("close");
                    self.keep_alive |= word.eq_ignore_ascii_case("keep-alive");
                }
            }
            "expect" => {
                if !value.eq_ignore_ascii_case("100-continue") {
                    return refuse(417, "the only expectation is 100-continue");
                }
                self.expects = true;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
