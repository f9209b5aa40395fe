// SPDX-License-Identifier: Apache-2.0
//! Bytes on a connection, with their end: chunks of a length in two bytes, the largest first, and as many bytes. A chunk of
//! no bytes is the end.
//!
//! vsock has half-closed connections, but not every device that carries it to the host tells the host of them, and a
//! connection that is closed may lose what was on its way. So the end is said in words, and whoever has it closes.

use std::io::{ErrorKind, Result};
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

/// Carries the bytes of `plain`, both ways and each to its end, over `connection`.
///
/// # Errors
/// Where either side fails.
pub async fn carry(plain: impl AsyncRead + AsyncWrite, connection: impl AsyncRead + AsyncWrite) -> Result<()> {
    let (mut plain_in, mut plain_out) = tokio::io::split(plain);
    let (mut from, mut to) = tokio::io::split(connection);
    tokio::try_join!(send_all(&mut plain_in, &mut to), receive_all(&mut from, &mut plain_out)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
