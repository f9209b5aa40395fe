// SPDX-License-Identifier: Apache-2.0
//! Reports errors of the maker, and of every process that it forks, to the sandbox process.
//!
//! libcontainer passes an error between its processes as the text of its outermost layer ("failed
//! to prepare rootfs"). The cause is only in its log. So errors in the log are sent as
//! [`Answer::Note`]s, which are used when something has failed.

use super::wire::{self, Answer};
use crate::error::{Code, Context, Error, Result};
use libcontainer::error::LibcontainerError;
use std::fmt::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static SOCKET: Mutex<Option<OwnedFd>> = Mutex::new(None);
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// From now on, sends logged errors and panics through `socket`.
pub fn start(socket: OwnedFd) {
    set_socket(Some(socket));
    // Only the first call has an effect, and there is only one.
    let _first = tracing::subscriber::set_global_default(Notes);
    std::panic::set_hook(Box::new(|panic| failed(Error::internal(format!("libcontainer panicked: {panic}")))));
}

fn set_socket(socket: Option<OwnedFd>) {
    *SOCKET.lock().unwrap_or_else(PoisonError::into_inner) = socket;
}

/// Sends an answer to the sandbox process.
pub fn answer(answer: &Answer) {
    if let Some(socket) = &*SOCKET.lock().unwrap_or_else(PoisonError::into_inner) {
        wire::answer(socket, answer);
    }
}

/// Reports a failure.
pub fn failed(error: Error) {
    answer(&Answer::Failed(Error::new(error.code(), wire::cut(error.to_string()))));
}

/// Remembers the next working directory, because libcontainer's log does not name it.
pub fn remember_directory(directory: &Path) {
    let _the_first_counts = DIRECTORY.set(directory.to_owned());
}

/// Sends a note, which may be the cause of a later failure.
pub fn note(text: String) {
    answer(&Answer::Note(wire::cut(text)));
}

/// Has the sandbox process log what an operator should know, although nothing has failed.
pub fn warn(text: String) {
    answer(&Answer::Warning(wire::cut(text)));
}

/// Has the sandbox process run something beside the container that is being made
/// ([`Companions`](super::Companions)), with these descriptors.
///
/// # Errors
/// When it cannot be asked.
pub fn ask_for_companion(asked: serde_json::Value, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let what = || "cannot ask for what the container needs beside it".to_string();
    let socket = SOCKET.lock().unwrap_or_else(PoisonError::into_inner);
    let socket = socket.as_ref().ok_or_else(|| Error::internal(what()))?;
    wire::answer_with(socket, &Answer::Companion(asked), descriptors).context(what)
}

/// Reports that the user's program runs, by closing the socket. Nothing can be reported afterwards.
/// Call it in an executor that is the program itself; others close the socket with execve.
///
/// It closes only this process's copy of the socket and does not shut the socket down, because the
/// maker may not have reported this process yet.
pub fn program_runs() {
    drop(std::panic::take_hook());
    set_socket(None);
}

/// An error with its causes, without repetitions.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// libcontainer's error as one of ours.
pub fn failure(error: LibcontainerError) -> Error {
    let code = match &error {
        LibcontainerError::Exist => Code::AlreadyExists,
        LibcontainerError::NoDirectory => Code::NotFound,
        LibcontainerError::IncorrectStatus(_) => Code::FailedPrecondition,
        LibcontainerError::InvalidID(_)
        | LibcontainerError::InvalidInput(_)
        | LibcontainerError::InvalidSpec(_)
        | LibcontainerError::MissingSpec(_)
        | LibcontainerError::Spec(_) => Code::InvalidArgument,
        _ => Code::Internal,
    };
    Error::new(code, chain(&error))
}

/// Sends errors, drops everything else.
struct Notes;

impl Subscriber for Notes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        if line.0.starts_with("failed to chdir")
            && let Some(directory) = DIRECTORY.get()
        {
            line.record_debug_named("dir", directory);
        }
        note(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A log line: the message first, then the fields.
#[derive(Default)]
struct Line(String);

impl Line {
    fn record_debug_named(&mut self, name: &str, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _written = write!(self.0, " {name}={value:?}");
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.0.insert_str(0, &format!("{value:?}")),
            name => self.record_debug_named(name, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::RecvFlags;

    #[test]
    fn the_maker_can_still_answer_after_the_program_runs() {
        let (ours, theirs) = crate::packet::pair().unwrap();
        let makers = theirs.try_clone().unwrap();
        set_socket(Some(theirs));
        program_runs();
        answer(&Answer::Note("of a process that tells nothing any more".into()));
        wire::answer(&makers, &Answer::Done);
        drop(makers);
        let mut bytes = [0; 64];
        let (length, _) = rustix::net::recv(&ours, &mut bytes[..], RecvFlags::empty()).unwrap();
        assert!(matches!(serde_json::from_slice(&bytes[..length]).unwrap(), Answer::Done));
        assert_eq!(rustix::net::recv(&ours, &mut bytes[..], RecvFlags::empty()).unwrap().0, 0, "every copy is closed");
    }
}
