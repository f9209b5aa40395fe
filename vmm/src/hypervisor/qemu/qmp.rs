// SPDX-License-Identifier: Apache-2.0
//! The part of QEMU's protocol (QMP) that is needed here: JSON objects, one per line.
//!
//! ```text
//!   <── {"QMP": …}                            the greeting
//!   ──> {"execute": "qmp_capabilities"}       no optional capabilities are requested
//!   ──> {"execute": …, "id": n}
//!   <── {"return": …, "id": n}, or {"error": {"desc": …}, "id": n}
//!   <── {"event": …}                          at any time; only DEVICE_DELETED and MIGRATION matter
//! ```
//!
//! A descriptor is passed along with the line of the command that needs it (SCM_RIGHTS of unix(7)).
//!
//! The crate `qapi` is not used. It reads lines of any length, which a compromised hypervisor may
//! send. It rejects messages of a newer QEMU with unknown words. It needs a background task. And
//! the types of all QEMU commands are more code than this.

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

/// The longest line that is read, in bytes. The answers to our commands have a few hundred.
const MAX_LINE: u64 = 64 << 10;

/// A connection on which commands are executed, one at a time.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    last: u64,
    /// The bytes of an incomplete line.
    begun: Vec<u8>,
    /// The device in the last DEVICE_DELETED event.
    deleted: Option<String>,
    /// The status in the last MIGRATION event.
    migration: Option<String>,
    /// QEMU's version, as its greeting has it.
    version: String,
}

/// A line's known fields. Others are ignored.
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
    status: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    #[serde(default)]
    class: String,
    desc: String,
}

/// The error class for a device that does not exist (QEMU's qapi/error.json).
const NO_SUCH_DEVICE: &str = "DeviceNotFound";

impl Qmp {
    /// Waits for the greeting and enters command mode.
    ///
    /// # Errors
    /// `Unavailable` if QEMU has ended, `Internal` if the peer does not speak the protocol.
    pub async fn begin(stream: UnixStream) -> Result<Self> {
        let (deleted, migration) = (None, None);
        let mut qmp = Self { stream: BufReader::new(stream), last: 0, begun: Vec::new(), deleted, migration, version: String::new() };
        let greeting = qmp.line().await?.greeting.ok_or_else(|| Error::internal("QEMU does not begin with a greeting"))?;
        qmp.version = greeting["version"].to_string();
        qmp.execute::<Value>("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Executes a command without arguments. Not cancel-safe.
    ///
    /// # Errors
    /// `Unavailable` if QEMU has ended, `Internal` with QEMU's message if it refuses, `NotFound`
    /// for a device that does not exist.
    pub async fn execute<T: DeserializeOwned>(&mut self, command: &str) -> Result<T> {
        self.call(command, None, None).await
    }

    /// Executes a command with arguments. Not cancel-safe.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn ask<T: DeserializeOwned>(&mut self, command: &str, arguments: Value) -> Result<T> {
        self.call(command, Some(arguments), None).await
    }

    /// Executes a command with an empty answer, and passes a descriptor with it if there is one.
    /// Not cancel-safe.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn order(&mut self, command: &str, arguments: Value, descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
        self.call::<Value>(command, Some(arguments), descriptor).await.map(drop)
    }

    /// QEMU's version, as JSON.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Saves or loads the machine's state by a command, and waits until that is over. The
    /// capability `events` must be on. Not cancel-safe.
    ///
    /// # Errors
    /// As [`execute`](Self::execute); `Internal` with QEMU's reason if it fails.
    pub async fn migrate(&mut self, command: &str, uri: &str) -> Result<()> {
        self.migration = None;
        self.order(command, json!({ "uri": uri }), None).await?;
        loop {
            match self.migration.as_deref() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => break,
                Some(_) | None => {
                    let line = self.line().await?;
                    self.note_event(&line);
                }
            }
        }
        let state: Value = self.execute("query-migrate").await?;
        let reason = state["error-desc"].as_str().unwrap_or("it gives no reason");
        Err(Error::internal(format!("QEMU has not carried out {command}: {reason}")))
    }

    /// Removes a device, and waits for the DEVICE_DELETED event, which may come before or after the
    /// answer. Not cancel-safe.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn delete_device(&mut self, id: &str) -> Result<()> {
        self.deleted = None;
        self.order("device_del", json!({ "id": id }), None).await?;
        while self.deleted.as_deref() != Some(id) {
            let line = self.line().await?;
            self.note_event(&line);
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
            self.note_event(&line);
            // An event has no id, and neither has the error for a line that QEMU could not parse.
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

    /// Sends a line. The descriptor goes with its first byte.
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

    fn note_event(&mut self, line: &Line) {
        let data = line.data.as_ref();
        match line.event.as_deref() {
            Some("DEVICE_DELETED") => self.deleted = data.and_then(|data| data.device.clone()),
            Some("MIGRATION") => self.migration = data.and_then(|data| data.status.clone()),
            Some(_) | None => {}
        }
    }

    /// Reads a line. Cancel-safe: an incomplete line is kept.
    async fn line(&mut self) -> Result<Line> {
        let left = MAX_LINE - self.begun.len() as u64;
        (&mut self.stream).take(left).read_until(b'\n', &mut self.begun).await.context(|| "cannot read from QEMU".into())?;
        let line = std::mem::take(&mut self.begun);
        if line.last() == Some(&b'\n') {
            return serde_json::from_slice(&line).map_err(|e| Error::internal(format!("QEMU does not speak its protocol: {e}")));
        }
        match line.len() as u64 {
            MAX_LINE => Err(Error::internal(format!("QEMU sends a line of more than {MAX_LINE} bytes"))),
            _ => Err(Error::new(Code::Unavailable, "QEMU has closed the connection")),
        }
    }
}

#[cfg(test)]
mod tests;
