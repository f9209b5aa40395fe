// SPDX-License-Identifier: Apache-2.0
//! A program that takes a process's outputs, as clients name one in place of a FIFO: `binary:///usr/bin/log?key=value`.
//!
//! What it gets is containerd's protocol for logging programs (core/runtime/v2/README.md, "Logging"): the query's keys and values as
//! its arguments, the outputs to read from on the descriptors 3 and 4, a pipe on 5 which it closes when it is ready, and
//! `CONTAINER_ID` and `CONTAINER_NAMESPACE` in an environment that has nothing else.
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

/// How long it may take to say that it is ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to end when it has read the outputs to their end.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How long it may take to end when it is told to.
const TERMINATED: Duration = Duration::from_secs(2);

/// A logging program, as it was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogProgram {
    uri: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
}

/// A logging program that runs.
#[derive(Debug)]
pub struct Logger {
    pid: u32,
    ended: oneshot::Receiver<Exit>,
    reaper: Reaper,
}

/// The logging program of one process, if it has one.
#[derive(Debug, Default)]
pub struct Logging(Mutex<Option<Logger>>);

/// The ends that a process writes to.
#[derive(Debug)]
pub struct LogPipes {
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
}

/// Whose outputs they are.
#[derive(Debug, Clone, Copy)]
pub struct Logged<'a> {
    /// The container, or the exec.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Where the program is reaped.
    pub reaper: &'a Reaper,
}

impl LogProgram {
    /// Parses what follows `binary://` in `uri`.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no absolute path, and text that is not UTF-8.
    pub fn parse(uri: &str) -> Result<Self> {
        let invalid = |why: &str| Error::invalid(format!("the logging program {uri:?} {why}"));
        let (_, rest) = uri.split_once("://").ok_or_else(|| invalid("is no URI"))?;
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

    /// As it was named.
    pub fn uri(&self) -> &Path {
        &self.uri
    }

    /// Runs it, and waits until it is ready.
    ///
    /// # Errors
    /// Where it cannot be run; `DeadlineExceeded` where it does not say that it is ready.
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
        // Nothing was awaited since the spawn, so the reaper cannot have come first.
        let logger = Logger { pid: child.id(), ended: logged.reaper.watch(child.id()), reaper: logged.reaper.clone() };
        // It holds our copies of what the program reads, and of the pipe whose end we wait for.
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
    /// Waits until it has written all and ended. To be called when nobody writes to it any more. One that goes on is told to end, and
    /// then killed.
    pub async fn finish(mut self) {
        if tokio::time::timeout(LAST_WORDS, &mut self.ended).await.is_ok() {
            return;
        }
        warn!(pid = self.pid, "the logging program has not ended within {LAST_WORDS:?} of its container's last output: ending it");
        let _ended_meanwhile = self.reaper.signal(self.pid, libc::SIGTERM as u32);
        let _killed_otherwise = tokio::time::timeout(TERMINATED, &mut self.ended).await;
    }
}

impl Logging {
    /// Runs the program that takes the outputs, if they are to go to one, and keeps it.
    ///
    /// # Errors
    /// Those of [`LogProgram::start`].
    pub async fn run(&self, stdio: &StdioSpec, logged: Logged<'_>) -> Result<Option<LogPipes>> {
        let Some((logger, pipes)) = stdio.run_logger(logged).await? else { return Ok(None) };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(logger);
        Ok(Some(pipes))
    }

    /// Waits until the program has written all, if there is one. To be called when the process has ended, and nobody writes to it.
    pub async fn finish(&self) {
        let logger = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(logger) = logger {
            logger.finish().await;
        }
    }
}

impl Drop for Logger {
    /// One that nobody waits for has nothing to log.
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
