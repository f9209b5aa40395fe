// SPDX-License-Identifier: Apache-2.0
//! A module's memory, for the functions that are lent to modules of each engine. It is hostile:
//! each pointer and each length is checked.

/// A module's memory.
pub trait Memory {
    /// Copies bytes out of it; `None` if some are outside.
    fn read(&self, at: u32, length: u32) -> Option<Vec<u8>>;

    /// Copies bytes into it; `None` if some would be outside. Nothing is written then.
    fn write(&mut self, at: u32, bytes: &[u8]) -> Option<()>;
}

/// A memory that can be borrowed as a whole.
pub struct Linear<'a>(pub &'a mut [u8]);

impl Memory for Linear<'_> {
    fn read(&self, at: u32, length: u32) -> Option<Vec<u8>> {
        self.0.get(at as usize..)?.get(..length as usize).map(<[u8]>::to_vec)
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> Option<()> {
        self.0.get_mut(at as usize..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(())
    }
}
