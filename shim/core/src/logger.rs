// SPDX-License-Identifier: Apache-2.0
//! Runs a logging program, which takes a process's outputs. Clients name it in place of a FIFO:
//! `binary:///usr/bin/log?key=value`.
//!
//! It is run by containerd's protocol for logging programs (core/runtime/v2/README.md, "Logging"):
//! its arguments are the keys and values of the query, it reads the outputs from descriptors 3 and
//! 4, and closes the pipe on descriptor 5 when it is ready. Its environment has only `CONTAINER_ID`
//! and `CONTAINER_NAMESPACE`.
//!
//! It is in the cgroup of the sandbox process, so it outlives neither the pod nor a clean-up.

use crate::error::{Code, Context, Error, Result};
use crate::reaper::{Exit, Reaper};
use crate::stdio::StdioSpec;
use command_fds::{CommandFdExt, FdMapping};
use percent_encoding::percent_decode_str;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tracing::warn;

/// How long it may take until it is ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to end after it has read the outputs to their end.
const END: Duration = Duration::from_secs(10);
/// How long it may take to end after SIGTERM.
const TERMINATED: Duration = Duration::from_secs(2);

/// A logging program, as the client named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogProgram {
    uri: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
}

/// A running logging program.
#[derive(Debug)]
pub struct Logger {
    pid: u32,
    ended: oneshot::Receiver<Exit>,
    reaper: Reaper,
}

/// The logging program of one process, if it has one.
#[derive(Debug, Default)]
pub struct Logging(Mutex<Option<Logger>>);

/// The pipes' ends to which a process writes.
#[derive(Debug)]
pub struct LogPipes {
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
}

/// The process whose outputs are logged.
#[derive(Debug, Clone, Copy)]
pub struct Logged<'a> {
    /// The container, or the exec.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Reaps the logging program.
    pub reaper: &'a Reaper,
}

impl LogProgram {
    /// Parses a `binary://` URI.
    ///
    /// # Errors
    /// `InvalidArgument` for a path that is not absolute, and for text that is not UTF-8.
    pub fn parse(uri: &str) -> Result<Self> {
        let invalid = |why: &str| Error::invalid(format!("the logging program {uri:?} {why}"));
        let (_, rest) = uri.split_once("://").ok_or_else(|| invalid("is not a URI"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let decode = |text: &str| percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| invalid("is not UTF-8"));
        let program = PathBuf::from(decode(path)?);
        if !program.is_absolute() || uri.contains('\0') {
            return Err(invalid("is not named by an absolute path"));
        }
        let mut arguments = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            for word in [key, value] {
                arguments.push(decode(&word.replace('+', " "))?);
            }
        }
        if arguments.iter().any(|argument| argument.contains('\0')) {
            return Err(invalid("has an argument with a zero byte"));
        }
        Ok(Self { uri: uri.into(), program, arguments })
    }

    /// The URI as the client gave it.
    pub fn uri(&self) -> &Path {
        &self.uri
    }

    /// Runs it, and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be run; `DeadlineExceeded` if it does not become ready in time.
    pub async fn start(&self, logged: Logged<'_>) -> Result<(Logger, LogPipes)> {
        let what = || format!("cannot run the logging program {}", self.program.display());
        let (stdout, to_stdout) = std::io::pipe().context(what)?;
        let (stderr, to_stderr) = std::io::pipe().context(what)?;
        let (ready, is_ready) = std::io::pipe().context(what)?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().env("CONTAINER_ID", logged.id).env("CONTAINER_NAMESPACE", logged.namespace);
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let inherited = [OwnedFd::from(stdout), stderr.into(), is_ready.into()];
        let mappings = (3..).zip(inherited).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd }).collect();
        command.fd_mappings(mappings).map_err(|e| Error::internal(format!("{}: {e}", what())))?;
        let child = command.spawn().context(what)?;
        // Nothing was awaited since the spawn, so the reaper cannot have reaped it yet.
        let logger = Logger { pid: child.id(), ended: logged.reaper.watch(child.id()), reaper: logged.reaper.clone() };
        // The command holds our copies of the program's pipes, among them the one whose end we wait
        // for.
        drop(command);
        let mut ready = pipe::Receiver::from_owned_fd(ready.into()).context(what)?;
        match tokio::time::timeout(READY, ready.read(&mut [0])).await {
            Ok(Ok(_)) => Ok((logger, LogPipes { stdout: to_stdout.into(), stderr: to_stderr.into() })),
            Ok(Err(error)) => Err(error).context(what),
            Err(_) => {
                let program = self.program.display();
                let message =
                    format!("the logging program {program} has not said within {READY:?} that it is ready: it has to close descriptor 5");
                Err(Error::new(Code::DeadlineExceeded, message))
            }
        }
    }
}

impl Logger {
    /// Waits until it has written everything and ended. Call it when no process writes to it any
    /// more. A program that does not end gets SIGTERM, and is then killed.
    pub async fn finish(mut self) {
        if tokio::time::timeout(END, &mut self.ended).await.is_ok() {
            return;
        }
        warn!(pid = self.pid, "the logging program has not ended within {END:?} of its container's last output: ending it");
        let _ended_meanwhile = self.reaper.signal(self.pid, libc::SIGTERM as u32);
        let _killed_otherwise = tokio::time::timeout(TERMINATED, &mut self.ended).await;
    }
}

impl Logging {
    /// Runs the logging program, if the outputs go to one, and keeps it.
    ///
    /// # Errors
    /// Those of [`LogProgram::start`].
    pub async fn run(&self, stdio: &StdioSpec, logged: Logged<'_>) -> Result<Option<LogPipes>> {
        let Some((logger, pipes)) = stdio.run_logger(logged).await? else { return Ok(None) };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(logger);
        Ok(Some(pipes))
    }

    /// Waits until the logging program, if there is one, has written everything. Call it when the
    /// process has ended and no other process writes to the program.
    pub async fn finish(&self) {
        let logger = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(logger) = logger {
            logger.finish().await;
        }
    }
}

impl Drop for Logger {
    /// Kills a program that was not waited for: it has nothing to log.
    fn drop(&mut self) {
        let _ended_meanwhile = self.reaper.signal(self.pid, libc::SIGKILL as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_named_with_its_arguments() {
        let program = LogProgram::parse("binary:///usr/bin/log?_INTERNAL=%2Fvar%2Flib%2Fx&flag&say=two+words").unwrap();
        assert_eq!(program.program, Path::new("/usr/bin/log"));
        assert_eq!(program.arguments, ["_INTERNAL", "/var/lib/x", "flag", "", "say", "two words"]);
        assert_eq!(LogProgram::parse("binary:///bin/log").unwrap().arguments, Vec::<String>::new());
        for wrong in ["binary://log", "binary:///bin/%ff", "binary:///bin/log?a=%00", "binary:"] {
            assert_eq!(LogProgram::parse(wrong).unwrap_err().code(), Code::InvalidArgument, "{wrong}");
        }
    }
}
