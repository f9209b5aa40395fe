// SPDX-License-Identifier: Apache-2.0
//! Bytes that nobody can guess.

use magnetar_core::error::{Context, Result};
use std::fs::File;
use std::io::Read;

/// As many as are asked for.
///
/// # Errors
/// Where /dev/urandom cannot be read.
pub fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context(|| "cannot read /dev/urandom".into())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn they_differ() {
        assert_ne!(super::bytes::<32>().unwrap(), super::bytes::<32>().unwrap());
    }
}
