// SPDX-License-Identifier: Apache-2.0
//! What a guest may answer, where the protocol alone would let it answer more: sentences for
//! people, the messages of containerd's Task API, and statistics.

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message;
use magnetar_core::error::Error;
use std::io;
use std::pin::Pin;
use std::task::{self, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest sentence of a guest's that people are shown, in bytes.
const SENTENCE: usize = 2 << 10;

/// The longest answer of the Task API, in bytes. The largest are statistics, of a few KiB for each
/// hundred disks.
const LONGEST: usize = 256 << 10;

/// What a guest says of an error, on one line, without characters that a terminal would obey, and
/// no longer than one reads.
pub fn sentence(said: &str) -> String {
    let cut = &said[..said.floor_char_boundary(SENTENCE)];
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An error in the guest, which has said it in its own words.
pub fn error(error: &Error) -> Error {
    Error::new(error.code(), sentence(&error.to_string()))
}

/// A container's statistics, encoded anew: containerd fails for all containers of the node where it
/// cannot decode those of one. `None` for what does not decode.
pub fn statistics(encoded: &[u8]) -> Option<Vec<u8>> {
    Metrics::parse_from_bytes(encoded).and_then(|metrics| metrics.write_to_bytes()).ok()
}

/// A connection for the Task API, whose other side may send one answer for each call, of at most
/// [`LONGEST`] bytes. Anything else is an error of the connection: the library that reads it takes
/// 4 MiB of whatever comes, and as often as it comes.
///
/// A message is its length and its stream in four bytes each, the largest first, its type and flags
/// in one each, and data (containerd's ttrpc, PROTOCOL.md).
#[derive(Debug)]
pub struct Answers<S> {
    connection: S,
    calls: Heads,
    answers: Heads,
}

impl<S> Answers<S> {
    /// Over a connection on which nothing was said yet.
    pub fn over(connection: S) -> Self {
        Self { connection, calls: Heads::default(), answers: Heads::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Answers<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut task::Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        task::ready!(Pin::new(&mut this.connection).poll_read(context, buffer))?;
        let calls = this.calls.count;
        let heard = this.answers.hear(&buffer.filled()[before..], |count, length| match (count, length) {
            (count, _) if count > calls => Err("answers what was not asked".to_owned()),
            (_, length) if length > LONGEST => Err(format!("answers with {length} bytes, more than {LONGEST}")),
            (_, _) => Ok(()),
        });
        Poll::Ready(heard.map_err(|what| io::Error::new(io::ErrorKind::InvalidData, format!("the guest {what}"))))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Answers<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut task::Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = task::ready!(Pin::new(&mut this.connection).poll_write(context, bytes))?;
        // What is ours is as it should be.
        let _heard = this.calls.hear(&bytes[..written], |_, _| Ok(()));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_shutdown(context)
    }
}

/// How many messages have begun in one direction, and where in one it is.
#[derive(Debug, Default)]
struct Heads {
    count: u64,
    head: [u8; 10],
    /// How much of the head has come.
    begun: usize,
    /// How much of the data is still to come.
    left: usize,
}

impl Heads {
    /// The next bytes. `check` is told of each message which one it is and how long its data.
    fn hear(&mut self, mut bytes: &[u8], check: impl Fn(u64, usize) -> Result<(), String>) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let length = self.left.min(bytes.len());
                self.left -= length;
                bytes = &bytes[length..];
                continue;
            }
            let length = (self.head.len() - self.begun).min(bytes.len());
            self.head[self.begun..self.begun + length].copy_from_slice(&bytes[..length]);
            self.begun += length;
            bytes = &bytes[length..];
            if self.begun == self.head.len() {
                let [a, b, c, d, ..] = self.head;
                (self.begun, self.left) = (0, u32::from_be_bytes([a, b, c, d]) as usize);
                self.count += 1;
                check(self.count, self.left)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::cgroups_v2::metrics::PidsStat;
    use containerd_shim_protos::protobuf::MessageField;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn message(length: usize, data: &[u8]) -> Vec<u8> {
        [&(length as u32).to_be_bytes()[..], &[0, 0, 0, 1, 2, 0], data].concat()
    }

    #[test]
    fn a_sentence_is_short_and_of_one_line() {
        assert_eq!(sentence("no such file\n\u{1b}[31mred\0"), "no such file  [31mred ");
        let long = sentence(&"é".repeat(SENTENCE));
        assert!(long.len() <= SENTENCE && long.ends_with('é'));
    }

    #[test]
    fn statistics_that_do_not_decode_are_none_and_others_stay_what_they_are() {
        let pids = PidsStat { current: 3, ..PidsStat::default() };
        let good = Metrics { pids: MessageField::some(pids), ..Metrics::default() }.write_to_bytes().unwrap();
        assert_eq!(statistics(&good), Some(good));
        assert_eq!(statistics(&[0x0a, 0xff]), None);
    }

    /// What can be read of what a guest says after `calls` calls of ours, and why no more.
    async fn read(calls: usize, said: &[u8], size: usize) -> (usize, Option<String>) {
        let (ours, mut theirs) = duplex(size);
        let mut answers = Answers::over(ours);
        let talk = async {
            for _ in 0..calls {
                answers.write_all(&message(3, b"ask")).await.unwrap();
            }
            let (mut read, mut buffer) = (0, [0; 100]);
            loop {
                match answers.read(&mut buffer).await {
                    Ok(0) => return (read, None),
                    Ok(length) => read += length,
                    Err(error) => return (read, Some(error.to_string())),
                }
            }
        };
        let peer = async {
            let mut asked = vec![0; calls * 13];
            theirs.read_exact(&mut asked).await.unwrap();
            let _gone = theirs.write_all(said).await;
            let _gone = theirs.shutdown().await;
            std::future::pending().await
        };
        tokio::select! {
            outcome = talk => outcome,
            () = peer => unreachable!(),
        }
    }

    #[tokio::test]
    async fn each_call_has_one_answer() {
        for size in [1, 7, 4096] {
            let two = message(2, b"ok").repeat(2);
            assert_eq!(read(2, &two, size).await, (24, None));
            let (_, error) = read(1, &two, size).await;
            assert!(error.as_ref().is_some_and(|error| error.contains("not asked")), "{error:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_not_longer_than_any_has_to_be() {
        let longest = message(LONGEST, &vec![0; LONGEST]);
        assert_eq!(read(1, &longest, 4096).await, (longest.len(), None));
        let (_, error) = read(1, &message(LONGEST + 1, b""), 4096).await;
        assert!(error.as_ref().is_some_and(|error| error.contains("262145 bytes, more than")), "{error:?}");
    }
}
