// SPDX-License-Identifier: Apache-2.0
//! The messages between a container's process and the pod's process, about models.
//!
//! Each request has one answer, in order. What the container says is hostile input: a message has a
//! fixed form and a bounded length.

use super::metadata::LoadOptions;
use magnetar_core::packet;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The longest message, in bytes.
const MAX_MESSAGE: usize = 16 << 10;

/// The longest text in a message, in bytes. JSON may need six for one.
const MAX_TEXT: usize = MAX_MESSAGE / 8;

/// What a container's process asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// To load a model, or to load it again if it was loaded with other options.
    Load {
        /// The number of the model, in the order of their names.
        model: usize,
        /// How it is loaded.
        options: LoadOptions,
    },
    /// For a connection to the engine of a loaded model.
    Connect {
        /// The number of the model.
        model: usize,
    },
}

/// What the pod's process answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The model is loaded.
    Loaded,
    /// The packet has the connection.
    Connected,
    /// It could not be done.
    Failed(String),
    /// Nobody asked: a model takes long to load. A line for the container's log.
    Loading(String),
    /// Nobody asked: the engine of a model has ended by itself.
    Died(String),
}

/// Why a message could not be received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveError {
    /// There is none yet.
    None,
    /// The other side is gone, or the kernel has failed.
    Gone,
    /// It is no message of this version.
    Invalid,
}

/// Sends a message. The receiver may be gone: it hears nothing then.
///
/// # Errors
/// The kernel's error.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let bytes = serde_json::to_vec(message).map_err(|_| Errno::INVAL)?;
    if bytes.len() > MAX_MESSAGE { Err(Errno::MSGSIZE) } else { packet::send(socket, &bytes, descriptors) }
}

/// Receives a message. Whether to wait for it says the socket.
///
/// # Errors
/// Why there is none.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Vec<OwnedFd>), ReceiveError> {
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        match packet::receive(&socket, &mut buffer, RecvFlags::empty()) {
            Ok((0, _)) => return Err(ReceiveError::Gone),
            Ok((length, descriptors)) => {
                return serde_json::from_slice(&buffer[..length]).map(|message| (message, descriptors)).map_err(|_| ReceiveError::Invalid);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(ReceiveError::None),
            Err(_) => return Err(ReceiveError::Gone),
        }
    }
}

/// Shortens a text so that it fits into a message.
pub fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_received_as_they_were_sent() {
        let (ours, theirs) = packet::pair().unwrap();
        assert_eq!(receive::<Request>(&ours).unwrap_err(), ReceiveError::None);
        let options = LoadOptions { ctx_size: Some(4096), embedding: true, ..LoadOptions::default() };
        for request in [Request::Load { model: 0, options }, Request::Connect { model: 3 }] {
            send(&theirs, &request, &[]).unwrap();
            assert_eq!(receive::<Request>(&ours).unwrap().0, request);
        }
        packet::send(&theirs, b"{\"load\":{\"model\":0,\"options\":{\"arguments\":\"--host\"}}}", &[]).unwrap();
        assert_eq!(receive::<Request>(&ours).unwrap_err(), ReceiveError::Invalid);
        drop(theirs);
        assert_eq!(receive::<Request>(&ours).unwrap_err(), ReceiveError::Gone);
    }

    #[test]
    fn the_longest_text_fits() {
        let text = cut("\u{1}é".repeat(MAX_MESSAGE));
        assert!(serde_json::to_vec(&Reply::Failed(text)).unwrap().len() < MAX_MESSAGE);
    }
}
