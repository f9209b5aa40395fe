// SPDX-License-Identifier: Apache-2.0
//! Writes cpio archives in the form "newc", which Linux takes as an initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel).
//!
//! An entry has thirteen numbers of eight hexadecimal digits, a name that ends with a zero, and the
//! content; name and content are each filled up to a multiple of four. The last entry is called
//! `TRAILER!!!`. All belongs to root and has no time, so that the same entries give the same bytes.
//!
//! The crate `cpio`, which the tests read these archives with, was weighed: it writes the numbers
//! in small letters, so archives would differ from those that were made before it, for nothing.

use anyhow::{Context, Result};
use std::io::Write;

const FOLDER: u32 = 0o040_000;
const DEVICE: u32 = 0o020_000;
const FILE: u32 = 0o100_000;

/// The archive's length is a multiple of it.
const BLOCK: usize = 512;

/// An archive that is being written.
pub struct Archive<W> {
    to: W,
    written: usize,
    /// The number of the last entry. Entries of one number would be links to one file.
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An archive without entries.
    pub fn new(to: W) -> Self {
        Self { to, written: 0, inode: 0 }
    }

    /// Adds an empty directory.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn directory(&mut self, name: &str, permissions: u32) -> Result<()> {
        self.entry(name, FOLDER | permissions, &[], (0, 0))
    }

    /// Adds the node of a character device.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn device(&mut self, name: &str, permissions: u32, major: u32, minor: u32) -> Result<()> {
        self.entry(name, DEVICE | permissions, &[], (major, minor))
    }

    /// Adds a file.
    ///
    /// # Errors
    /// Where it cannot be written, or is too long for the format.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> Result<()> {
        self.entry(name, FILE | permissions, content, (0, 0))
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn finish(mut self) -> Result<W> {
        self.entry("TRAILER!!!", 0, &[], (0, 0))?;
        self.fill(BLOCK)?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8], (major, minor): (u32, u32)) -> Result<()> {
        let length = u32::try_from(content.len()).with_context(|| format!("{name} is too long for an initramfs"))?;
        let name_length = u32::try_from(name.len() + 1).with_context(|| format!("a name is too long: {name}"))?;
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        let (user, group, time, checksum) = (0, 0, 0, 0);
        self.inode += 1;
        self.put(b"070701")?;
        for number in [self.inode, mode, user, group, links, time, length, 0, 0, major, minor, name_length, checksum] {
            self.put(format!("{number:08X}").as_bytes())?;
        }
        self.put(name.as_bytes())?;
        self.put(b"\0")?;
        self.fill(4)?;
        self.put(content)?;
        self.fill(4)
    }

    /// Zeroes up to a multiple of `size`.
    fn fill(&mut self, size: usize) -> Result<()> {
        self.put(&vec![0; self.written.next_multiple_of(size) - self.written])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len();
        Ok(self.to.write_all(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read;

    const ZERO: &str = "00000000";

    #[test]
    fn another_program_reads_what_was_written() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev", 0o755).unwrap();
        archive.device("dev/null", 0o666, 1, 3).unwrap();
        for length in 0..9 {
            archive.file(&"n".repeat(length + 1), 0o644, &vec![7; length]).unwrap();
        }
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);

        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            let (name, mode, links, inode) = (entry.name().to_owned(), entry.mode(), entry.nlink(), entry.ino());
            let device = (entry.rdev_major(), entry.rdev_minor());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            seen.push((name, mode, links, inode, device, content));
            rest = reader.finish().unwrap();
        }
        assert_eq!(seen[0], ("dev".into(), 0o040_755, 2, 1, (0, 0), vec![]));
        assert_eq!(seen[1], ("dev/null".into(), 0o020_666, 1, 2, (1, 3), vec![]));
        for (length, entry) in seen[2..].iter().enumerate() {
            assert_eq!(*entry, ("n".repeat(length + 1), 0o100_644, 1, length as u32 + 3, (0, 0), vec![7; length]));
        }
        assert_eq!(seen.len(), 11);
    }

    #[test]
    fn an_entry_has_the_bytes_that_the_format_wants() {
        let mut archive = Archive::new(Vec::new());
        archive.file("init", 0o755, b"code.").unwrap();
        // Number, mode, user, group, links, time, length, two of a device that holds the file, two
        // of a device that it is, the name's length, checksum.
        let numbers = ["00000001", "000081ED", ZERO, ZERO, "00000001", ZERO, "00000005", ZERO, ZERO, ZERO, ZERO, "00000005", ZERO];
        let wanted = format!("070701{}init\0\0code.\0\0\0", numbers.concat());
        assert_eq!(String::from_utf8(archive.to).unwrap(), wanted);
    }
}
