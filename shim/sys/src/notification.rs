// SPDX-License-Identifier: Apache-2.0
//! The pipe on which a new sandbox process says, once, whether it can serve its pod.
//!
//! It follows s6's `notification-fd`, where a line means that the program is ready. Here a program
//! that is not ready writes the reason instead, so that the reason reaches the client that asked
//! for the pod.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// The descriptor at which the shim passes the writing end.
pub const NOTIFICATION_FD: RawFd = 4;

/// The longest reason that is read, in bytes.
const LONGEST: u64 = 4096;

/// The line of a program that can serve.
const READY: &str = "ready\n";

/// The writing end, in the sandbox process.
#[derive(Debug)]
pub struct Notification(Option<File>);

impl Notification {
    /// Takes the inherited end. Call it once, before anything else. A program that was started by
    /// hand has none; then the methods below do nothing.
    pub fn inherit() -> Self {
        // SAFETY: `fcntl` with F_GETFD reads a number from the kernel and touches no memory.
        if unsafe { libc::fcntl(NOTIFICATION_FD, libc::F_GETFD) } < 0 {
            return Self(None);
        }
        // SAFETY: the descriptor is open (checked above) and, by contract, nothing in this process
        // owns it yet.
        let fd = unsafe { OwnedFd::from_raw_fd(NOTIFICATION_FD) };
        // Other programs must not inherit it: they would keep the pipe open.
        let private = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).is_ok();
        Self(private.then(|| File::from(fd)))
    }

    /// Says that the program serves.
    pub fn ready(self) {
        self.say(READY);
    }

    /// Says why it cannot.
    pub fn failed(self, why: &str) {
        self.say(&format!("{why}\n"));
    }

    fn say(self, line: &str) {
        // A write fails when the parent no longer waits; that is fine.
        let _unheard = self.0.map(|mut pipe| pipe.write_all(line.as_bytes()));
    }
}

/// What a sandbox process has said about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It serves.
    Ready,
    /// It cannot, and why.
    Failed(String),
    /// It ended, or closed the pipe, and wrote nothing.
    Nothing,
    /// It wrote nothing in time, and still has the pipe open.
    Silent,
}

/// The reading end, in the process that starts the program.
#[derive(Debug)]
pub struct ReadinessPipe(File);

impl ReadinessPipe {
    /// Makes a pipe. Returns the reading end, and the writing end for the program.
    ///
    /// # Errors
    /// When no descriptors are left.
    pub fn pipe() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok((Self(File::from(reader)), writer))
    }

    /// Waits for the program's line, for at most `patience`. Blocks the thread.
    ///
    /// # Errors
    /// When the pipe cannot be read.
    pub fn wait(&self, patience: Duration) -> io::Result<Readiness> {
        let deadline = Instant::now() + patience;
        let mut said = String::new();
        while !said.ends_with('\n') {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
            let timeout = rustix::event::Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
            match rustix::event::poll(&mut poll, Some(&timeout)) {
                Ok(0) => return Ok(Readiness::Silent),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let mut part = [0; LONGEST as usize];
            let length = (&self.0).take(LONGEST).read(&mut part)?;
            said.push_str(&String::from_utf8_lossy(part.get(..length).unwrap_or_default()));
            if length == 0 || said.len() as u64 > LONGEST {
                break;
            }
        }
        Ok(match said.as_str() {
            READY => Readiness::Ready,
            "" => Readiness::Nothing,
            why => Readiness::Failed(why.trim_end().into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_tells_ready_failed_ended_and_silent_apart() {
        let said = |write: &dyn Fn(Notification)| {
            let (heard, pipe) = ReadinessPipe::pipe().unwrap();
            write(Notification(Some(File::from(pipe))));
            heard.wait(Duration::from_secs(5)).unwrap()
        };
        assert_eq!(said(&Notification::ready), Readiness::Ready);
        assert_eq!(said(&|it| it.failed("the disk is full")), Readiness::Failed("the disk is full".into()));
        assert_eq!(said(&drop), Readiness::Nothing);
        assert!(matches!(said(&|it| it.failed(&"x".repeat(60_000))), Readiness::Failed(_)));
        let (heard, _open) = ReadinessPipe::pipe().unwrap();
        assert_eq!(heard.wait(Duration::from_millis(10)).unwrap(), Readiness::Silent);
    }

    #[test]
    fn a_notification_without_a_reader_is_ignored() {
        Notification(None).ready();
        let (heard, pipe) = ReadinessPipe::pipe().unwrap();
        drop(heard);
        Notification(Some(File::from(pipe))).ready();
    }
}
