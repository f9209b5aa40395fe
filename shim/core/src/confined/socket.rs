// SPDX-License-Identifier: Apache-2.0
//! Connects safely to Unix sockets in a directory whose owner, a helper program, may have been
//! taken over by what it serves. The path may be a link to another socket of the host, such as
//! containerd's, or be another user's socket.

use crate::error::{Context, Error, Result};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A checked socket. Later changes in the directory do not affect it.
#[derive(Debug)]
pub struct NamedSocket(OwnedFd);

impl NamedSocket {
    /// Opens `path`, which must be a socket of `owner`.
    ///
    /// # Errors
    /// `PermissionDenied` if it is anything else; errors of the kernel.
    pub fn of(path: &Path, owner: u32) -> Result<Self> {
        let what = || format!("cannot connect to {}", path.display());
        let opened = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).context(what)?;
        let status = fstat(&opened).context(what)?;
        let refuse = |why: String| Err(Error::new(crate::error::Code::PermissionDenied, format!("{}: {why}", what())));
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Socket if status.st_uid == owner => Ok(Self(opened)),
            FileType::Socket => refuse(format!("it belongs to user {}, not to {owner}", status.st_uid)),
            other => refuse(format!("it is no socket but a {other:?}")),
        }
    }

    /// The path to connect to.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Connects. The descriptor is for a child process.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn connect(&self) -> Result<OwnedFd> {
        UnixStream::connect(self.path()).map(OwnedFd::from).context(|| "cannot connect to a helper program".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_is_connected_to_and_a_link_to_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, link) = (dir.path().join("socket"), dir.path().join("link"));
        let listener = UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        let me = rustix::process::geteuid().as_raw();

        let mut connection = UnixStream::from(NamedSocket::of(&socket, me).unwrap().connect().unwrap());
        connection.write_all(b"hello").unwrap();
        drop(connection);
        let mut said = String::new();
        listener.accept().unwrap().0.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello");

        for (path, owner) in [(&link, me), (&socket, me + 1), (&dir.path().to_owned(), me)] {
            let error = NamedSocket::of(path, owner).unwrap_err();
            assert_eq!(error.code(), Code::PermissionDenied, "{error}");
        }
    }
}
