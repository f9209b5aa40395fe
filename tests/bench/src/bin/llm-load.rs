// SPDX-License-Identifier: Apache-2.0
//! llm-load SOCKET TOKENS ROUNDS - asks a llama-server as images/oci/wasm/nn/nn.c has a module ask:
//! of each round the milliseconds to the first piece, and the tokens per second from there on.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().collect();
    let [_, socket, tokens, rounds] = &arguments[..] else { anyhow::bail!("usage: llm-load SOCKET TOKENS ROUNDS") };
    let (tokens, rounds): (u32, u32) = (tokens.parse()?, rounds.parse()?);
    while !is_ready(socket) {
        sleep(Duration::from_millis(20));
    }
    for round in 0..rounds {
        let (first, rate) = ask(socket, tokens, round)?;
        println!("{:.2} {rate:.2}", first.as_secs_f64() * 1000.0);
    }
    Ok(())
}

fn is_ready(socket: &str) -> bool {
    let health = || -> Result<String> {
        let mut connection = UnixStream::connect(socket)?;
        connection.write_all(b"GET /health HTTP/1.1\r\nHost: model\r\nConnection: close\r\n\r\n")?;
        Ok(std::io::read_to_string(connection)?)
    };
    health().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn ask(socket: &str, tokens: u32, round: u32) -> Result<(Duration, f64)> {
    let prompt = format!("{round}: one two three four five six seven eight nine ten");
    let request =
        json!({"prompt": prompt, "stream": true, "cache_prompt": true, "temperature": 0.0, "ignore_eos": true, "n_predict": tokens});
    let request = request.to_string();
    let begin = Instant::now();
    let mut connection = UnixStream::connect(socket)?;
    write!(
        connection,
        "POST /completion HTTP/1.1\r\nHost: model\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{request}",
        request.len()
    )?;
    let mut first = None;
    for line in BufReader::new(connection).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let event: Value = serde_json::from_str(data)?;
        if first.is_none() && event["content"] != "" {
            first = Some(Instant::now());
        }
        if event["stop"] == true {
            let (first, end) = (first.context("no piece")?, Instant::now());
            let counted = event["tokens_predicted"].as_u64().context("no count")?;
            ensure!(counted > 1, "{event}");
            return Ok((first - begin, (counted - 1) as f64 / (end - first).as_secs_f64()));
        }
    }
    anyhow::bail!("the answer has no end")
}
