// SPDX-License-Identifier: Apache-2.0
//! `sock_getaddrinfo`: looks a name up, as the container's `/etc/hosts` and `/etc/resolv.conf` have
//! it.
//!
//! The module makes a list of records before the call, each with room for one result, and the call
//! fills as many as there are results (`__wasi_addrinfo_t` and `__wasi_sockaddr_t` in WasmEdge's
//! `api.hpp`):
//!
//! ```text
//! addrinfo, 28 bytes: flags(2) family(1) type(1) protocol(1) -(3)
//!                     addrlen(4) addr* canonname* canonlen(4) next*
//! sockaddr, 12 bytes: family(1) -(3) size(4) data*
//! data, as the kernel's sockaddr has it: port(2), then
//!                     address(4) zeros(8), or flow(4) address(16) scope(4)
//! ```

use super::address::{INET4, INET6, family};
use super::calls::{DATAGRAM, STREAM};
use super::errno::{Errno, Result};
use super::memory::{Memory, u16_at, u32_at};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

/// The longest name or service that is looked up. DNS has 253 characters at most.
const LONGEST: usize = 1024;

/// `__wasi_aiflags_t`: an address to bind to.
const PASSIVE: u16 = 1 << 0;
/// The name is returned, too.
const CANONNAME: u16 = 1 << 1;
/// The name is an address, and nobody is asked.
const NUMERICHOST: u16 = 1 << 2;
/// All flags. Those that are not above only narrow down what is found, and have no effect here.
const ALL: u16 = (1 << 7) - 1;

/// `__wasi_protocol_t`
const TCP: u8 = 1;
const UDP: u8 = 2;

/// The sizes of the kernel's `sockaddr_in` and `sockaddr_in6`.
const LENGTHS: [u32; 2] = [16, 28];

/// The arguments.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// The name: a pointer and a length. A zero byte ends it as well.
    pub node: (u32, u32),
    /// The service.
    pub service: (u32, u32),
    /// A record with what is wanted.
    pub hints: u32,
    /// Where the pointer to the first record is.
    pub results: u32,
    /// How many records there are.
    pub most: u32,
    /// Where the number of results goes.
    pub count_to: u32,
}

/// `sock_getaddrinfo`
pub fn get(memory: &mut Memory<'_>, query: Query) -> Result<()> {
    let hints = Hints::new(memory.record::<28>(query.hints)?)?;
    let first = u32_at(&memory.record::<4>(query.results)?, 0);
    memory.will_take(query.count_to, 4)?;
    let node = text(memory, query.node, Errno::AINONAME)?;
    let port = port(&text(memory, query.service, Errno::AISERVICE)?)?;
    if node.is_empty() && query.service.1 == 0 {
        return Err(Errno::AINONAME);
    }
    if query.most == 0 {
        return Err(Errno::AIMEMORY);
    }
    let found = hints.with_kinds(hints.addresses(&node, port)?);
    let mut entry = first;
    let mut count = 0;
    for result in found {
        if count == query.most {
            break;
        }
        let record = memory.record::<28>(entry)?;
        if fill(memory, entry, &record, hints, &node, result)? {
            count += 1;
            entry = u32_at(&record, 24);
        }
    }
    memory.write(query.count_to, &count.to_le_bytes())
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
struct Hints {
    flags: u16,
    family: Option<u8>,
    /// A type and a protocol for each result of an address.
    kinds: &'static [(u8, u8)],
}

/// Types of sockets with their protocols.
const KINDS: [(u8, u8); 2] = [(STREAM as u8, TCP), (DATAGRAM as u8, UDP)];

impl Hints {
    fn new(record: [u8; 28]) -> Result<Self> {
        let [_, _, family, kind, protocol, ..] = record;
        let flags = u16_at(&record, 0);
        if flags & !ALL != 0 {
            return Err(Errno::AIBADFLAG);
        }
        let family = match family {
            0 => None,
            INET4 | INET6 => Some(family),
            _ => return Err(Errno::AIFAMILY),
        };
        let [stream, datagram] = &KINDS;
        let kinds = match (u32::from(kind), protocol) {
            (0, 0) => &KINDS[..],
            (0 | STREAM, TCP) | (STREAM, 0) => std::slice::from_ref(stream),
            (0 | DATAGRAM, UDP) | (DATAGRAM, 0) => std::slice::from_ref(datagram),
            (STREAM, UDP) | (DATAGRAM, TCP) => return Err(Errno::AISOCKTYPE),
            _ => return Err(Errno::NOSYS),
        };
        Ok(Self { flags, family, kinds })
    }

    fn addresses(self, node: &str, port: u16) -> Result<Vec<SocketAddr>> {
        let all: Vec<SocketAddr> = if let Ok(address) = node.parse::<IpAddr>() {
            vec![(address, port).into()]
        } else if node.is_empty() {
            if self.flags & CANONNAME != 0 {
                return Err(Errno::AIBADFLAG);
            }
            let pair: [IpAddr; 2] = match self.flags & PASSIVE {
                0 => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
                _ => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            };
            pair.map(|address| (address, port).into()).to_vec()
        } else if self.flags & NUMERICHOST != 0 {
            Vec::new()
        } else {
            // The resolver's reasons are not known here: that it has none, or could not ask.
            (node, port).to_socket_addrs().map_err(|_| Errno::AINONAME)?.collect()
        };
        let wanted: Vec<_> = all.into_iter().filter(|address| self.family.is_none_or(|wanted| wanted == family(address.ip()))).collect();
        if wanted.is_empty() { Err(Errno::AINONAME) } else { Ok(wanted) }
    }

    fn with_kinds(self, addresses: Vec<SocketAddr>) -> impl Iterator<Item = (SocketAddr, (u8, u8))> {
        addresses.into_iter().flat_map(move |address| self.kinds.iter().map(move |kind| (address, *kind)))
    }
}

/// Fills one record. It stays as it is if the address does not fit where it should go.
fn fill(
    memory: &mut Memory<'_>,
    entry: u32,
    record: &[u8; 28],
    hints: Hints,
    node: &str,
    (address, (kind, protocol)): (SocketAddr, (u8, u8)),
) -> Result<bool> {
    let to = u32_at(record, 12);
    let sockaddr = memory.record::<12>(to)?;
    let data = data(address);
    if (u32_at(&sockaddr, 4) as usize) < data.len() {
        return Ok(false);
    }
    memory.write(u32_at(&sockaddr, 8), &data)?;
    let family = family(address.ip());
    memory.write(to, &[family])?;
    memory.write(to.wrapping_add(4), &(data.len() as u32).to_le_bytes())?;

    // The name goes where the module has said that it has room for it and a zero byte.
    let fits = (u32_at(record, 20) as usize) > node.len();
    let name = if hints.flags & CANONNAME != 0 && fits { node } else { "" };
    if !name.is_empty() {
        memory.write(u32_at(record, 16), &[name.as_bytes(), &[0]].concat())?;
    }
    let mut record = *record;
    record[..2].copy_from_slice(&hints.flags.to_le_bytes());
    record[2..5].copy_from_slice(&[family, kind, protocol]);
    record[8..12].copy_from_slice(&LENGTHS[usize::from(address.is_ipv6())].to_le_bytes());
    record[20..24].copy_from_slice(&(name.len() as u32).to_le_bytes());
    memory.write(entry, &record)?;
    Ok(true)
}

/// An address as the kernel has it, without the family.
fn data(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(address) => [&port[..], &address.ip().octets(), &[0; 8]].concat(),
        SocketAddr::V6(address) => [&port[..], &[0; 4], &address.ip().octets(), &address.scope_id().to_le_bytes()].concat(),
    }
}

fn text(memory: &Memory<'_>, (at, size): (u32, u32), wrong: Errno) -> Result<String> {
    let bytes = memory.bytes(memory.buffer(at, size)?);
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    if bytes.len() > LONGEST {
        return Err(wrong);
    }
    str::from_utf8(bytes).map(String::from).map_err(|_| wrong)
}

/// The port of a service: a number, or one of the names that clients use.
fn port(service: &str) -> Result<u16> {
    match service {
        "" => Ok(0),
        "http" => Ok(80),
        "https" => Ok(443),
        number => number.parse().map_err(|_| Errno::AISERVICE),
    }
}

#[cfg(test)]
mod tests;
