// SPDX-License-Identifier: Apache-2.0
//! Addresses in a module's memory, as WasmEdge has them there: a pointer to a buffer, and the
//! buffer's size (`__wasi_address_t` in its `api.hpp`). Ports are arguments of their own.
//!
//! ```text
//! 4 bytes    an IPv4 address
//! 16 bytes   an IPv6 address
//! 128 bytes  the family in 2 bytes, then the address (`WasiAddrStorage` in its `environ.h`)
//! ```

use super::errno::{Errno, Result};
use super::memory::{Buffer, Memory, u16_at, u32_at};
use rustix::net::AddressFamily;
use std::net::{IpAddr, SocketAddr};

/// The family of IPv4 addresses (`__wasi_address_family_t`).
pub const INET4: u8 = 1;
/// The family of IPv6 addresses.
pub const INET6: u8 = 2;
/// The family of Unix sockets, which WasmEdge has only where an option allows it.
const UNIX: u8 = 3;

/// The size of a buffer that has the address's family as well.
const STORAGE: usize = 128;

/// The two versions of functions that return addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The address is at the beginning of its buffer.
    V1,
    /// A buffer of 128 bytes begins with the family.
    V2,
}

/// Where an address is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    buffer: Buffer,
    tagged: bool,
}

impl Place {
    /// The place that a record names.
    ///
    /// # Errors
    /// `fault` where it is not within the memory.
    pub fn new(memory: &Memory<'_>, at: u32, version: Version) -> Result<Self> {
        let buffer = buffer(memory, at)?;
        Ok(Self { buffer, tagged: version == Version::V2 && buffer.size() == STORAGE })
    }

    /// How many bytes it has.
    pub fn size(self) -> usize {
        self.buffer.size()
    }

    /// Whether the family comes with the address.
    pub fn is_tagged(self) -> bool {
        self.tagged
    }

    /// Writes an address.
    ///
    /// # Errors
    /// `nomem` where it does not fit: WasmEdge's number for this.
    pub fn write(self, memory: &mut Memory<'_>, address: IpAddr) -> Result<()> {
        let (octets, length) = match address {
            IpAddr::V4(address) => (address.to_ipv6_mapped().octets(), 4),
            IpAddr::V6(address) => (address.octets(), 16),
        };
        let octets = octets.get(16 - length..).unwrap_or_default();
        let tag = [family(address), 0];
        let bytes = if self.tagged { [&tag, octets].concat() } else { octets.to_vec() };
        memory.bytes_mut(self.buffer).get_mut(..bytes.len()).ok_or(Errno::NOMEM)?.copy_from_slice(&bytes);
        Ok(())
    }
}

/// The family of an address.
pub fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => INET4,
        IpAddr::V6(_) => INET6,
    }
}

/// The kernel's family.
///
/// # Errors
/// `nosys` for Unix sockets, as WasmEdge has it without its option for them, and `inval` for what
/// is no family.
pub fn domain(family: u32) -> Result<AddressFamily> {
    match u8::try_from(family) {
        Ok(INET4) => Ok(AddressFamily::INET),
        Ok(INET6) => Ok(AddressFamily::INET6),
        Ok(UNIX) => Err(Errno::NOSYS),
        Ok(_) | Err(_) => Err(Errno::INVAL),
    }
}

/// Reads an address.
///
/// # Errors
/// `fault` where it is not within the memory, `inval` where it is none.
pub fn read(memory: &Memory<'_>, at: u32, port: u32) -> Result<SocketAddr> {
    let port = u16::try_from(port).map_err(|_| Errno::INVAL)?;
    let bytes = memory.bytes(buffer(memory, at)?);
    let octets = match (bytes.len(), bytes) {
        (STORAGE, [_, _, rest @ ..]) => {
            let length = if domain(u16_at(bytes, 0).into())? == AddressFamily::INET { 4 } else { 16 };
            rest.get(..length).unwrap_or_default()
        }
        (_, bytes) => bytes,
    };
    let address = <[u8; 4]>::try_from(octets).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from));
    Ok(SocketAddr::new(address.map_err(|_| Errno::INVAL)?, port))
}

fn buffer(memory: &Memory<'_>, at: u32) -> Result<Buffer> {
    let record = memory.record::<8>(at)?;
    memory.buffer(u32_at(&record, 0), u32_at(&record, 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record at 0, whose buffer is at 8.
    fn memory_with(size: u8, bytes: &[u8]) -> [u8; 160] {
        let mut memory = [0; 160];
        memory[..8].copy_from_slice(&[8, 0, 0, 0, size, 0, 0, 0]);
        memory[8..8 + bytes.len()].copy_from_slice(bytes);
        memory
    }

    fn read_of(size: u8, bytes: &[u8]) -> Result<String> {
        read(&Memory::new(&mut memory_with(size, bytes)), 0, 80).map(|address| address.to_string())
    }

    #[test]
    fn an_address_is_known_by_its_size() {
        let mut v6 = [0; 16];
        v6[15] = 1;
        assert_eq!(read_of(4, &[127, 0, 0, 1]).as_deref(), Ok("127.0.0.1:80"));
        assert_eq!(read_of(16, &v6).as_deref(), Ok("[::1]:80"));
        assert_eq!(read_of(128, &[1, 0, 127, 0, 0, 1]).as_deref(), Ok("127.0.0.1:80"));
        assert_eq!(read_of(128, &[&[2, 0], &v6[..]].concat()).as_deref(), Ok("[::1]:80"));
        assert_eq!(read_of(128, &[3, 0]), Err(Errno::NOSYS), "a Unix socket");
        assert_eq!((read_of(128, &[4, 0]), read_of(128, &[1, 1])), (Err(Errno::INVAL), Err(Errno::INVAL)));
        assert_eq!((read_of(0, &[]), read_of(5, &[])), (Err(Errno::INVAL), Err(Errno::INVAL)));
        assert_eq!(read_of(200, &[]), Err(Errno::FAULT));
        assert_eq!(read(&Memory::new(&mut memory_with(4, &[])), 0, 65536), Err(Errno::INVAL));
    }

    fn written(version: Version, size: u8, address: &str) -> Result<Vec<u8>> {
        let mut bytes = memory_with(size, &[]);
        let mut memory = Memory::new(&mut bytes);
        Place::new(&memory, 0, version)?.write(&mut memory, address.parse().unwrap())?;
        Ok(bytes[8..26].to_vec())
    }

    #[test]
    fn an_address_is_written_in_both_versions() {
        let begins = |version, size, address, expected: &[u8]| {
            let written = written(version, size, address).unwrap();
            assert_eq!(&written[..expected.len()], expected, "{version:?} {size} {address}");
            assert!(written[expected.len()..].iter().all(|byte| *byte == 0));
        };
        begins(Version::V1, 4, "10.0.0.1", &[10, 0, 0, 1]);
        begins(Version::V2, 4, "10.0.0.1", &[10, 0, 0, 1]);
        begins(Version::V1, 128, "10.0.0.1", &[10, 0, 0, 1]);
        begins(Version::V2, 128, "10.0.0.1", &[1, 0, 10, 0, 0, 1]);
        begins(Version::V2, 128, "ff00::1", &[2, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(written(Version::V1, 4, "::1"), Err(Errno::NOMEM));
        assert_eq!(written(Version::V1, 3, "10.0.0.1"), Err(Errno::NOMEM));
    }
}
