// SPDX-License-Identifier: Apache-2.0
//! QEMU's own protocol, as far as it is needed here: JSON objects, one a line.
//!
//! ```text
//!   <── {"QMP": …}                            who is there
//!   ──> {"execute": "qmp_capabilities"}       nothing beyond the basics is asked for
//!   ──> {"execute": …, "id": n}
//!   <── {"return": …, "id": n}, or {"error": {"desc": …}, "id": n}
//!   <── {"event": …}                          at any time; skipped
//! ```
//!
//! Not the crate `qapi`: it reads lines of any length, which a hypervisor that a guest has taken over may send, refuses what a
//! newer QEMU says in words that it does not know, and wants a task to run beside. The types of all of QEMU's commands are more
//! code than this.

use magnetar_core::error::{Code, Context, Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};

/// The longest line that is read, in bytes. What we ask for is answered in a few hundred.
const LONGEST: u64 = 64 << 10;

/// A connection on which commands are executed, one at a time.
#[derive(Debug)]
pub struct Qmp<S> {
    stream: BufStream<S>,
    last: u64,
}

/// What may be in a line. Other fields, and new ones, do not matter.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Failure>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    desc: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Qmp<S> {
    /// Waits for the greeting and goes on from there to commands.
    ///
    /// # Errors
    /// `Unavailable` where QEMU has ended, `Internal` where what is there does not speak the protocol.
    pub async fn begin(stream: S) -> Result<Self> {
        let mut qmp = Self { stream: BufStream::new(stream), last: 0 };
        if qmp.line().await?.greeting.is_none() {
            return Err(Error::internal("QEMU does not begin with a greeting"));
        }
        qmp.execute::<Value>("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Executes a command. Not cancel-safe.
    ///
    /// # Errors
    /// `Unavailable` where QEMU has ended, `Internal` with its own words where it refuses.
    pub async fn execute<T: DeserializeOwned>(&mut self, command: &str) -> Result<T> {
        self.last += 1;
        let mut line = json!({ "execute": command, "id": self.last }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).await.context(|| format!("cannot send {command} to QEMU"))?;
        self.stream.flush().await.context(|| format!("cannot send {command} to QEMU"))?;
        loop {
            let line = self.line().await?;
            // Without an id is what QEMU says on its own, or of a line that it could not read.
            match (line.id == Some(self.last), line.answer, line.error) {
                (true, Some(answer), _) => {
                    return serde_json::from_value(answer).map_err(|e| Error::internal(format!("QEMU's answer to {command}: {e}")));
                }
                (_, None, Some(failure)) => return Err(Error::internal(format!("QEMU refuses {command}: {}", failure.desc))),
                (true | false, _, _) => {}
            }
        }
    }

    async fn line(&mut self) -> Result<Line> {
        let mut line = Vec::new();
        (&mut self.stream).take(LONGEST).read_until(b'\n', &mut line).await.context(|| "cannot hear QEMU".into())?;
        if line.last() == Some(&b'\n') {
            return serde_json::from_slice(&line).map_err(|e| Error::internal(format!("QEMU does not speak its protocol: {e}")));
        }
        match line.len() as u64 {
            LONGEST => Err(Error::internal(format!("QEMU sends a line of more than {LONGEST} bytes"))),
            _ => Err(Error::new(Code::Unavailable, "QEMU has closed the connection")),
        }
    }
}

#[cfg(test)]
mod tests;
