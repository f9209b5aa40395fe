// SPDX-License-Identifier: Apache-2.0
//! The pipe on which a new sandbox process says, once, whether it can serve its pod.
//!
//! The convention is that of s6's `notification-fd`: a line means that the program is ready. Here the line says why
//! where it is not, so that the reason reaches whoever asked for the pod.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Where the shim puts the writing end.
pub const NOTIFICATION_FD: RawFd = 4;

/// The longest reason that is read, in bytes.
const LONGEST: u64 = 4096;

/// The line of a program that can serve.
const READY: &str = "ready\n";

/// The writing end, in the sandbox process.
#[derive(Debug)]
pub struct Notification(Option<File>);

impl Notification {
    /// Takes the inherited end. Call it once, first thing. Without one (a program that was started by hand) there is
    /// nobody to tell.
    pub fn inherit() -> Self {
        // SAFETY: `fcntl` with F_GETFD reads a number from the kernel and touches no memory.
        if unsafe { libc::fcntl(NOTIFICATION_FD, libc::F_GETFD) } < 0 {
            return Self(None);
        }
        // SAFETY: the descriptor is open (checked above) and, by contract, nothing in this process owns it yet.
        let fd = unsafe { OwnedFd::from_raw_fd(NOTIFICATION_FD) };
        // It must not reach other programs: they would keep the pipe open.
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
        // Whoever started us may not have waited.
        let _unheard = self.0.map(|mut pipe| pipe.write_all(line.as_bytes()));
    }
}

/// What a sandbox process has said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It serves.
    Ready,
    /// It cannot, and why.
    Failed(String),
    /// It has ended, or closed the pipe, without a word.
    Nothing,
    /// Neither a word nor an end came in time.
    Silent,
}

/// The reading end, with the one who starts the program.
#[derive(Debug)]
pub struct Heard(File);

impl Heard {
    /// A pipe: this end, and the one for the program.
    ///
    /// # Errors
    /// Where descriptors have run out.
    pub fn pipe() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok((Self(File::from(reader)), writer))
    }

    /// Waits for the word of the program, for at most `patience`. Blocks.
    ///
    /// # Errors
    /// Where the pipe cannot be read.
    pub fn wait(&self, patience: Duration) -> io::Result<Said> {
        let deadline = Instant::now() + patience;
        let mut said = String::new();
        while !said.ends_with('\n') {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
            let timeout = rustix::event::Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
            match rustix::event::poll(&mut poll, Some(&timeout)) {
                Ok(0) => return Ok(Said::Silent),
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
            READY => Said::Ready,
            "" => Said::Nothing,
            why => Said::Failed(why.trim_end().into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_heard_and_so_is_silence() {
        let said = |write: &dyn Fn(Notification)| {
            let (heard, pipe) = Heard::pipe().unwrap();
            write(Notification(Some(File::from(pipe))));
            heard.wait(Duration::from_secs(5)).unwrap()
        };
        assert_eq!(said(&Notification::ready), Said::Ready);
        assert_eq!(said(&|it| it.failed("the disk is full")), Said::Failed("the disk is full".into()));
        assert_eq!(said(&drop), Said::Nothing);
        assert!(matches!(said(&|it| it.failed(&"x".repeat(60_000))), Said::Failed(_)));
        let (heard, _open) = Heard::pipe().unwrap();
        assert_eq!(heard.wait(Duration::from_millis(10)).unwrap(), Said::Silent);
    }

    #[test]
    fn nobody_to_tell_is_fine() {
        Notification(None).ready();
        let (heard, pipe) = Heard::pipe().unwrap();
        drop(heard);
        Notification(Some(File::from(pipe))).ready();
    }
}
