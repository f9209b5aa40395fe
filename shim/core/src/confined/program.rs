// SPDX-License-Identifier: Apache-2.0
//! How to run a program.

use super::confinement::Confinement;
use super::own_devices::Contents;
use crate::error::{Context, Error, Result};
use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How to run a program. It is only data, so a pure function can decide it.
#[derive(Debug)]
pub struct Invocation<'a> {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// What the program may do.
    pub confinement: Confinement,
    /// The devices that it finds in a /dev of its own, where they belong to its user; the host's
    /// /dev if `None`. For a program that opens itself what only root may open.
    pub devices: Option<Contents>,
    inherited: Vec<Inherited<'a>>,
}

#[derive(Debug)]
enum Inherited<'a> {
    Listener(PathBuf),
    Path(PathBuf),
    Fifo(PathBuf),
    Open(BorrowedFd<'a>),
}

/// The number of the first descriptor after standard input, output and error.
const FIRST_INHERITED: RawFd = 3;

impl<'a> Invocation<'a> {
    /// A program without arguments, run as root and without confinement.
    pub fn new(program: &Path) -> Self {
        Self { program: program.to_owned(), arguments: Vec::new(), confinement: Confinement::NONE, devices: None, inherited: Vec::new() }
    }

    /// Adds arguments.
    pub fn arguments<T: Into<OsString>>(&mut self, arguments: impl IntoIterator<Item = T>) {
        self.arguments.extend(arguments.into_iter().map(Into::into));
    }

    /// Lets the program inherit a Unix socket that listens at `path`. Clients that connect before
    /// the program serves it wait in the kernel's queue, so nobody polls. Returns the descriptor's
    /// number in the program.
    pub fn listen(&mut self, path: PathBuf) -> RawFd {
        self.inherit(Inherited::Listener(path))
    }

    /// Lets the program inherit an open descriptor. Returns its number in the program.
    pub fn open(&mut self, descriptor: BorrowedFd<'a>) -> RawFd {
        self.inherit(Inherited::Open(descriptor))
    }

    /// Lets the program reach a file that only root can reach by its path. Returns the path that
    /// the program must use. The file's own mode and owner still decide what it may do there.
    pub fn reach(&mut self, path: PathBuf) -> PathBuf {
        format!("/proc/self/fd/{}", self.inherit(Inherited::Path(path))).into()
    }

    /// Lets the program inherit the writing end of a new FIFO. Returns its number in the program.
    pub fn fifo(&mut self, path: PathBuf) -> RawFd {
        self.inherit(Inherited::Fifo(path))
    }

    fn inherit(&mut self, inherited: Inherited<'a>) -> RawFd {
        self.inherited.push(inherited);
        FIRST_INHERITED + self.inherited.len() as RawFd - 1
    }

    /// The paths of the inherited sockets.
    pub fn listeners(&self) -> impl Iterator<Item = &Path> {
        self.inherited.iter().filter_map(|inherited| match inherited {
            Inherited::Listener(path) => Some(path.as_path()),
            Inherited::Open(_) | Inherited::Path(_) | Inherited::Fifo(_) => None,
        })
    }

    /// The command, with its sockets bound and an empty input. It holds the listening sockets, so
    /// drop it after the spawn. Otherwise a connection to a program that has ended would wait
    /// forever.
    ///
    /// # Errors
    /// If a socket cannot be bound, for example because of its path.
    pub fn command(&self) -> Result<Command> {
        let mappings: Vec<FdMapping> = (FIRST_INHERITED..)
            .zip(&self.inherited)
            .map(|(child_fd, inherited)| Ok(FdMapping { parent_fd: inherited.descriptor()?, child_fd }))
            .collect::<Result<_>>()?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        command.fd_mappings(mappings).map_err(|error| Error::internal(format!("{}: {error}", self.program.display())))?;
        Ok(command)
    }
}

impl Inherited<'_> {
    fn descriptor(&self) -> Result<OwnedFd> {
        match self {
            Self::Listener(path) => UnixListener::bind(path).map(OwnedFd::from).context(|| format!("cannot listen at {}", path.display())),
            Self::Path(path) => {
                open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(|| format!("cannot open {}", path.display()))
            }
            Self::Fifo(path) => {
                let what = || format!("cannot make the FIFO {}", path.display());
                mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).context(what)?;
                // For reading as well: otherwise this would wait for a reader.
                open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(what)
            }
            Self::Open(descriptor) => descriptor.as_fd().try_clone_to_owned().context(|| "cannot duplicate a descriptor".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_program_reaches_a_file_and_writes_to_a_fifo() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("text"), "hello").unwrap();
        let mut invocation = Invocation::new(Path::new("/bin/sh"));
        let text = invocation.reach(dir.path().to_owned()).join("text");
        let fifo = invocation.fifo(dir.path().join("fifo"));
        invocation.arguments(["-c".into(), format!("cat {} >&{fifo}; head -c 5 <&{fifo}", text.display())]);
        assert_eq!(invocation.command().unwrap().output().unwrap().stdout, b"hello");
        assert!(invocation.command().unwrap_err().to_string().contains("fifo"), "it exists already");
    }

    #[test]
    fn inherited_descriptors_have_the_returned_numbers() {
        let dir = std::env::temp_dir().join(format!("magnetar-program-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let mut text = std::fs::File::create_new(dir.join("text")).unwrap();
        text.write_all(b"hello").unwrap();
        let text = std::fs::File::open(dir.join("text")).unwrap();

        let mut invocation = Invocation::new(Path::new("/bin/sh"));
        let socket = invocation.listen(dir.join("socket"));
        let file = invocation.open(text.as_fd());
        assert_eq!((socket, file), (3, 4));
        invocation.arguments(["-c", "cat <&4; test -S /proc/self/fd/3 && echo ' socket'; test -e /proc/self/fd/5 || echo none"]);
        let output = invocation.command().unwrap().output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "hello socket\nnone\n");
        assert_eq!(invocation.listeners().collect::<Vec<_>>(), [dir.join("socket")]);
        assert!(invocation.command().unwrap_err().to_string().contains("socket"), "it is bound already");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
