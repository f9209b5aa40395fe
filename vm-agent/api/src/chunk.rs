// SPDX-License-Identifier: Apache-2.0
//! Bytes on a connection, with their end: chunks of a length in two bytes, the largest first, and as many bytes. A chunk of
//! no bytes is the end.
//!
//! vsock has half-closed connections, but not every device that carries it to the host tells the host of them, and a
//! connection that is closed may lose what was on its way. So the end is said in words, and whoever has it closes.

use std::io::{ErrorKind, Result};
use std::pin::pin;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest chunk, in bytes.
pub const LONGEST: usize = 32 << 10;

/// Room for one chunk, with its length before it.
#[derive(Debug)]
pub struct Buffer(Box<[u8]>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; 2 + LONGEST].into_boxed_slice())
    }
}

impl Buffer {
    /// Where to put what is sent next.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.0[2..]
    }

    /// Sends the first `length` bytes of [`space`](Self::space), of which none is the end. Not cancel-safe.
    ///
    /// # Errors
    /// Where the connection fails.
    pub async fn send(&mut self, length: usize, to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        let length = length.min(LONGEST);
        self.0[..2].copy_from_slice(&(length as u16).to_be_bytes());
        to.write_all(&self.0[..2 + length]).await?;
        to.flush().await
    }

    /// Receives a chunk; `None` is the end. Not cancel-safe.
    ///
    /// # Errors
    /// `UnexpectedEof` where the connection ends before its end was said, `InvalidData` for a chunk that is too long.
    pub async fn receive(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Result<Option<&[u8]>> {
        let mut length = [0; 2];
        from.read_exact(&mut length).await?;
        let length = usize::from(u16::from_be_bytes(length));
        if length == 0 {
            return Ok(None);
        }
        if length > LONGEST {
            return Err(ErrorKind::InvalidData.into());
        }
        from.read_exact(&mut self.0[..length]).await?;
        Ok(Some(&self.0[..length]))
    }
}

/// Sends all that can be read, and the end. Not cancel-safe.
///
/// # Errors
/// Where either side fails.
pub async fn send_all(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    let mut buffer = Buffer::default();
    loop {
        let length = from.read(buffer.space()).await?;
        buffer.send(length, to).await?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// Writes all that is received, up to the end, which it passes on by a shutdown. Not cancel-safe.
///
/// # Errors
/// Where either side fails.
pub async fn receive_all(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    let mut buffer = Buffer::default();
    while let Some(bytes) = buffer.receive(from).await? {
        to.write_all(bytes).await?;
        to.flush().await?;
    }
    to.shutdown().await
}

/// Carries the bytes of `plain`, both ways and each to its end, over `connection`, to whoever calls this at its other end. One
/// way may end long before the other. Not cancel-safe.
///
/// # Errors
/// Where either side fails, which is the end of both ways. What is written to `plain` has no end then: it should be reset.
pub async fn carry(plain: impl AsyncRead + AsyncWrite, connection: impl AsyncRead + AsyncWrite) -> Result<()> {
    let (mut plain_in, mut plain_out) = tokio::io::split(plain);
    let (mut from, mut to) = tokio::io::split(connection);
    carry_to_ends(&mut plain_in, &mut plain_out, &mut from, &mut to).await?;
    // Both ends are said, but ours may be on its way, and not arrive if the connection is closed now. So each side says that
    // it has the other's, by one more chunk of no bytes, and waits for that; or for the other to have gone, who was content.
    if to.write_all(&[0; 2]).await.is_ok() && to.flush().await.is_ok() {
        let _content = from.read_u16().await;
    }
    Ok(())
}

async fn carry_to_ends(
    plain_in: &mut (impl AsyncRead + Unpin),
    plain_out: &mut (impl AsyncWrite + Unpin),
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<()> {
    let mut sending = pin!(send_all(plain_in, to));
    {
        let mut receiving = pin!(receive_all(from, plain_out));
        tokio::select! {
            sent = &mut sending => {
                sent?;
                return receiving.await;
            }
            received = &mut receiving => received?,
        }
    }
    tokio::select! {
        biased;
        sent = sending => sent,
        // There is nothing more to be said before our end: the other side has gone, or makes no sense.
        gone = from.read_u8() => Err(gone.err().unwrap_or(ErrorKind::InvalidData.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn bytes_arrive_with_their_end() {
        let text: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let (mut wire, mut received) = (Vec::new(), std::io::Cursor::new(Vec::new()));
        send_all(&mut text.as_slice(), &mut wire).await.unwrap();
        receive_all(&mut wire.as_slice(), &mut received).await.unwrap();
        assert_eq!(received.into_inner(), text);
        wire.truncate(wire.len() - 1);
        let torn = receive_all(&mut wire.as_slice(), &mut std::io::Cursor::new(Vec::new())).await;
        assert_eq!(torn.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_chunk_that_is_too_long_is_refused() {
        let wire = (LONGEST as u16 + 1).to_be_bytes();
        assert_eq!(Buffer::default().receive(&mut wire.as_slice()).await.unwrap_err().kind(), ErrorKind::InvalidData);
    }

    const END: [u8; 2] = [0; 2];

    #[tokio::test]
    async fn each_way_has_an_end_of_its_own() {
        for client_first in [true, false] {
            let ((mut client, near), (wire, other_wire), (far, mut server)) = (duplex(9), duplex(9), duplex(9));
            let (first, last) = if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
            let talk = async {
                first.write_all(b"a question, and no more").await.unwrap();
                first.shutdown().await.unwrap();
                let mut text = String::new();
                last.read_to_string(&mut text).await.unwrap();
                assert_eq!(text, "a question, and no more");
                last.write_all(b"the answer").await.unwrap();
                last.shutdown().await.unwrap();
                text.clear();
                first.read_to_string(&mut text).await.unwrap();
                assert_eq!(text, "the answer");
            };
            let (near, far, ()) = tokio::join!(carry(near, wire), carry(far, other_wire), talk);
            near.and(far).unwrap();
        }
    }

    #[tokio::test]
    async fn what_was_said_last_has_arrived_before_the_connection_is_closed() {
        let ((mut client, plain), (wire, mut other)) = (duplex(99), duplex(99));
        let mut carried = pin!(carry(plain, wire));
        let talk = async {
            client.write_all(b"x").await.unwrap();
            client.shutdown().await.unwrap();
            other.write_all(&END).await.unwrap();
            let mut said = [0; 7];
            other.read_exact(&mut said).await.unwrap();
            assert_eq!(said, [0, 1, b'x', 0, 0, 0, 0]);
            tokio::task::yield_now().await;
        };
        tokio::select! {
            biased;
            _ = &mut carried => panic!("it is closed"),
            () = talk => {}
        }
        other.write_all(&END).await.unwrap();
        carried.await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_fails_is_the_end_of_both_ways() {
        // Both ways go on; this side has ended its own; the other side has; the other side says more after its end.
        for (ended, said, kind) in [
            (false, &[][..], ErrorKind::UnexpectedEof),
            (true, &[], ErrorKind::UnexpectedEof),
            (false, &END, ErrorKind::UnexpectedEof),
            (false, &[0, 0, 7], ErrorKind::InvalidData),
        ] {
            let ((mut client, plain), (wire, mut other)) = (duplex(99), duplex(99));
            if ended {
                client.shutdown().await.unwrap();
            }
            other.write_all(said).await.unwrap();
            if kind == ErrorKind::UnexpectedEof {
                drop(other);
            }
            assert_eq!(carry(plain, wire).await.unwrap_err().kind(), kind, "{ended} {said:?}");
        }
    }
}
