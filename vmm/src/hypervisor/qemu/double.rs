// SPDX-License-Identifier: Apache-2.0
//! A QEMU for the tests: reads commands, and answers each as the test says.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::UnixStream;

/// What the double says to a command.
pub struct Answer {
    /// An event before the answer.
    pub before: Option<Value>,
    /// What it returns, or the class of its error.
    pub outcome: Result<Value, &'static str>,
    /// An event after the answer.
    pub after: Option<Value>,
}

impl Answer {
    /// Success, and nothing else.
    pub fn returns(value: Value) -> Self {
        Self { before: None, outcome: Ok(value), after: None }
    }

    /// The command is refused, with the description `no`.
    pub fn refuses(class: &'static str) -> Self {
        Self { before: None, outcome: Err(class), after: None }
    }
}

/// Serves a connection until it is closed. The greeting has this version. Returns the commands that
/// were received, with their arguments.
pub async fn serve(stream: UnixStream, version: Value, mut answer: impl FnMut(&str, &Value) -> Answer) -> Vec<(String, Value)> {
    let mut stream = BufStream::new(stream);
    let (mut line, mut commands) = (String::new(), Vec::new());
    let mut lines = vec![json!({ "QMP": { "version": version } })];
    loop {
        for line in lines.drain(..) {
            stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        }
        stream.flush().await.unwrap();
        line.clear();
        if stream.read_line(&mut line).await.unwrap() == 0 {
            return commands;
        }
        let command: Value = serde_json::from_str(&line).unwrap();
        let name = command["execute"].as_str().unwrap().to_owned();
        let Answer { before, outcome, after } = answer(&name, &command["arguments"]);
        lines.extend(before);
        lines.push(match outcome {
            Ok(value) => json!({ "return": value, "id": command["id"] }),
            Err(class) => json!({ "error": { "class": class, "desc": "no" }, "id": command["id"] }),
        });
        lines.extend(after);
        commands.push((name, command["arguments"].clone()));
    }
}
