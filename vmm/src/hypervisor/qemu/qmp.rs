// SPDX-License-Identifier: Apache-2.0
//! QEMU's own protocol, as far as it is needed here: JSON objects, one a line.
//!
//! ```text
//!   <── {"QMP": …}                            who is there
//!   ──> {"execute": "qmp_capabilities"}       nothing beyond the basics is asked for
//!   ──> {"execute": …, "id": n}
//!   <── {"return": …, "id": n}, or {"error": {"desc": …}, "id": n}
//!   <── {"event": …}                          at any time; skipped, but for DEVICE_DELETED
//! ```
//!
//! A descriptor is handed over with the line of the command that wants it (SCM_RIGHTS of unix(7)).
//!
//! Not the crate `qapi`: it reads lines of any length, which a hypervisor that a guest has taken over may send, refuses what a
//! newer QEMU says in words that it does not know, and wants a task to run beside. The types of all of QEMU's commands are more
//! code than this.

use magnetar_core::error::{Code, Context, Error, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;

/// The longest line that is read, in bytes. What we ask for is answered in a few hundred.
const LONGEST: u64 = 64 << 10;

/// A connection on which commands are executed, one at a time.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    last: u64,
    /// What has come of the line that is being read.
    begun: Vec<u8>,
    /// The device whose end was told last.
    deleted: Option<String>,
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
    event: Option<String>,
    data: Option<EventData>,
}

#[derive(Debug, Deserialize)]
struct EventData {
    device: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    #[serde(default)]
    class: String,
    desc: String,
}

/// The class of the error of a command for a device that is not there (QEMU's qapi/error.json).
const NO_SUCH_DEVICE: &str = "DeviceNotFound";

impl Qmp {
    /// Waits for the greeting and goes on from there to commands.
    ///
    /// # Errors
    /// `Unavailable` where QEMU has ended, `Internal` where what is there does not speak the protocol.
    pub async fn begin(stream: UnixStream) -> Result<Self> {
        let mut qmp = Self { stream: BufReader::new(stream), last: 0, begun: Vec::new(), deleted: None };
        if qmp.line().await?.greeting.is_none() {
            return Err(Error::internal("QEMU does not begin with a greeting"));
        }
        qmp.execute::<Value>("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Executes a command that has no arguments. Not cancel-safe.
    ///
    /// # Errors
    /// `Unavailable` where QEMU has ended, `Internal` with its own words where it refuses, `NotFound` for a device that it has not.
    pub async fn execute<T: DeserializeOwned>(&mut self, command: &str) -> Result<T> {
        self.call(command, None, None).await
    }

    /// Executes a command whose answer says nothing, and hands over a descriptor with it, if there is one. Not cancel-safe.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn order(&mut self, command: &str, arguments: Value, descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
        self.call::<Value>(command, Some(arguments), descriptor).await.map(drop)
    }

    /// Has a device removed, and waits until QEMU says that it is gone: with the answer, or after it. Not cancel-safe.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn delete_device(&mut self, id: &str) -> Result<()> {
        self.deleted = None;
        self.order("device_del", json!({ "id": id }), None).await?;
        while self.deleted.as_deref() != Some(id) {
            let line = self.line().await?;
            self.hear(&line);
        }
        Ok(())
    }

    async fn call<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<T> {
        self.last += 1;
        let mut line = json!({ "execute": command, "id": self.last });
        if let Some(arguments) = arguments {
            line["arguments"] = arguments;
        }
        self.send(format!("{line}\n").as_bytes(), descriptor).await.context(|| format!("cannot send {command} to QEMU"))?;
        loop {
            let line = self.line().await?;
            self.hear(&line);
            // Without an id is what QEMU says on its own, or of a line that it could not read.
            match (line.id, line.answer, line.error) {
                (Some(id), Some(answer), _) if id == self.last => {
                    return serde_json::from_value(answer).map_err(|e| Error::internal(format!("QEMU's answer to {command}: {e}")));
                }
                (id, None, Some(failure)) if id.is_none_or(|id| id == self.last) => {
                    let code = if failure.class == NO_SUCH_DEVICE { Code::NotFound } else { Code::Internal };
                    return Err(Error::new(code, format!("QEMU refuses {command}: {}", failure.desc)));
                }
                (_, _, _) => {}
            }
        }
    }

    /// The descriptor goes with the first byte.
    async fn send(&mut self, line: &[u8], descriptor: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
        let stream = self.stream.get_mut();
        let sent = match descriptor {
            None => 0,
            Some(descriptor) => {
                let send = || {
                    let descriptors = [descriptor];
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut message = SendAncillaryBuffer::new(&mut space);
                    message.push(SendAncillaryMessage::ScmRights(&descriptors));
                    Ok(sendmsg(&*stream, &[IoSlice::new(line)], &mut message, SendFlags::NOSIGNAL)?)
                };
                stream.async_io(Interest::WRITABLE, send).await?
            }
        };
        stream.write_all(&line[sent..]).await
    }

    fn hear(&mut self, line: &Line) {
        if line.event.as_deref() == Some("DEVICE_DELETED") {
            self.deleted = line.data.as_ref().and_then(|data| data.device.clone());
        }
    }

    /// Cancel-safe: what was read of a line is not lost.
    async fn line(&mut self) -> Result<Line> {
        let left = LONGEST - self.begun.len() as u64;
        (&mut self.stream).take(left).read_until(b'\n', &mut self.begun).await.context(|| "cannot hear QEMU".into())?;
        let line = std::mem::take(&mut self.begun);
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
