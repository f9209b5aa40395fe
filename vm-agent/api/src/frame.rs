// SPDX-License-Identifier: Apache-2.0
//! Messages on a connection: four bytes of length, the most significant first, then JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest message of the host, in bytes. A large OCI specification must fit.
pub const FROM_HOST: usize = 16 << 20;

/// The longest message of a peer that has not yet proved to be the host, in bytes.
pub const FROM_ANYONE: usize = 4 << 10;

/// The longest message of a guest, in bytes. A guest's messages are short and fit into one packet
/// ([`chunk`](crate::chunk) says why they must).
pub const FROM_GUEST: usize = 16 << 10;

/// Sends a message. Not cancel-safe.
///
/// # Errors
/// When the connection fails.
pub async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(|_| Error::new(ErrorKind::InvalidInput, "a message is too long"))?;
    let mut bytes = Vec::with_capacity(4 + text.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&text);
    to.write_all(&bytes).await?;
    to.flush().await
}

/// Receives a message of at most `longest` bytes. Not cancel-safe.
///
/// # Errors
/// `UnexpectedEof` at the end of the connection, `InvalidData` for an invalid message.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), longest: usize) -> Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > longest {
        return Err(Error::new(ErrorKind::InvalidData, format!("a message of {length} bytes, more than {longest}")));
    }
    // It grows with the bytes that arrive, not with the length that is announced.
    let mut text = Vec::new();
    from.take(length as u64).read_to_end(&mut text).await?;
    if text.len() < length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&text).map_err(|error| Error::new(ErrorKind::InvalidData, format!("a message does not parse: {error}")))
}

#[cfg(test)]
mod tests;
