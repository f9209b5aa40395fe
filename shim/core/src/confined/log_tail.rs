// SPDX-License-Identifier: Apache-2.0
//! The output of helper programs: their standard error, and their standard output, such as the
//! console of a guest.
//!
//! The end of each output is kept in memory, to explain a program's end. A longer part can be kept
//! in a file. Both are bounded, whatever is printed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tracing::debug;

/// The most bytes kept in memory.
const MEMORY_LIMIT: usize = 4 << 10;

/// The most bytes of an output in its file. Beyond that the file is emptied and starts again.
const FILE_LIMIT: u64 = 256 << 10;

/// The end of a program's output.
#[derive(Debug, Clone, Default)]
pub struct LogTail(Arc<Kept>);

#[derive(Debug, Default)]
struct Kept {
    bytes: Mutex<VecDeque<u8>>,
    grown: Notify,
}

impl LogTail {
    /// The kept output, without control characters.
    pub fn last(&self) -> String {
        let mut kept = self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(kept.make_contiguous());
        text.chars().filter(|c| *c == '\n' || !c.is_control()).collect()
    }

    /// The last line that is not empty.
    pub fn last_line(&self) -> Option<String> {
        self.last().lines().rev().map(str::trim).find(|line| !line.is_empty()).map(String::from)
    }

    /// Waits for a line. Cancel-safe.
    pub async fn wait_for(&self, line: &str) {
        loop {
            // Made before the look, so that it notices what comes after.
            let grown = self.0.grown.notified();
            if self.last().lines().any(|one| one.trim() == line) {
                return;
            }
            grown.await;
        }
    }

    /// Adds output.
    pub fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(MEMORY_LIMIT);
        kept.drain(..excess);
        drop(kept);
        self.0.grown.notify_waiters();
    }

    /// Reads a pipe to its end, and copies it to `file`. If writing the file fails, the pipe is
    /// still read: a program blocks on a full pipe.
    pub async fn follow(self, program: &'static str, from: OwnedFd, file: Option<PathBuf>) {
        let Ok(mut from) = pipe::Receiver::from_owned_fd(from) else { return };
        let mut file = file
            .and_then(|path| File::create(path).map_err(|error| debug!(program, %error, "cannot create the file for this output")).ok());
        let mut buffer = vec![0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            self.push(&buffer[..length]);
            if let Some(file) = &mut file
                && let Err(error) = append(file, &buffer[..length])
            {
                debug!(program, %error, "cannot write this output to its file");
            }
        }
    }
}

fn append(file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
    if file.stream_position()? > FILE_LIMIT {
        file.set_len(0)?;
        file.rewind()?;
    }
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn only_the_end_of_the_output_is_kept() {
        let tail = LogTail::default();
        for n in 0..10_000 {
            tail.push(format!("line {n}\r\n\x1b").as_bytes());
        }
        assert_eq!(tail.last_line().as_deref(), Some("line 9999"));
        assert!(tail.last().len() <= MEMORY_LIMIT);
    }

    #[tokio::test]
    async fn a_line_is_waited_for() {
        let (tail, (reader, writer)) = (LogTail::default(), std::io::pipe().unwrap());
        let said = async {
            let mut writer = File::from(OwnedFd::from(writer));
            for part in ["[    1.0] noise\r\nthe wa", "ited", "-for line\r\n"] {
                tokio::task::yield_now().await;
                writer.write_all(part.as_bytes()).unwrap();
            }
        };
        tokio::join!(tail.clone().follow("test", reader.into(), None), tail.wait_for("the waited-for line"), said);
    }

    #[tokio::test]
    async fn the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let (reader, writer) = std::io::pipe().unwrap();
        let talk = std::thread::spawn(move || {
            let mut writer = File::from(OwnedFd::from(writer));
            for _ in 0..200 {
                writer.write_all(&[b'x'; 4096]).unwrap();
            }
        });
        LogTail::default().follow("test", reader.into(), Some(path.clone())).await;
        talk.join().unwrap();
        assert!(path.metadata().unwrap().len() <= FILE_LIMIT + 4096);
    }

    proptest! {
        #[test]
        fn any_bytes_become_a_few_lines_that_can_be_printed(
            said in vec(prop_oneof![vec(any::<u8>(), 0..3000), "\\PC{0,40}[\r\n]".prop_map(String::into_bytes)], 0..12),
        ) {
            let tail = LogTail::default();
            for said in &said {
                tail.push(said);
            }
            let last = tail.last();
            // A byte that is no UTF-8 becomes a character of three bytes.
            prop_assert!(last.len() <= 3 * MEMORY_LIMIT, "{} bytes", last.len());
            prop_assert!(last.chars().all(|c| c == '\n' || !c.is_control()), "{last:?}");
            let line = tail.last_line();
            prop_assert!(line.as_ref().is_none_or(|line| !line.is_empty() && !line.contains('\n') && last.contains(line.as_str())), "{line:?}");
        }
    }
}
