// SPDX-License-Identifier: Apache-2.0
use super::*;

fn parser(text: &str) -> Parser {
    let mut parser = Parser::default();
    parser.feed(text.as_bytes());
    parser
}

fn request(text: &str) -> Request {
    match parser(text).next() {
        Ok(Arrived::Request(request)) => request,
        other => panic!("{other:?}"),
    }
}

fn status(text: &str) -> u16 {
    parser(text).next().unwrap_err().status
}

#[test]
fn a_request_is_read_whatever_pieces_it_comes_in() {
    let text = "POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nhost:b\r\n\r\n";
    let expected = Request { method: "POST".into(), path: "/v1/x".into(), chunks: true, keep_alive: true, body: b"hello".to_vec() };
    for size in 1..text.len() {
        let (mut parser, mut requests) = (Parser::default(), Vec::new());
        for piece in text.as_bytes().chunks(size) {
            parser.feed(piece);
            while let Arrived::Request(request) = parser.next().unwrap() {
                requests.push(request);
            }
        }
        assert_eq!(requests.len(), 2, "{size}");
        assert_eq!(requests[0], expected);
        assert_eq!((requests[1].path.as_str(), requests[1].body.len()), ("/", 0));
        assert!(!parser.has_begun());
    }
}

#[test]
fn chunks_become_a_body() {
    let text = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: z\r\n\r\n";
    for size in 1..text.len() {
        let mut parser = Parser::default();
        let mut bodies = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            parser.feed(piece);
            if let Arrived::Request(request) = parser.next().unwrap() {
                bodies.push(request.body);
            }
        }
        assert_eq!(bodies, [b"hello world"], "{size}");
    }
}

#[test]
fn small_chunks_take_no_longer_than_large_ones() {
    let mut parser = parser("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    // With a move of all that follows for each of them, this would take minutes.
    parser.feed("1\r\nx\r\n".repeat(400_000).as_bytes());
    assert_eq!(parser.next(), Ok(Arrived::Nothing));
    parser.feed(b"0\r\n\r\n");
    assert!(matches!(parser.next(), Ok(Arrived::Request(request)) if request.body.len() == 400_000));
}

#[test]
fn a_client_that_waits_may_go_on() {
    let mut parser = parser("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(parser.next(), Ok(Arrived::Expectation));
    assert_eq!(parser.next(), Ok(Arrived::Nothing));
    parser.feed(b"ok");
    assert!(matches!(parser.next(), Ok(Arrived::Request(request)) if request.body == b"ok"));
}

#[test]
fn connections_stay_as_the_version_and_the_client_say() {
    let with = |version: &str, header: &str| request(&format!("GET / HTTP/{version}\r\nHost: a\r\n{header}\r\n")).keep_alive;
    assert!(with("1.1", "") && !with("1.1", "Connection: close\r\n"));
    assert!(!with("1.0", "") && with("1.0", "Connection: x, Keep-Alive\r\n"));
    assert!(!request("GET http://a/b?c HTTP/1.0\r\n\r\n").chunks);
    assert_eq!(request("GET http://a/b?c HTTP/1.0\r\n\r\n").path, "/b");
}

#[test]
fn what_could_be_understood_in_two_ways_is_refused() {
    let post = |headers: &str| status(&format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n"));
    assert_eq!(post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400);
    assert_eq!(post("Content-Length: 5\r\nContent-Length: 6\r\n"), 400);
    for length in ["-1", "+1", "1e3", "", "0x5", "5 5"] {
        assert_eq!(post(&format!("Content-Length: {length}\r\n")), 400, "{length}");
    }
    assert_eq!(post(" folded: x\r\n"), 400);
    assert_eq!(post("Content-Length : 5\r\n"), 400);
    assert_eq!(post("nothing\r\n"), 400);
    assert_eq!(post("Transfer-Encoding: gzip, chunked\r\n"), 501);
    assert_eq!(post("Expect: cake\r\n"), 417);
    assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400);
    assert_eq!(status("GET / HTTP/2.0\r\n\r\n"), 505);
    for line in ["", "GET", "GET /", "GET  / HTTP/1.1", "G\tT / HTTP/1.1", "GET / FTP/1.1"] {
        assert_eq!(status(&format!("{line} \r\nHost: a\r\n\r\n")), 400, "{line}");
    }
}

#[test]
fn nothing_is_kept_without_a_limit() {
    let mut long = parser("GET / HTTP/1.1\r\n");
    long.feed(&vec![b'a'; MAX_HEAD]);
    assert_eq!(long.next().unwrap_err().status, 431);
    let many = "a: b\r\n".repeat(MAX_HEADERS + 1);
    assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")), 431);
    let post = |headers: &str| status(&format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}"));
    assert_eq!(post("Content-Length: 10485760\r\n\r\n"), 413);
    assert_eq!(post("Content-Length: 99999999999999999999999\r\n\r\n"), 413);
    assert_eq!(post("Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"), 413);
    assert_eq!(post("Transfer-Encoding: chunked\r\n\r\n800001\r\n"), 413);
}

#[test]
fn chunks_that_lie_are_refused() {
    let post = |chunks: &str| status(&format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
    for chunks in ["x\r\n", "\r\n", "-1\r\n", "123456789\r\n", "1\r\nab\r\n"] {
        assert_eq!(post(chunks), 400, "{chunks:?}");
    }
    assert_eq!(post(&"a".repeat(MAX_CHUNK_LINE)), 400);
    assert_eq!(post(&format!("0\r\n{}", "a: b\r\n".repeat(2000))), 431);
}

#[test]
fn any_bytes_are_a_request_or_are_refused() {
    let text = "POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.0\r\n\r\n";
    let mut random = Random(1);
    for _ in 0..20_000 {
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.below(256) as u8,
                1 => drop(bytes.drain(at..(at + random.below(9)).min(bytes.len()))),
                _ => bytes.insert(at, b"\r\n :;0f\0"[random.below(8)]),
            }
        }
        let mut parser = Parser::default();
        'stream: while !bytes.is_empty() {
            let length = 1 + random.below(bytes.len());
            parser.feed(&bytes.drain(..length).collect::<Vec<_>>());
            loop {
                match parser.next() {
                    Ok(Arrived::Nothing) => break,
                    Ok(Arrived::Request(request)) => assert!(request.body.len() <= text.len() * 2),
                    Ok(Arrived::Expectation) => {}
                    Err(Refusal { status, .. }) => {
                        assert!((400..=505).contains(&status));
                        break 'stream;
                    }
                }
            }
        }
    }
}

/// Numbers that look random, and are the same each time (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
