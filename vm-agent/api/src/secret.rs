// SPDX-License-Identifier: Apache-2.0
//! The secret with which a connection proves that it is from magnetar-vmm. All processes of the
//! host, containers on the host's kernel included, may be able to connect to a guest's vsock, and
//! the guest cannot tell them apart.

use std::fmt;
use std::io::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The file in the share from which the guest reads its secret at boot. No container's folder can
/// have this name.
pub const FILE: &str = ".secret";

/// The file in the share with [`SEED_LENGTH`] random bytes for the kernel of a guest that began as
/// a template: all guests that begin so have the same random number generator. Beside [`FILE`], and
/// only for such guests.
pub const SEED: &str = ".seed";

/// The length of [`SEED`] in bytes.
pub const SEED_LENGTH: usize = 64;

/// The length of a secret in bytes.
pub const LENGTH: usize = 32;

/// A pod's secret: random bytes.
#[derive(Clone, Copy)]
pub struct Secret([u8; LENGTH]);

impl Secret {
    /// A secret of these bytes, which must be random.
    pub fn new(random: [u8; LENGTH]) -> Self {
        Self(random)
    }

    /// The bytes, for [`FILE`].
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Sends the secret. Not cancel-safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn say(&self, to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        to.write_all(&self.0).await?;
        to.flush().await
    }

    /// Receives bytes and tells whether they are the secret. Not cancel-safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn is_said(&self, from: &mut (impl AsyncRead + Unpin)) -> Result<bool> {
        let mut said = [0; LENGTH];
        from.read_exact(&mut said).await?;
        // Compares all bytes, so the time does not tell how many are right.
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
    async fn only_the_exact_secret_is_accepted() {
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
    fn a_secret_is_not_formatted() {
        assert_eq!(format!("{:?}", Secret::new([7; LENGTH])), "Secret");
    }
}
