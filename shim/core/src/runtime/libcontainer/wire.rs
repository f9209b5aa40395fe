// SPDX-License-Identifier: Apache-2.0
//! The messages between the sandbox process and the maker.
//!
//! ```text
//! fd 0 of the maker   a memory file with one Request: it may be as large as a process's environment
//! fd 1                a packet socket: the container's streams come in, each packet out is an Answer
//! ```
//!
//! The maker's children inherit the socket until they run the user's program. So the end of the
//! socket means that the program runs, and an [`Answer::Failed`] before it is the reason why it
//! does not.

use super::Images;
use crate::error::{Code, Error};
use crate::ids::ContainerId;
use crate::packet;
use crate::stdio::ChildStreams;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The first argument of a maker.
pub const FLAG: &str = "--make-container";
/// The longest answer in bytes. Longer ones are truncated.
pub const MAX_ANSWER: usize = 8192;
/// The longest text in an answer, in bytes. JSON may need six bytes for one.
const MAX_TEXT: usize = MAX_ANSWER / 8;

/// The request to a maker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The directory with the containers' states.
    pub root: PathBuf,
    /// The container.
    pub container: String,
    /// Whether its cgroup is made through systemd.
    pub systemd_cgroup: bool,
    /// Where to ask for the container's image.
    #[serde(default)]
    pub images: Option<Images>,
    /// The task.
    pub task: Task,
}

/// A maker's task.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// Makes the container; its init then waits.
    Create {
        /// The OCI bundle.
        bundle: PathBuf,
        /// Where its terminal's master goes, if it is to have one.
        console: Option<PathBuf>,
    },
    /// Runs the hooks after the start.
    Started,
    /// Starts another process in the container.
    Exec {
        /// `process` of the OCI specification, as JSON.
        process: String,
        /// Where its terminal's master goes, if it is to have one.
        console: Option<PathBuf>,
    },
    /// Freezes (`true`) or thaws the container.
    Freeze(bool),
    /// Changes limits: `linux.resources` of the OCI specification, as JSON.
    Update(String),
    /// Kills the container and removes its state.
    Delete,
}

/// An answer; each packet has one.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// A logged error, which may be the cause of a later failure.
    Note(String),
    /// What an operator should know, although nothing has failed.
    Warning(String),
    /// The process was made.
    Made(Making),
    /// The task is done.
    Done,
    /// Nothing was done: it is a task for the other maker.
    ForOther,
    /// The container needs something beside it ([`super::Companions`]). The packet has descriptors.
    Companion(Value),
    /// The task failed.
    #[serde(with = "FailureDef")]
    Failed(Error),
}

/// Data about a process that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Making {
    /// Its id on the host.
    pub pid: u32,
    /// The host's id of the user that it runs as.
    pub owner: u32,
    /// Whether [`Task::Started`] has anything to do.
    pub hooks_after_start: bool,
}

/// The form of an error on the wire, with its code.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Error")]
struct FailureDef {
    #[serde(with = "CodeDef", getter = "Error::code")]
    code: Code,
    #[serde(getter = "ToString::to_string")]
    message: String,
}

impl From<FailureDef> for Error {
    fn from(failure: FailureDef) -> Self {
        Error::new(failure.code, failure.message)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Code")]
enum CodeDef {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    Unimplemented,
    Unavailable,
    DeadlineExceeded,
    ResourceExhausted,
    PermissionDenied,
    Internal,
}

/// The directory of a container's adapted bundle. Names of containers never begin with a dot.
pub fn bundle_dir(root: &Path, container: &ContainerId) -> PathBuf {
    root.join(format!(".{container}.bundle"))
}

/// Sends a process's streams, before the maker is started that will receive them.
///
/// # Errors
/// The kernel's error.
pub fn send_streams(socket: impl AsFd, streams: &ChildStreams) -> Result<(), Errno> {
    packet::send(socket, b"s", &[streams.stdin.as_fd(), streams.stdout.as_fd(), streams.stderr.as_fd()])
}

/// Receives the streams that were sent before, if there are any.
///
/// # Errors
/// The kernel's error.
pub fn receive_streams(socket: impl AsFd) -> Result<Option<ChildStreams>, Errno> {
    let mut fds = match packet::receive(socket, &mut [0], RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN) => return Ok(None),
        received => received?.1.into_iter(),
    };
    match (fds.next(), fds.next(), fds.next()) {
        (Some(stdin), Some(stdout), Some(stderr)) => Ok(Some(ChildStreams { stdin, stdout, stderr })),
        _ => Err(Errno::BADMSG),
    }
}

/// Sends an answer. It is no error if the receiver is gone.
pub fn answer(socket: impl AsFd, answer: &Answer) {
    if let Ok(bytes) = serde_json::to_vec(answer) {
        let _unheard = rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL);
    }
}

/// Sends an answer with descriptors.
///
/// # Errors
/// Those of [`packet::send`]; `EMSGSIZE` for an answer that is longer than [`MAX_ANSWER`].
pub fn answer_with(socket: impl AsFd, answer: &Answer, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let bytes = serde_json::to_vec(answer).map_err(|_| Errno::INVAL)?;
    if bytes.len() > MAX_ANSWER { Err(Errno::MSGSIZE) } else { packet::send(socket, &bytes, descriptors) }
}

/// Truncates `text` so that it fits into an answer.
pub fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(answer: &Answer) -> Answer {
        serde_json::from_slice(&serde_json::to_vec(answer).unwrap()).unwrap()
    }

    #[test]
    fn an_error_keeps_its_code() {
        let Answer::Failed(error) = round(&Answer::Failed(Error::not_found("no such program"))) else { panic!("another answer") };
        assert_eq!((error.code(), error.to_string().as_str()), (Code::NotFound, "no such program"));
    }

    #[test]
    fn the_longest_answer_fits() {
        let text = cut("\u{1}é".repeat(MAX_ANSWER));
        assert!(serde_json::to_vec(&Answer::Failed(Error::internal(text))).unwrap().len() < MAX_ANSWER);
    }

    #[test]
    fn streams_are_received_if_they_were_sent() {
        let (ours, theirs) = packet::pair().unwrap();
        assert!(receive_streams(&theirs).unwrap().is_none());
        send_streams(&ours, &ChildStreams::null().unwrap()).unwrap();
        assert!(receive_streams(&theirs).unwrap().is_some());
        answer(&theirs, &Answer::Done);
        drop(theirs);
        let mut bytes = [0; 64];
        let (length, _) = rustix::net::recv(&ours, &mut bytes[..], RecvFlags::empty()).unwrap();
        assert!(matches!(serde_json::from_slice(&bytes[..length]).unwrap(), Answer::Done));
        assert_eq!(rustix::net::recv(&ours, &mut bytes[..], RecvFlags::empty()).unwrap().0, 0);
    }
}
