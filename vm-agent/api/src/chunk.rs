// SPDX-License-Identifier: Apache-2.0
//! Carries two byte streams, one each way, over a connection, and marks their ends.
//!
//! ```text
//! kind      1 byte
//! length    2 bytes, the largest first
//!   0  data     of that length, at least one byte
//!   1  end      there is no more data; its length is 0
//!   2  taken    acknowledges: data of that length, or with 0 the end, has reached its receiver
//! ```
//!
//! vsock has half-closed connections and flow control, but not every vsock device implements both
//! correctly. vhost-device-vsock 0.3 does not pass half-closes on, and may lose data that is on its
//! way when a connection is closed. It also takes only the first piece of a packet that the guest's
//! kernel holds in several pieces, as Linux does with packets of more than 32 KiB. So here an end
//! is a message, a connection is closed only when both ends are known to have arrived, chunks are
//! short, and a sender has at most one window of data on its way, for which all buffers have room.

use std::io::{Error, ErrorKind, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_util::bytes::{Buf, BytesMut};
use tokio_util::codec::{Decoder, FramedRead};

/// The longest data in one chunk, in bytes.
pub const LONGEST: usize = (16 << 10) - 3;

/// How much data may be unacknowledged, in bytes. A device's own buffers are larger.
pub const WINDOW: usize = 64 << 10;

/// The least that a chunk counts in the window, in bytes: the kernel's buffers count its frame as
/// well.
const LEAST: usize = 1 << 10;

/// How long the head of a chunk is, in bytes.
const HEAD: usize = 3;

const DATA: u8 = 0;
const END: u8 = 1;
const TAKEN: u8 = 2;

/// How much of the window a chunk uses, in bytes.
fn cost(length: usize) -> usize {
    length.max(LEAST)
}

/// The state that the reader, the writer and the deliverer of a connection share.
struct Shared {
    state: Mutex<State>,
    /// Wakes the writer.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// How much of the window our unacknowledged data uses.
    sent: usize,
    /// How much of the window the peer's data uses that we have not acknowledged yet.
    received: usize,
    /// Acknowledgements still to be sent. The peer's window bounds them.
    acknowledgements: Vec<u16>,
    /// Our end was sent.
    end_sent: bool,
    /// The peer has acknowledged our end.
    end_acknowledged: bool,
    /// The peer's end has arrived and was acknowledged.
    peer_end_acknowledged: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the writer.
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_one();
    }
}

/// Sends all bytes of `from` over `connection`, and writes all bytes that arrive to `to`, each
/// until its end. The peer calls this function as well. One direction may end long before the
/// other. `to` is closed at its end. Not cancel-safe: cancelling ends the connection, and the peer
/// fails.
///
/// # Errors
/// When either side fails, which ends both directions: `UnexpectedEof` if the connection is lost,
/// `InvalidData` if the peer breaks the protocol.
pub async fn carry(from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin, connection: impl AsyncRead + AsyncWrite) -> Result<()> {
    let (wire_in, wire_out) = tokio::io::split(connection);
    let shared = Shared { state: Mutex::default(), changed: Notify::new() };
    // Never full while the peer keeps to the window.
    let (queue, queued) = mpsc::channel(WINDOW / LEAST + 1);
    tokio::try_join!(receive(wire_in, queue, &shared), deliver(queued, to, &shared), transmit(from, wire_out, &shared)).map(drop)
}

/// Reads the connection, and waits for nothing else: acknowledgements of our data must not wait
/// until the peer's data is delivered.
async fn receive(wire: impl AsyncRead + Unpin, queue: mpsc::Sender<BytesMut>, shared: &Shared) -> Result<()> {
    let mut chunks = FramedRead::new(wire, Chunks);
    let mut queue = Some(queue);
    loop {
        if queue.is_none() && shared.state().end_acknowledged {
            return Ok(());
        }
        let chunk = match chunks.next().await.unwrap_or_else(|| Err(ErrorKind::UnexpectedEof.into())) {
            Ok(chunk) => chunk,
            // The peer closes only when it has our end. Only its acknowledgement was lost.
            Err(error) if error.kind() != ErrorKind::InvalidData && queue.is_none() && shared.state().end_sent => {
                shared.change(|state| state.end_acknowledged = true);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match chunk {
            Chunk::Data(data) => {
                let Some(queue) = &queue else { return Err(invalid("data after the end")) };
                shared.state().received += cost(data.len());
                if shared.state().received > WINDOW {
                    return Err(invalid("more data than the window"));
                }
                queue.try_send(data).map_err(|_| invalid("more data than the window"))?;
            }
            Chunk::End => drop(queue.take().ok_or_else(|| invalid("two ends"))?),
            Chunk::Taken(0) if shared.state().end_sent => shared.change(|state| state.end_acknowledged = true),
            Chunk::Taken(length @ 1..) if shared.state().sent >= cost(length.into()) => {
                shared.change(|state| state.sent -= cost(length.into()));
            }
            Chunk::Taken(_) => return Err(invalid("an acknowledgement of more than was sent")),
        }
    }
}

/// Writes the data that has arrived to its receiver.
async fn deliver(mut queued: mpsc::Receiver<BytesMut>, mut to: impl AsyncWrite + Unpin, shared: &Shared) -> Result<()> {
    while let Some(data) = queued.recv().await {
        to.write_all(&data).await?;
        to.flush().await?;
        // It is at most LONGEST.
        shared.change(|state| state.acknowledgements.push(data.len() as u16));
    }
    to.shutdown().await?;
    drop(to);
    shared.change(|state| state.acknowledgements.push(0));
    Ok(())
}

/// Writes to the connection: acknowledgements, and our data while the window has room.
async fn transmit(mut from: impl AsyncRead + Unpin, mut wire: impl AsyncWrite + Unpin, shared: &Shared) -> Result<()> {
    let mut chunk = vec![0; 3 + LONGEST];
    loop {
        let changed = shared.changed.notified();
        let (acknowledgements, room, end_sent) = {
            let mut state = shared.state();
            if state.acknowledgements.is_empty() && state.peer_end_acknowledged && state.end_acknowledged {
                return Ok(());
            }
            let acknowledgements = std::mem::take(&mut state.acknowledgements);
            // Before the acknowledgement is sent: the peer may send more data before our write
            // returns.
            state.received -=
                acknowledgements.iter().map(|&length| usize::from(length)).filter(|&length| length > 0).map(cost).sum::<usize>();
            (acknowledgements, WINDOW.saturating_sub(state.sent).min(LONGEST), state.end_sent)
        };
        if !acknowledgements.is_empty() {
            let bytes: Vec<u8> = acknowledgements.iter().flat_map(|length| head(TAKEN, *length)).collect();
            let told = wire.write_all(&bytes).await.and(wire.flush().await);
            let mut state = shared.state();
            if told.is_err() && !state.end_acknowledged {
                return told;
            }
            state.peer_end_acknowledged |= acknowledgements.contains(&0);
            continue;
        }
        tokio::select! {
            () = changed => {}
            read = from.read(&mut chunk[3..3 + room]), if room >= LEAST && !end_sent => {
                let length = read?;
                {
                    // Before it is sent: it may be acknowledged before our write returns.
                    let mut state = shared.state();
                    if length == 0 {
                        state.end_sent = true;
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
            _ => return Err(invalid("a chunk that is none")),
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

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
