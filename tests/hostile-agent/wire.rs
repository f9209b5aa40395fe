// SPDX-License-Identifier: Apache-2.0
//! What is sent as the protocol has it, and what is not.

use crate::boot::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

/// Receives a message.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut text = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Sends a message.
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> Result<()> {
    let text = serde_json::to_vec(message)?;
    to.write_all(&[&(text.len() as u32).to_be_bytes(), text.as_slice()].concat())?;
    Ok(())
}

/// Says the same for as long as somebody listens.
pub fn endlessly(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    loop {
        to.write_all(bytes)?;
    }
}

/// Says the same for as long as somebody listens, ten times in a second.
pub fn drip(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    loop {
        to.write_all(bytes)?;
        thread::sleep(Duration::from_millis(100));
    }
}
