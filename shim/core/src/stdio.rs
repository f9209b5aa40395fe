// SPDX-License-Identifier: Apache-2.0
//! A process's standard streams: the FIFOs that containerd made, or a terminal.
//!
//! Without a terminal the FIFOs *are* the process's streams. Nothing is copied. So nothing can be
//! lost or reordered on the way, the sandbox process needs no memory for it, and a container goes
//! on writing even if the sandbox process dies. The sandbox process only keeps one idle descriptor
//! for each stream, of the other direction:
//!
//! - a reader of stdout and stderr, so that a restart of containerd pauses the container and does
//!   not kill it by SIGPIPE;
//! - a writer of stdin until CloseIO, so that the end of one attach does not end the input.
//!
//! With a terminal the OCI runtime hands over the pseudo-terminal's master, and [`crate::terminal`]
//! copies.

use crate::error::{Code, Context, Error, Result};
use crate::logger::{LogPipes, LogProgram, Logged, Logger};
use rustix::fs::{FileType, Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long the reader of a FIFO may take to open it.
const READER: Duration = Duration::from_secs(5);

/// The streams of a process, as containerd names them in Create and Exec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioSpec {
    /// The FIFO to read from; `None` means that the input is empty.
    pub stdin: Option<PathBuf>,
    /// The destination of standard output; `None` discards it.
    pub stdout: Option<Output>,
    /// The destination of standard error; `None` discards it. Unused with a terminal.
    pub stderr: Option<Output>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// The destination of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A FIFO (or any other file) that the client has made.
    Fifo(PathBuf),
    /// A file that is made if it is missing, and appended to: `file://`.
    File(PathBuf),
    /// A logging program, which takes both outputs: `binary://`.
    Program(LogProgram),
}

impl Output {
    /// The path, or the URI of a program.
    pub fn path(&self) -> &Path {
        match self {
            Output::Fifo(path) | Output::File(path) => path,
            Output::Program(program) => program.uri(),
        }
    }
}

/// The descriptors for the new process.
#[derive(Debug)]
pub struct ChildStreams {
    /// Its fd 0.
    pub stdin: OwnedFd,
    /// Its fd 1.
    pub stdout: OwnedFd,
    /// Its fd 2.
    pub stderr: OwnedFd,
}

/// Keeps the FIFOs open while containerd is away.
#[derive(Debug, Default)]
pub struct Keepers {
    stdin: Mutex<Option<OwnedFd>>,
    _outputs: Vec<OwnedFd>,
}

impl StdioSpec {
    /// Parses the strings of a request: each is empty for none, or a path, a `file://` path or a
    /// `binary://` program.
    ///
    /// # Errors
    /// `Unimplemented` for other schemes, `InvalidArgument` for relative paths.
    pub fn parse(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Result<Self> {
        let stdin = parse("stdin", stdin)?;
        if let Some(Output::Program(program)) = &stdin {
            return Err(Error::invalid(format!("stdin: {} is a program, which takes output only", program.uri().display())));
        }
        Ok(Self {
            stdin: stdin.map(|input| input.path().to_owned()),
            stdout: parse("stdout", stdout)?,
            stderr: if terminal { None } else { parse("stderr", stderr)? },
            terminal,
        })
    }

    /// Runs the logging program, if the outputs go to one.
    ///
    /// # Errors
    /// Those of [`LogProgram::start`].
    pub async fn run_logger(&self, logged: Logged<'_>) -> Result<Option<(Logger, LogPipes)>> {
        let program = [&self.stdout, &self.stderr].into_iter().find_map(|output| match output {
            Some(Output::Program(program)) => Some(program),
            Some(Output::Fifo(_) | Output::File(_)) | None => None,
        });
        match program {
            Some(program) => program.start(logged).await.map(Some),
            None => Ok(None),
        }
    }

    /// Opens the streams for a process without a terminal; `logs` are those of
    /// [`run_logger`](Self::run_logger). Waits until the outputs have a reader. Cancel-safe.
    ///
    /// # Errors
    /// When a path cannot be opened; `DeadlineExceeded` if no reader opens an output.
    pub async fn open(&self, logs: Option<LogPipes>) -> Result<(ChildStreams, Keepers)> {
        let mut outputs = Vec::new();
        let (log_of_stdout, log_of_stderr) = logs.map(|logs| (logs.stdout, logs.stderr)).unzip();
        let (stdin, stdin_keeper) = match &self.stdin {
            Some(path) => {
                let reader = open(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
                let keeper = open(path, OFlags::WRONLY | OFlags::NONBLOCK)?;
                block(&reader, path)?;
                (reader, Some(keeper))
            }
            None => (null()?, None),
        };
        let stdout = open_output(&self.stdout, log_of_stdout, &mut outputs).await?;
        let stderr = open_output(&self.stderr, log_of_stderr, &mut outputs).await?;
        Ok((ChildStreams { stdin, stdout, stderr }, Keepers { stdin: Mutex::new(stdin_keeper), _outputs: outputs }))
    }
}

impl ChildStreams {
    /// Streams to and from /dev/null, for programs whose output is not needed.
    pub fn null() -> Result<Self> {
        Ok(Self { stdin: null()?, stdout: null()?, stderr: null()? })
    }
}

impl Keepers {
    /// Closes our writer of stdin, so that the process sees the end of its input when containerd
    /// closes its end as well.
    pub fn close_stdin(&self) {
        drop(self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn parse(stream: &str, text: &str) -> Result<Option<Output>> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.starts_with("binary://") {
        return LogProgram::parse(text).map(Output::Program).map(Some);
    }
    let (kind, path): (fn(PathBuf) -> Output, &str) = match text.split_once("://") {
        None => (Output::Fifo, text),
        Some(("fifo", path)) => (Output::Fifo, path),
        Some(("file", path)) => (Output::File, path.split('?').next().unwrap_or(path)),
        Some((scheme, _)) => {
            return Err(Error::unimplemented(format!(
                "{stream}: the scheme {scheme}:// is not supported; use a FIFO, file:// or binary://"
            )));
        }
    };
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Error::invalid(format!("{stream}: {path:?} is not an absolute path")));
    }
    Ok(Some(kind(path.into())))
}

/// Opens the writing end for the process. For a FIFO, a reader that keeps it open is added to
/// `keepers`.
async fn open_output(output: &Option<Output>, log: Option<OwnedFd>, keepers: &mut Vec<OwnedFd>) -> Result<OwnedFd> {
    let path = match output {
        None => return null(),
        Some(Output::Program(program)) => {
            return log.ok_or_else(|| Error::internal(format!("the logging program {} was not run", program.uri().display())));
        }
        Some(Output::File(path)) => return open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND),
        Some(Output::Fifo(path)) => path,
    };
    let stat = rustix::fs::stat(path).context(|| format!("cannot open the stream {}", path.display()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return open(path, OFlags::WRONLY | OFlags::APPEND);
    }
    let writer = meet_reader(path).await?;
    block(&writer, path)?;
    keepers.push(open(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
    Ok(writer)
}

/// Opens a FIFO for writing after its reader has opened it.
///
/// containerd opens its end in the background, perhaps later than we do. If we opened a reader of
/// our own first, a process that ends at once could open and close the FIFO before containerd opens
/// it, and containerd would wait for a writer for ever.
///
/// # Errors
/// `DeadlineExceeded` if no reader opens it.
pub async fn meet_reader(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let deadline = Instant::now() + READER;
    let mut pause = Duration::from_micros(200);
    loop {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NXIO) if Instant::now() < deadline => tokio::time::sleep(pause).await,
            Err(rustix::io::Errno::NXIO) => {
                return Err(Error::new(
                    Code::DeadlineExceeded,
                    format!("no reader has opened the stream {} within {READER:?}", path.display()),
                ));
            }
            opened => return opened.context(|| format!("cannot open the stream {}", path.display())),
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::RUSR | Mode::WUSR)
        .context(|| format!("cannot open the stream {}", path.display()))
}

/// Programs expect blocking streams; O_NONBLOCK was only for opening.
fn block(fd: &OwnedFd, path: &Path) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd).context(|| format!("cannot read the flags of {}", path.display()))?;
    rustix::fs::fcntl_setfl(fd, flags - OFlags::NONBLOCK).context(|| format!("cannot set the flags of {}", path.display()))
}

fn null() -> Result<OwnedFd> {
    open(Path::new("/dev/null"), OFlags::RDWR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn fifo() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        (dir, path)
    }

    fn reader(path: &Path) -> OwnedFd {
        open(path, OFlags::RDONLY | OFlags::NONBLOCK).unwrap()
    }

    #[tokio::test]
    async fn opening_an_output_waits_for_its_reader() {
        let (_dir, path) = fifo();
        let spec = StdioSpec { stdout: Some(Output::Fifo(path.clone())), ..StdioSpec::default() };
        let (opened, reader) = tokio::join!(spec.open(None), async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            reader(&path)
        });
        let (child, keepers) = opened.unwrap();
        rustix::io::write(&child.stdout, b"x").unwrap();
        drop((child, keepers));
        let mut byte = [0; 2];
        assert_eq!(rustix::io::read(&reader, &mut byte).unwrap(), 1);
        assert_eq!(rustix::io::read(&reader, &mut byte).unwrap(), 0, "the end of the stream");
    }

    #[tokio::test(start_paused = true)]
    async fn an_output_without_a_reader_is_an_error() {
        let (_dir, path) = fifo();
        let spec = StdioSpec { stdout: Some(Output::Fifo(path)), ..StdioSpec::default() };
        assert_eq!(spec.open(None).await.unwrap_err().code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn an_output_survives_a_reader_that_reconnects() {
        let (_dir, path) = fifo();
        let spec = StdioSpec { stdout: Some(Output::Fifo(path.clone())), ..StdioSpec::default() };
        let first = reader(&path);
        let (child, keepers) = spec.open(None).await.unwrap();
        let mut writer = std::fs::File::from(child.stdout);
        drop(first);
        writer.write_all(b"still here").unwrap();
        let mut reader = std::fs::File::open(&path).unwrap();
        drop((writer, keepers, child.stderr));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still here");
    }

    #[tokio::test]
    async fn input_ends_only_with_close_io() {
        let (_dir, path) = fifo();
        let spec = StdioSpec { stdin: Some(path.clone()), ..StdioSpec::default() };
        let (child, keepers) = spec.open(None).await.unwrap();
        let mut first = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        first.write_all(b"a").unwrap();
        drop(first);
        let mut second = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        second.write_all(b"b").unwrap();
        drop(second);
        keepers.close_stdin();
        let mut text = String::new();
        std::fs::File::from(child.stdin).read_to_string(&mut text).unwrap();
        assert_eq!(text, "ab");
    }

    #[tokio::test]
    async fn a_missing_fifo_is_an_error_and_is_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none");
        let spec = StdioSpec { stdout: Some(Output::Fifo(path.clone())), ..StdioSpec::default() };
        assert_eq!(spec.open(None).await.unwrap_err().code(), crate::error::Code::NotFound);
        assert!(!path.exists());
        let spec = StdioSpec { stdout: Some(Output::File(path.clone())), ..StdioSpec::default() };
        spec.open(None).await.unwrap();
        assert!(path.exists());
    }

    #[test]
    fn unknown_schemes_are_unimplemented() {
        let error = StdioSpec::parse("", "npipe:///log", "", false).unwrap_err();
        assert_eq!(error.code(), crate::error::Code::Unimplemented);
        let program = StdioSpec::parse("", "binary:///bin/logger?id=1", "", false).unwrap().stdout;
        assert_eq!(program.unwrap().path(), Path::new("binary:///bin/logger?id=1"));
        assert_eq!(StdioSpec::parse("binary:///bin/x", "", "", false).unwrap_err().code(), crate::error::Code::InvalidArgument);
        assert_eq!(StdioSpec::parse("", "relative", "", false).unwrap_err().code(), crate::error::Code::InvalidArgument);
        assert_eq!(StdioSpec::parse("", "file:///a/b?x=1", "", false).unwrap().stdout, Some(Output::File("/a/b".into())));
        assert_eq!(StdioSpec::parse("", "/a/b", "", false).unwrap().stdout, Some(Output::Fifo("/a/b".into())));
    }
}
