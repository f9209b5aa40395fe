// SPDX-License-Identifier: Apache-2.0
//! A client over TCP: sends its second argument to the server that its first argument names, and
//! prints the answer. The standard library uses the sockets of WASI 0.2.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    process::ExitCode,
};

fn main() -> ExitCode {
    let words: Vec<_> = env::args().skip(1).collect();
    let [server, text] = words.as_slice() else {
        eprintln!("usage: connect HOST:PORT TEXT");
        return ExitCode::from(2);
    };
    match ask(server, text) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{server}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Sends all of `text`, and returns all of the answer.
fn ask(server: &str, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
