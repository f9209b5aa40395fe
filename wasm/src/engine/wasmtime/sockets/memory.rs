// SPDX-License-Identifier: Apache-2.0
//! The memory of a module, whose pointers and lengths may be any numbers.

use super::errno::{Errno, Result};

/// As many buffers as one call may have: `IOV_MAX` of Linux, and WasmEdge's limit.
const MOST_BUFFERS: u32 = 1024;

/// A module's memory during one call.
#[derive(Debug)]
pub struct Memory<'a>(&'a mut [u8]);

/// A buffer of the module, which lies in its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    at: u32,
    size: u32,
}

impl Buffer {
    /// How many bytes it has.
    pub fn size(self) -> usize {
        self.size as usize
    }
}

impl<'a> Memory<'a> {
    /// A memory with these contents.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self(bytes)
    }

    /// All of it.
    pub fn whole(&mut self) -> &mut [u8] {
        self.0
    }

    /// A buffer at this place.
    ///
    /// # Errors
    /// `fault` where it is not within the memory.
    pub fn buffer(&self, at: u32, size: u32) -> Result<Buffer> {
        self.0.get(range(at, size as usize)).map(|_| Buffer { at, size }).ok_or(Errno::FAULT)
    }

    /// The buffers of a list: pairs of a pointer and a length (`iovec` and `ciovec` in WASI).
    ///
    /// # Errors
    /// `inval` for more than a call may have, `fault` where one is not within the memory.
    pub fn buffers(&self, list: u32, count: u32) -> Result<Vec<Buffer>> {
        if count > MOST_BUFFERS {
            return Err(Errno::INVAL);
        }
        let (entries, _) = self.bytes(self.buffer(list, count * 8)?).as_chunks::<8>();
        entries.iter().map(|entry| self.buffer(u32_at(entry, 0), u32_at(entry, 4))).collect()
    }

    /// What is in a buffer.
    pub fn bytes(&self, buffer: Buffer) -> &[u8] {
        // A memory never shrinks, and buffers do not outlive a call.
        self.0.get(range(buffer.at, buffer.size())).unwrap_or_default()
    }

    /// A buffer, to be written to.
    pub fn bytes_mut(&mut self, buffer: Buffer) -> &mut [u8] {
        self.0.get_mut(range(buffer.at, buffer.size())).unwrap_or_default()
    }

    /// A record of `N` bytes.
    ///
    /// # Errors
    /// `fault` where it is not within the memory.
    pub fn record<const N: usize>(&self, at: u32) -> Result<[u8; N]> {
        self.0.get(range(at, N)).and_then(|bytes| bytes.try_into().ok()).ok_or(Errno::FAULT)
    }

    /// Checks that a call will be able to write its result of so many bytes, which it does before
    /// the call has an effect.
    ///
    /// # Errors
    /// `fault` where that is not within the memory.
    pub fn will_take(&self, at: u32, size: u32) -> Result<()> {
        self.buffer(at, size).map(drop)
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// `fault` where they do not fit into the memory.
    pub fn write(&mut self, at: u32, bytes: &[u8]) -> Result<()> {
        self.0.get_mut(range(at, bytes.len())).ok_or(Errno::FAULT)?.copy_from_slice(bytes);
        Ok(())
    }
}

fn range(at: u32, size: usize) -> std::ops::Range<usize> {
    let at = at as usize;
    at..at.saturating_add(size)
}

/// A number in a record, at a place that the record has.
pub fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(record, at))
}

/// A number in a record, at a place that the record has.
pub fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(record, at))
}

/// A number in a record, at a place that the record has.
pub fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(record, at))
}

fn field<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    record.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_out_of_the_memory_are_a_fault() {
        let mut bytes = [0; 64];
        let mut memory = Memory::new(&mut bytes);
        assert!(memory.buffer(60, 4).is_ok() && memory.buffer(64, 0).is_ok());
        for (at, size) in [(61, 4), (65, 0), (u32::MAX, 1), (0, u32::MAX), (u32::MAX, u32::MAX)] {
            assert_eq!(memory.buffer(at, size), Err(Errno::FAULT), "{at} {size}");
        }
        assert_eq!(memory.record::<8>(57), Err(Errno::FAULT));
        assert_eq!(memory.write(61, &[1; 4]), Err(Errno::FAULT));
        assert_eq!(memory.write(60, &[1; 4]), Ok(()));
        assert_eq!(memory.record(60), Ok([1; 4]));
    }

    #[test]
    fn each_buffer_of_a_list_is_checked() {
        let mut bytes = [0; 64];
        let mut memory = Memory::new(&mut bytes);
        memory.write(0, &[32, 0, 0, 0, 32, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let both = memory.buffers(0, 2).unwrap();
        assert_eq!(both.iter().map(|buffer| buffer.size()).collect::<Vec<_>>(), [32, 0]);
        assert_eq!(memory.buffers(0, 0), Ok(Vec::new()));
        assert_eq!(memory.buffers(0, 9), Err(Errno::FAULT), "the list itself");
        assert_eq!(memory.buffers(0, MOST_BUFFERS + 1), Err(Errno::INVAL));
        assert_eq!(memory.buffers(0, u32::MAX), Err(Errno::INVAL));
        memory.write(4, &[33]).unwrap();
        assert_eq!(memory.buffers(0, 2), Err(Errno::FAULT));
    }
}
