// SPDX-License-Identifier: Apache-2.0
//! Copies the outputs of an exec to containerd's FIFOs.
//!
//! A container's first process writes into the FIFOs themselves. An exec may leave a process behind
//! that goes on writing. Its output must end all the same when containerd deletes the exec, because
//! with `drain_exec_sync_io_timeout` containerd waits for that end.

use crate::error::{Context, Result};
use crate::stdio::ChildStreams;
use rustix::fs::FileType;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the last output of a deleted exec may take to be read, or to be written by processes
/// that it left behind.
const LAST: Duration = Duration::from_secs(2);

/// The copying of one exec's outputs.
#[derive(Debug)]
pub struct Copies {
    running: TaskTracker,
    cut: CancellationToken,
}

impl Copies {
    /// Replaces the outputs of `streams` that are FIFOs by pipes, and copies from the pipes to the
    /// FIFOs.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn begin(streams: &mut ChildStreams) -> Result<Self> {
        let copies = Self { running: TaskTracker::new(), cut: CancellationToken::new() };
        for output in [&mut streams.stdout, &mut streams.stderr] {
            let what = || "cannot make a pipe for the output of an exec".to_string();
            if FileType::from_raw_mode(rustix::fs::fstat(&*output).context(what)?.st_mode) != FileType::Fifo {
                continue;
            }
            let (reader, writer) = std::io::pipe().context(what)?;
            let fifo = std::mem::replace(output, OwnedFd::from(writer));
            let fifo = pipe::Sender::from_owned_fd(fifo).context(what)?;
            let reader = pipe::Receiver::from_owned_fd(reader.into()).context(what)?;
            copies.running.spawn(copy(reader, fifo, copies.cut.clone()));
        }
        copies.running.close();
        Ok(copies)
    }

    /// Ends the outputs when everything that was written has been read, or after [`LAST`].
    pub async fn end(self) {
        let _too_long = tokio::time::timeout(LAST, self.running.wait()).await;
        self.cut.cancel();
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

async fn copy(mut from: pipe::Receiver, mut to: pipe::Sender, cut: CancellationToken) {
    tokio::select! {
        // The reader or the writer is gone, so there is nothing left to copy.
        _ended = tokio::io::copy(&mut from, &mut to) => {}
        () = cut.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn streams() -> (ChildStreams, std::fs::File) {
        let (reader, writer) = std::io::pipe().unwrap();
        let streams = ChildStreams { stdout: writer.into(), ..ChildStreams::null().unwrap() };
        (streams, std::fs::File::from(OwnedFd::from(reader)))
    }

    async fn rest(mut reader: std::fs::File) -> String {
        let mut text = String::new();
        std::thread::spawn(move || reader.read_to_string(&mut text).map(|_| text)).join().unwrap().unwrap()
    }

    #[tokio::test]
    async fn all_that_was_written_arrives_before_the_end() {
        let (mut streams, reader) = streams();
        let copies = Copies::begin(&mut streams).unwrap();
        std::fs::File::from(streams.stdout).write_all(&[b'x'; 4096]).unwrap();
        copies.end().await;
        assert_eq!(rest(reader).await.len(), 4096);
    }

    #[tokio::test(start_paused = true)]
    async fn an_output_that_a_process_keeps_open_is_ended() {
        let (mut streams, reader) = streams();
        let copies = Copies::begin(&mut streams).unwrap();
        let mut kept = std::fs::File::from(streams.stdout);
        kept.write_all(b"last").unwrap();
        copies.end().await;
        tokio::task::yield_now().await;
        assert_eq!(rest(reader).await, "last");
        drop(kept);
    }
}
