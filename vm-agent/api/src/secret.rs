// SPDX-License-Identifier: Apache-2.0
//! What the host proves itself with. A guest's vsock may be open to all processes of the host, containers with host kernels
//! among them: to the guest, all of them are the host.

use std::fmt;
use std::io::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The file of the share in which the guest finds its secret when it boots. No container's folder can have the name.
pub const FILE: &str = ".secret";

/// How long it is, in bytes.
pub const LENGTH: usize = 32;

/// A pod's secret: bytes that nobody can guess.
#[derive(Clone, Copy)]
pub struct Secret([u8; LENGTH]);

impl Secret {
    /// A secret of random bytes.
    pub fn new(random: [u8; LENGTH]) -> Self {
        Self(random)
    }

    /// Its bytes, for [`FILE`].
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Says it. Not cancel-safe.
    ///
    /// # Errors
    /// Where the connection fails.
    pub async fn say(&self, to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        to.write_all(&self.0).await?;
        to.flush().await
    }

    /// Hears whether the other side knows it. Not cancel-safe.
    ///
    /// # Errors
    /// Where the connection fails.
    pub async fn is_said(&self, from: &mut (impl AsyncRead + Unpin)) -> Result<bool> {
        let mut said = [0; LENGTH];
        from.read_exact(&mut said).await?;
        // All of it is looked at: how long that takes tells nothing.
        Ok(self.0.iter().zip(&said).fold(0, |differences, (ours, theirs)| differences | (ours ^ theirs)) == 0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_knows_it_can_say_it() {
        let secret = Secret::new([7; LENGTH]);
        let mut wire = Vec::new();
        secret.say(&mut wire).await.unwrap();
        assert!(secret.is_said(&mut wire.as_slice()).await.unwrap());
        for at in 0..LENGTH {
            let mut wrong = wire.clone();
            wrong[at] ^= 1;
            assert!(!secret.is_said(&mut wrong.as_slice()).await.unwrap(), "{at}");
            secret.is_said(&mut &wire[..at]).await.unwrap_err();
        }
    }

    #[test]
    fn it_is_in_no_log() {
        assert_eq!(format!("{:?}", Secret::new([7; LENGTH])), "Secret");
    }
}
