// SPDX-License-Identifier: Apache-2.0
//! The errors of calls to containerd.

use std::{io, path::PathBuf, time::Duration};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call to the node failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// containerd's socket cannot be connected to.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket that was tried.
        path: PathBuf,
        /// The transport's error.
        source: tonic::transport::Error,
    },
    /// containerd answered with an error.
    #[error("{call}: {:?}: {}", status.code(), status.message())]
    Call {
        /// The CRI method.
        call: &'static str,
        /// containerd's answer.
        status: Box<tonic::Status>,
    },
    /// containerd did not answer in time.
    #[error("{call}: no answer within {after:?}")]
    Deadline {
        /// The CRI method, or the event that was awaited.
        call: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The answer lacks a part that it must have.
    #[error("{call}: the answer has no {what}")]
    Incomplete {
        /// The CRI method.
        call: &'static str,
        /// The part that is not there.
        what: &'static str,
    },
    /// A file of the node cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A log file is not in the CRI's format.
    #[error("line {line} is not a CRI log line: {text:?}")]
    Log {
        /// Counted from one.
        line: usize,
        /// The line as it is.
        text: String,
    },
    /// The streaming server broke the connection or the protocol.
    #[error("stream: {0}")]
    Stream(String),
    /// The connection to the streaming server failed.
    #[error("stream")]
    WebSocket(#[from] Box<tokio_tungstenite::tungstenite::Error>),
}

impl Error {
    /// The gRPC code of containerd's answer, if it was containerd that refused.
    pub fn code(&self) -> Option<tonic::Code> {
        match self {
            Self::Call { status, .. } => Some(status.code()),
            Self::Connect { .. }
            | Self::Deadline { .. }
            | Self::Incomplete { .. }
            | Self::File { .. }
            | Self::Log { .. }
            | Self::Stream(_)
            | Self::WebSocket(_) => None,
        }
    }

    /// containerd's message, or an empty string.
    pub fn message(&self) -> &str {
        match self {
            Self::Call { status, .. } => status.message(),
            Self::Connect { .. }
            | Self::Deadline { .. }
            | Self::Incomplete { .. }
            | Self::File { .. }
            | Self::Log { .. }
            | Self::Stream(_)
            | Self::WebSocket(_) => "",
        }
    }
}
