// SPDX-License-Identifier: Apache-2.0
//! Bytes on a connection, both ways, with their ends.
//!
//! ```text
//! kind      1 byte
//! length    2 bytes, the largest first
//!   0  data     of that length, at least one byte
//!   1  end      there is no more data; its length is 0
//!   2  taken    data of that length, or with 0 the end, has reached whom it is for
//! ```
//!
//! vsock has half-closed connections and flow control, but not every device that carries it to the host has both right.
//! vhost-device-vsock 0.3 does not pass half-closes on, may lose what is on its way when a connection is closed, and takes
//! only the first piece of a packet that the guest's kernel has in several, as Linux has those of more than 32 KiB. So the end
//! is said in words, a connection is closed when both ends are known to have arrived, chunks are short, and whoever sends has no
//! more than a window of data on its way, for which there is room everywhere.

use std::io::{Error, ErrorKind, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_util::bytes::{Buf, BytesMut};
use tokio_util::codec::{Decoder, FramedRead};

/// The longest data in one chunk, in bytes.
pub const LONGEST: usize = (16 << 10) - 3;

/// How much data may be on its way, in bytes. A device's own buffers are larger.
pub const WINDOW: usize = 64 << 10;

/// What a short chunk counts as: the kernel's buffers count its frame too.
const LEAST: usize = 1 << 10;

/// How long the head of a chunk is, in bytes.
const HEAD: usize = 3;

const DATA: u8 = 0;
const END: u8 = 1;
const TAKEN: u8 = 2;

/// What a chunk takes of the window.
fn cost(length: usize) -> usize {
    length.max(LEAST)
}

/// What the three halves of a connection know of each other.
struct Shared {
    state: Mutex<State>,
    /// For whoever writes to the connection.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// What is on its way from us.
    sent: usize,
    /// What has come from them, and they are not told yet that it was taken.
    theirs: usize,
    /// What has been taken of it, and is to be told. Bounded by the window: who does not listen has no more of one.
    owed: Vec<u16>,
    /// Our end was sent.
    ended: bool,
    /// It has arrived.
    end_taken: bool,
    /// Their end has come, and this was told.
    their_end_told: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has changed that whoever writes must know.
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_one();
    }
}

/// Sends all that can be read from `from`, and writes all that arrives to `to`, each to its end, over `connection`, at whose
/// other end this is called too. One way may end long before the other. `to` is closed when its end has come. Not cancel-safe:
/// who cancels it ends the connection, and the other side fails.
///
/// # Errors
/// Where a side fails, which is the end of both ways: `UnexpectedEof` for a connection that has gone, `InvalidData` for one that
/// makes no sense.
pub async fn carry(from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin, connection: impl AsyncRead + AsyncWrite) -> Result<()> {
    let (wire_in, wire_out) = tokio::io::split(connection);
    let shared = Shared { state: Mutex::default(), changed: Notify::new() };
    // Never full while the other side keeps to the window.
    let (queue, queued) = mpsc::channel(WINDOW / LEAST + 1);
    tokio::try_join!(hear(wire_in, queue, &shared), pass_on(queued, to, &shared), say(from, wire_out, &shared)).map(drop)
}

/// Reads the connection, and waits for nothing else: what is told of the other direction must not wait behind data.
async fn hear(wire: impl AsyncRead + Unpin, queue: mpsc::Sender<BytesMut>, shared: &Shared) -> Result<()> {
    let mut chunks = FramedRead::new(wire, Chunks);
    let mut queue = Some(queue);
    loop {
        if queue.is_none() && shared.state().end_taken {
            return Ok(());
        }
        let chunk = match chunks.next().await.unwrap_or_else(|| Err(ErrorKind::UnexpectedEof.into())) {
            Ok(chunk) => chunk,
            // The other side has our end, or it would have waited; that it has told us was lost.
            Err(error) if error.kind() != ErrorKind::InvalidData && queue.is_none() && shared.state().ended => {
                shared.change(|state| state.end_taken = true);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match chunk {
            Chunk::Data(data) => {
                let Some(queue) = &queue else { return Err(senseless("data after the end")) };
                shared.state().theirs += cost(data.len());
                if shared.state().theirs > WINDOW {
                    return Err(senseless("more data than the window"));
                }
                queue.try_send(data).map_err(|_| senseless("more data than the window"))?;
            }
            Chunk::End => drop(queue.take().ok_or_else(|| senseless("two ends"))?),
            Chunk::Taken(0) if shared.state().ended => shared.change(|state| state.end_taken = true),
            Chunk::Taken(length @ 1..) if shared.state().sent >= cost(length.into()) => {
                shared.change(|state| state.sent -= cost(length.into()));
            }
            Chunk::Taken(_) => return Err(senseless("more was taken than was sent")),
        }
    }
}

/// Writes what has arrived to whom it is for.
async fn pass_on(mut queued: mpsc::Receiver<BytesMut>, mut to: impl AsyncWrite + Unpin, shared: &Shared) -> Result<()> {
    while let Some(data) = queued.recv().await {
        to.write_all(&data).await?;
        to.flush().await?;
        // It is at most LONGEST.
        shared.change(|state| state.owed.push(data.len() as u16));
    }
    to.shutdown().await?;
    drop(to);
    shared.change(|state| state.owed.push(0));
    Ok(())
}

/// Writes to the connection: what was taken of theirs, and our data as long as there is a window.
async fn say(mut from: impl AsyncRead + Unpin, mut wire: impl AsyncWrite + Unpin, shared: &Shared) -> Result<()> {
    let mut chunk = vec![0; 3 + LONGEST];
    loop {
        let changed = shared.changed.notified();
        let (owed, room, ended) = {
            let mut state = shared.state();
            if state.owed.is_empty() && state.their_end_told && state.end_taken {
                return Ok(());
            }
            let owed = std::mem::take(&mut state.owed);
            // Before they are told: they may make use of it before we are told that they know.
            state.theirs -= owed.iter().map(|&length| usize::from(length)).filter(|&length| length > 0).map(cost).sum::<usize>();
            (owed, WINDOW.saturating_sub(state.sent).min(LONGEST), state.ended)
        };
        if !owed.is_empty() {
            let bytes: Vec<u8> = owed.iter().flat_map(|length| head(TAKEN, *length)).collect();
            let told = wire.write_all(&bytes).await.and(wire.flush().await);
            let mut state = shared.state();
            if told.is_err() && !state.end_taken {
                return told;
            }
            state.their_end_told |= owed.contains(&0);
            continue;
        }
        tokio::select! {
            () = changed => {}
            read = from.read(&mut chunk[3..3 + room]), if room >= LEAST && !ended => {
                let length = read?;
                {
                    // Before it is sent: it may be taken before we are told that it was sent.
                    let mut state = shared.state();
                    if length == 0 {
                        state.ended = true;
                    } else {
                        state.sent += cost(length);
                    }
                }
                chunk[..3].copy_from_slice(&head(if length == 0 { END } else { DATA }, length as u16));
                wire.write_all(&chunk[..3 + length]).await?;
                wire.flush().await?;
            }
        }
    }
}

/// A chunk that has arrived.
enum Chunk {
    Data(BytesMut),
    End,
    Taken(u16),
}

/// The wire format, as it is read.
struct Chunks;

impl Decoder for Chunks {
    type Item = Chunk;
    type Error = Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Chunk>> {
        let Some(&[kind, high, low]) = bytes.first_chunk() else { return Ok(None) };
        let length = u16::from_be_bytes([high, low]);
        let chunk = match (kind, usize::from(length)) {
            (DATA, size @ 1..=LONGEST) => {
                if bytes.len() < HEAD + size {
                    bytes.reserve(HEAD + size - bytes.len());
                    return Ok(None);
                }
                bytes.advance(HEAD);
                return Ok(Some(Chunk::Data(bytes.split_to(size))));
            }
            (END, 0) => Chunk::End,
            (TAKEN, _) => Chunk::Taken(length),
            _ => return Err(senseless("a chunk that is none")),
        };
        bytes.advance(HEAD);
        Ok(Some(chunk))
    }

    /// At the end of the connection. In the middle of a chunk that is an error of its own.
    fn decode_eof(&mut self, bytes: &mut BytesMut) -> Result<Option<Chunk>> {
        match self.decode(bytes)? {
            None if !bytes.is_empty() => Err(ErrorKind::UnexpectedEof.into()),
            chunk => Ok(chunk),
        }
    }
}

fn head(kind: u8, length: u16) -> [u8; HEAD] {
    let [high, low] = length.to_be_bytes();
    [kind, high, low]
}

fn senseless(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
