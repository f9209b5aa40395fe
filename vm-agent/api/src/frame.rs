// SPDX-License-Identifier: Apache-2.0
//! Messages on a connection: four bytes of length, the most significant first, then JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};

/// The longest message of the host, in bytes. A large OCI specification must fit.
pub const FROM_HOST: usize = 16 << 20;

/// The longest message of a peer that has not yet proved to be the host, in bytes.
pub const FROM_ANYONE: usize = 4 << 10;

/// The longest message of a guest, in bytes. A guest's messages are short and fit into one packet
/// ([`chunk`](crate::chunk) says why they must).
pub const FROM_GUEST: usize = 16 << 10;

/// The wire format, for messages of at most `longest` bytes. By default its length is four bytes,
/// the largest first.
fn codec(longest: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(longest).new_codec()
}

/// Sends a message. Not cancel-safe.
///
/// # Errors
/// When the connection fails.
pub async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut bytes = BytesMut::new();
    // The receiver knows its own bound, and refuses what is longer.
    codec(u32::MAX as usize)
        .encode(text.as_slice(), &mut bytes)
        .map_err(|error| Error::new(error.kind(), format!("cannot send a message of {} bytes: {error}", text.len())))?;
    to.write_all(&bytes).await?;
    to.flush().await
}

/// Receives a message of at most `longest` bytes. Not cancel-safe.
///
/// Reads to the end of the message and no byte further (`FramedRead` would): behind the first
/// messages on a connection come bytes that are not messages.
///
/// # Errors
/// `UnexpectedEof` at the end of the connection, `InvalidData` for an invalid message.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), longest: usize) -> Result<T> {
    let mut codec = codec(longest);
    let length = from.read_u32().await?;
    let mut bytes = BytesMut::from(length.to_be_bytes().as_slice());
    let mut rest = from.take(length.into());
    let text = loop {
        // The codec refuses a length above the bound before it reserves memory for the message.
        let decoded = codec
            .decode(&mut bytes)
            .map_err(|error| Error::new(error.kind(), format!("a message of {length} bytes, more than {longest}")))?;
        if let Some(text) = decoded {
            break text;
        }
        if rest.read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    };
    serde_json::from_slice(&text).map_err(|error| Error::new(ErrorKind::InvalidData, format!("a message does not parse: {error}")))
}

#[cfg(test)]
mod tests;
