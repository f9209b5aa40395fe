// SPDX-License-Identifier: Apache-2.0
//! The HTTP servers that a module sends requests to. They listen on the node, at the address by
//! which the pod reaches it.
//!
//! hyper is no server for this: it sends trailers only to clients that have asked for them (`TE:
//! trailers`), and the suite's modules have not. The rest is the least of HTTP/1.1 (RFC 9112): one
//! request a connection, bodies with a length or in chunks, and trailers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

use super::spec::{Endpoint, Kind, Mode, Response, Server};

/// The most that a request may have, in bytes.
const LARGEST: u64 = 1 << 20;

/// The servers of one test, which end with this value.
#[derive(Debug)]
pub struct Servers {
    /// The variables of the environment that have their addresses.
    pub addresses: BTreeMap<String, String>,
    _listening: JoinSet<()>,
    /// Ports that nobody else can have meanwhile, and where nobody listens.
    _closed: Vec<TcpSocket>,
}

impl Servers {
    /// Starts them at an address of the node.
    pub async fn start(servers: &[Server], at: IpAddr) -> Result<Self> {
        let (mut addresses, mut listening, mut closed) = (BTreeMap::new(), JoinSet::new(), Vec::new());
        for server in servers {
            let address = match server.kind {
                Kind::Closed => {
                    let socket = TcpSocket::new_v4()?;
                    socket.bind(SocketAddr::new(at, 0))?;
                    let address = socket.local_addr()?;
                    closed.push(socket);
                    address
                }
                Kind::Listening => {
                    let listener = TcpListener::bind((at, 0)).await?;
                    let address = listener.local_addr()?;
                    listening.spawn(serve(listener, server.endpoints.clone().into()));
                    address
                }
            };
            addresses.insert(server.variable(), address.to_string());
        }
        Ok(Self { addresses, _listening: listening, _closed: closed })
    }
}

async fn serve(listener: TcpListener, endpoints: Arc<[Endpoint]>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let endpoints = endpoints.clone();
        connections.spawn(async move {
            // Tests send what is no request as well; their outcome says what was wrong.
            if let Err(error) = answer(stream, &endpoints).await {
                eprintln!("a server of the suite's: {error:#}");
            }
        });
    }
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    trailers: Vec<(String, String)>,
}

async fn answer(stream: TcpStream, endpoints: &[Endpoint]) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let Some(request) = Request::read(&mut BufReader::new(read.take(LARGEST))).await? else { return Ok(()) };
    let endpoint = endpoints.iter().find(|endpoint| endpoint.method == request.method && endpoint.path == request.path);
    write.write_all(&response(&request, endpoint)).await?;
    Ok(write.shutdown().await?)
}

/// What an endpoint answers, or nobody, as it goes over the wire.
fn response(request: &Request, endpoint: Option<&Endpoint>) -> Vec<u8> {
    let plain = |status| Response { status, ..Response::default() };
    let Some(endpoint) = endpoint else { return wire(request, &plain(404), Vec::new(), b"") };
    match endpoint.mode {
        Mode::Static => {
            let headers = endpoint.response.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            wire(request, &endpoint.response, headers, endpoint.response.body.as_bytes())
        }
        Mode::EchoBody => wire(request, &plain(200), Vec::new(), &request.body),
        Mode::EchoHeaders => {
            let mut headers =
                vec![("x-request-method".to_owned(), request.method.clone()), ("x-request-path".to_owned(), request.path.clone())];
            headers.extend(request.headers.iter().map(|(name, value)| (format!("x-echo-{name}"), value.clone())));
            headers.extend(request.trailers.iter().map(|(name, value)| (format!("x-trailer-{name}"), value.clone())));
            wire(request, &plain(200), headers, b"")
        }
    }
}

fn wire(request: &Request, response: &Response, mut headers: Vec<(String, String)>, body: &[u8]) -> Vec<u8> {
    let mut after = Vec::new();
    headers.push(("connection".into(), "close".into()));
    if let Some(chunks) = &response.chunks {
        headers.push(("transfer-encoding".into(), "chunked".into()));
        if !response.trailers.is_empty() {
            headers.push(("trailer".into(), response.trailers.keys().map(String::as_str).collect::<Vec<_>>().join(", ")));
        }
        for chunk in chunks {
            after.extend(format!("{:x}\r\n{chunk}\r\n", chunk.len()).into_bytes());
        }
        after.extend(b"0\r\n");
        after.extend(fields(response.trailers.iter()).into_bytes());
        after.extend(b"\r\n");
    } else {
        headers.push(("content-length".into(), body.len().to_string()));
        after.extend(body);
    }
    let head = format!("HTTP/1.1 {} \r\n{}\r\n", response.status, fields(headers.iter().map(|(name, value)| (name, value))));
    let mut bytes = head.into_bytes();
    if request.method != "HEAD" {
        bytes.extend(after);
    }
    bytes
}

fn fields<'a>(these: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    these.map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

type Reader<R> = BufReader<tokio::io::Take<R>>;

impl Request {
    /// Reads one; none from a client that has closed the connection before.
    async fn read<R: tokio::io::AsyncRead + Unpin>(from: &mut Reader<R>) -> Result<Option<Self>> {
        let head = section(from).await?;
        if head.is_empty() {
            return Ok(None);
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut fields);
        ensure!(parsed.parse(&head)?.is_complete(), "an incomplete request: {:?}", String::from_utf8_lossy(&head));
        let headers = owned(parsed.headers)?;
        let mut request = Self {
            method: parsed.method.unwrap_or_default().to_owned(),
            path: parsed.path.unwrap_or_default().to_owned(),
            headers,
            body: Vec::new(),
            trailers: Vec::new(),
        };
        let value = |name: &str| request.headers.iter().find(|(is, _)| is == name).map(|(_, value)| value.clone());
        if value("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            loop {
                let mut line = String::new();
                from.read_line(&mut line).await?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(size, 16).with_context(|| format!("the size of a chunk: {line:?}"))?;
                if size == 0 {
                    break;
                }
                request.body.extend(exactly(from, size).await?);
                ensure!(exactly(from, 2).await? == b"\r\n", "a chunk has no end");
            }
            let bytes = section(from).await?;
            let mut fields = [httparse::EMPTY_HEADER; 64];
            if let httparse::Status::Complete((_, trailers)) = httparse::parse_headers(&bytes, &mut fields)? {
                request.trailers = owned(trailers)?;
            }
        } else if let Some(length) = value("content-length") {
            request.body = exactly(from, length.parse()?).await?;
        }
        Ok(Some(request))
    }
}

/// Lines up to an empty one, which is the last; nothing at the end.
async fn section<R: tokio::io::AsyncRead + Unpin>(from: &mut Reader<R>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let begin = bytes.len();
        if from.read_until(b'\n', &mut bytes).await? == 0 {
            if bytes.is_empty() {
                return Ok(bytes);
            }
            bail!("it ends after {:?}", String::from_utf8_lossy(&bytes));
        }
        if bytes.get(begin..) == Some(b"\r\n") {
            return Ok(bytes);
        }
    }
}

async fn exactly<R: tokio::io::AsyncRead + Unpin>(from: &mut Reader<R>, size: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size.min(usize::try_from(LARGEST)?)];
    from.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn owned(these: &[httparse::Header<'_>]) -> Result<Vec<(String, String)>> {
    these.iter().map(|field| Ok((field.name.to_ascii_lowercase(), String::from_utf8(field.value.to_vec())?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Request>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(Request::read(&mut BufReader::new(text.as_bytes().take(LARGEST))))
    }

    fn pairs(these: &[(&str, &str)]) -> Vec<(String, String)> {
        these.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn bodies_with_a_length_and_in_chunks_are_read() {
        let plain = read("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").unwrap().unwrap();
        assert_eq!((plain.method.as_str(), plain.path.as_str(), plain.body.as_slice()), ("POST", "/a", b"abc".as_slice()));
        let chunks = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nSum: 7\r\n\r\n";
        let chunked = read(chunks).unwrap().unwrap();
        assert_eq!((chunked.body, chunked.trailers), (b"abc".to_vec(), pairs(&[("sum", "7")])));
        assert_eq!(read("").unwrap(), None);
        for cut in [10, 40, chunks.len() - 2] {
            assert!(read(&chunks[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn an_answer_has_a_length_or_chunks_and_trailers() {
        let request = read("GET / HTTP/1.1\r\nA: b\r\n\r\n").unwrap().unwrap();
        let mut endpoint = Endpoint { method: "GET".into(), path: "/".into(), mode: Mode::EchoHeaders, response: Response::default() };
        let text = |endpoint: Option<&Endpoint>| String::from_utf8(response(&request, endpoint)).unwrap();
        assert!(text(Some(&endpoint)).contains("x-request-path: /\r\nx-echo-a: b\r\n"), "{}", text(Some(&endpoint)));
        endpoint.mode = Mode::Static;
        endpoint.response.chunks = Some(vec!["hello".into()]);
        endpoint.response.trailers.insert("sum".into(), "7".into());
        assert!(text(Some(&endpoint)).ends_with("trailer: sum\r\n\r\n5\r\nhello\r\n0\r\nsum: 7\r\n\r\n"), "{}", text(Some(&endpoint)));
        assert!(text(None).starts_with("HTTP/1.1 404 \r\n"), "{}", text(None));
    }
}
