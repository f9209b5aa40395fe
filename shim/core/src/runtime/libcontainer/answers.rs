// SPDX-License-Identifier: Apache-2.0
//! What a maker and the process that it made answer, as the sandbox process hears it.

use super::companions::Asked;
use super::wire::{self, Answer};
use crate::error::{Code, Context, Error, Result};
use crate::packet;
use rustix::net::RecvFlags;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;
use tracing::warn;

/// Our end of the socket.
#[derive(Debug)]
pub struct Answers {
    socket: AsyncFd<OwnedFd>,
    notes: Vec<String>,
    /// What the container needs beside it, if it has asked for something.
    pub asked: Option<Asked>,
}

impl Answers {
    /// The answers that come through `socket`.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn new(socket: OwnedFd) -> Result<Self> {
        let socket = magnetar_sys::readiness::watch(socket).context(|| "cannot watch a socket".into())?;
        Ok(Self { socket, notes: Vec::new(), asked: None })
    }

    /// The final answer, without notes; `None` if the other side ends without one.
    pub async fn last(&mut self) -> Option<Answer> {
        let mut buffer = vec![0; wire::MAX_ANSWER];
        loop {
            let read = |socket: &OwnedFd| Ok(packet::receive(socket, &mut buffer, RecvFlags::DONTWAIT)?);
            let received = self.socket.async_io(tokio::io::Interest::READABLE, read).await;
            let (length, descriptors) = received.ok().filter(|(length, _)| *length > 0)?;
            match serde_json::from_slice(&buffer[..length]) {
                Ok(Answer::Note(note)) => self.notes.push(note),
                Ok(Answer::Warning(text)) => warn!("{text}"),
                Ok(Answer::Companion(what)) => self.asked = Some(Asked { what, descriptors }),
                Ok(answer @ (Answer::Made(_) | Answer::Done | Answer::ForOther | Answer::Failed(_))) => return Some(answer),
                Err(error) => return Some(Answer::Failed(Error::internal(format!("an answer does not parse: {error}")))),
            }
        }
    }

    /// Waits until the user's program runs.
    pub async fn end(mut self) -> Result<()> {
        match self.last().await {
            Some(Answer::Failed(error)) => Err(self.explained(error)),
            Some(Answer::Note(_) | Answer::Warning(_) | Answer::Companion(_) | Answer::Made(_) | Answer::Done | Answer::ForOther)
            | None => Ok(()),
        }
    }

    /// Adds the first note, which is the cause, to an error of libcontainer's outermost layer.
    pub fn explained(&self, error: Error) -> Error {
        match self.notes.first() {
            Some(note) if error.code() == Code::Internal => Error::internal(format!("{error} ({note})")),
            Some(_) | None => error,
        }
    }
}
