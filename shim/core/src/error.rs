// SPDX-License-Identifier: Apache-2.0
//! The library's error: a status code that a caller can match, and a message that a person can
//! read.
//!
//! containerd acts on the code. The message names the subject, what was tried and, if that is
//! known, what to do about it. Adapters convert both to their protocol's status.

use std::fmt;
use std::sync::Arc;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed, in the vocabulary that gRPC and ttrpc share.
///
/// Numbers are those of gRPC (`google/rpc/code.proto`), which ttrpc uses on the wire too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request itself is wrong and will stay wrong.
    InvalidArgument = 3,
    /// The subject does not exist (any more).
    NotFound = 5,
    /// The subject exists already.
    AlreadyExists = 6,
    /// The subject is in a state that excludes the request.
    FailedPrecondition = 9,
    /// This sandboxer, kernel or host cannot do it.
    Unimplemented = 12,
    /// The other side cannot be reached now; trying again may help.
    Unavailable = 14,
    /// It took longer than the caller allowed.
    DeadlineExceeded = 4,
    /// Disk, memory, pids or descriptors ran out.
    ResourceExhausted = 8,
    /// The kernel refused for lack of privilege.
    PermissionDenied = 7,
    /// Anything else that went wrong on our side.
    Internal = 13,
}

impl Code {
    const ALL: [Self; 10] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::FailedPrecondition,
        Self::Unimplemented,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::ResourceExhausted,
        Self::PermissionDenied,
        Self::Internal,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u8 == number)
    }
}

/// A failure: its [`Code`], a complete message, and the operating system's error if that was the
/// cause.
#[derive(Debug, Clone)]
pub struct Error {
    code: Code,
    message: String,
    cause: Option<Arc<std::io::Error>>,
}

impl Error {
    /// An error with an explicit code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None }
    }

    /// [`Code::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// [`Code::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// [`Code::FailedPrecondition`].
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    /// [`Code::Unimplemented`].
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    /// [`Code::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// The code that callers branch on.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The number of the operating system's error, if that was the cause.
    pub fn errno(&self) -> Option<i32> {
        self.cause.as_ref()?.raw_os_error()
    }

    /// Formats the error as one line, for another process of ours: gRPC's number of the code, a
    /// space, the message.
    pub fn to_line(&self) -> String {
        format!("{} {}", self.code as u8, self.message.replace('\n', " "))
    }

    /// Parses a line of [`to_line`](Self::to_line). Any other text becomes the message of an
    /// internal error.
    pub fn from_line(line: &str) -> Self {
        let numbered = line.split_once(' ').and_then(|(number, message)| Some((Code::from_number(number.parse().ok()?)?, message)));
        match numbered {
            Some((code, message)) => Self::new(code, message),
            None => Self::internal(line),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Adds to an operating system's error what was being done.
pub trait Context<T> {
    /// Wraps the failure as `<what>: <cause>`, with the code that the cause implies.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error { code: code_of(&cause), message: format!("{}: {cause}", what()), cause: Some(Arc::new(cause)) })
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(std::io::Error::from).context(what)
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(std::io::Error::from).context(what)
    }
}

fn code_of(cause: &std::io::Error) -> Code {
    use std::io::ErrorKind;
    // The standard library has no kind for these errors.
    if matches!(cause.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
        return Code::ResourceExhausted;
    }
    match cause.kind() {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Code::Unavailable,
        ErrorKind::TimedOut => Code::DeadlineExceeded,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory => Code::ResourceExhausted,
        ErrorKind::ReadOnlyFilesystem => Code::FailedPrecondition,
        _ => Code::Internal,
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let code = match error.code {
            Code::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
            Code::NotFound => ttrpc::Code::NOT_FOUND,
            Code::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
            Code::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
            Code::Unimplemented => ttrpc::Code::UNIMPLEMENTED,
            Code::Unavailable => ttrpc::Code::UNAVAILABLE,
            Code::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
            Code::ResourceExhausted => ttrpc::Code::RESOURCE_EXHAUSTED,
            Code::PermissionDenied => ttrpc::Code::PERMISSION_DENIED,
            Code::Internal => ttrpc::Code::INTERNAL,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.message))
    }
}

impl From<ttrpc::Error> for Error {
    /// The error of a peer's answer, or of a peer that could not be reached.
    fn from(error: ttrpc::Error) -> Self {
        let ttrpc::Error::RpcStatus(status) = error else {
            return Error::new(Code::Unavailable, error.to_string());
        };
        let code = match status.code.enum_value_or_default() {
            ttrpc::Code::INVALID_ARGUMENT => Code::InvalidArgument,
            ttrpc::Code::NOT_FOUND => Code::NotFound,
            ttrpc::Code::ALREADY_EXISTS => Code::AlreadyExists,
            ttrpc::Code::FAILED_PRECONDITION => Code::FailedPrecondition,
            ttrpc::Code::UNIMPLEMENTED => Code::Unimplemented,
            ttrpc::Code::UNAVAILABLE => Code::Unavailable,
            ttrpc::Code::DEADLINE_EXCEEDED => Code::DeadlineExceeded,
            ttrpc::Code::RESOURCE_EXHAUSTED => Code::ResourceExhausted,
            ttrpc::Code::PERMISSION_DENIED => Code::PermissionDenied,
            _ => Code::Internal,
        };
        Error::new(code, status.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_cause() {
        let error = std::fs::File::open("/no/such/file").context(|| "cannot open it".into()).unwrap_err();
        assert_eq!((error.code(), error.errno()), (Code::NotFound, Some(libc::ENOENT)));
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("No such file"));
        // A lack of descriptors says nothing about the file that could not be opened.
        let blind = Err::<(), _>(std::io::Error::from_raw_os_error(libc::EMFILE)).context(|| "cannot look".into()).unwrap_err();
        assert_eq!((blind.code(), blind.errno()), (Code::ResourceExhausted, Some(libc::EMFILE)));
        assert_eq!(Error::internal("a bug").errno(), None);
    }

    #[test]
    fn an_error_survives_a_line() {
        for code in Code::ALL {
            let error = Error::from_line(&Error::new(code, "no space: 28 left").to_line());
            assert_eq!((error.code(), error.to_string().as_str()), (code, "no space: 28 left"));
        }
        for text in ["", "8", "200 strange", "8000 strange", "sh: not found"] {
            let error = Error::from_line(text);
            assert_eq!((error.code(), error.to_string().as_str()), (Code::Internal, text));
        }
    }
}
