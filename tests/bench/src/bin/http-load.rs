// SPDX-License-Identifier: Apache-2.0
//! Asks an HTTP server over some connections at once, each for one thing after the other, and
//! prints the requests per second and the milliseconds of the median and of the 99th of a hundred.
//!
//! It reads answers as HTTP/1.1 frames them (RFC 9112, section 6): by length, or in chunks without
//! trailers. An answer with another status than 200 is an error.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use futures_util::future::try_join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[derive(Debug, Parser)]
struct Options {
    /// The server: an address and a port.
    server: String,
    /// What is asked for.
    #[arg(default_value = "/hello")]
    path: String,
    /// Connections.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// How long, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let begin = Instant::now();
    let end = begin + Duration::from_secs(options.seconds);
    let clients = (0..options.connections).map(|_| client(&options, end));
    let mut times: Vec<Duration> = try_join_all(clients).await?.into_iter().flatten().collect();
    let seconds = begin.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() * part).div_ceil(100).saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1e3);
    println!("{:.0} {:.2} {:.2}", times.len() as f64 / seconds, at(50), at(99));
    Ok(())
}

/// The time of each request of one connection, until `end`.
async fn client(options: &Options, end: Instant) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(&options.server).await.with_context(|| options.server.clone())?;
    stream.set_nodelay(true)?;
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", options.path, options.server);
    let (mut times, mut answer) = (Vec::new(), Vec::new());
    while Instant::now() < end {
        let begin = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        answer.clear();
        while !is_whole(&answer)? {
            ensure!(stream.read_buf(&mut answer).await? > 0, "the server closed the connection: {:?}", String::from_utf8_lossy(&answer));
        }
        times.push(begin.elapsed());
    }
    Ok(times)
}

fn is_whole(answer: &[u8]) -> Result<bool> {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(false) };
    let (head, body) = (std::str::from_utf8(&answer[..head])?.to_ascii_lowercase(), &answer[head + 4..]);
    ensure!(head.starts_with("http/1.1 200 "), "the server answers {head:?}");
    if head.contains("\r\ntransfer-encoding: chunked") {
        return Ok(body.ends_with(b"0\r\n\r\n"));
    }
    match head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        Some(length) => Ok(body.len() >= length.trim().parse()?),
        None => bail!("the answer says neither its length nor that it comes in chunks: {head:?}"),
    }
}
