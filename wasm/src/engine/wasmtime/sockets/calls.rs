// SPDX-License-Identifier: Apache-2.0
//! What is done with one socket. The arguments are those of WasmEdge's functions, whose
//! declarations the crate wasmedge_wasi_socket has. A call changes nothing before it has checked
//! all pointers.

use super::address::{self, Place, Version};
use super::errno::{Errno, Result};
use super::memory::Memory;
use super::table::Sockets;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::socket_type;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, RecvMsg, ReturnFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrAny, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// `sock_type` of WasmEdge: a socket for datagrams.
pub const DATAGRAM: u32 = 1;
/// A socket for a stream.
pub const STREAM: u32 = 2;

/// The most bytes that one call receives into several buffers: as many as a datagram can have. They
/// go through memory of ours, because a module's buffers may overlap.
const MOST_SCATTERED: usize = 1 << 16;

/// `fdflags` of WASI: calls return `again` where they would have to wait.
const NONBLOCK: u32 = 1 << 2;
/// All flags that WASI has.
const ALL_FLAGS: u32 = (1 << 5) - 1;

/// `riflags` of WASI: what is received stays to be received again.
const PEEK: u32 = 1;
/// Wait until all buffers are full.
const WAIT_ALL: u32 = 2;
/// `roflags` of WASI: a datagram was larger than the buffers.
const TRUNCATED: u16 = 1;

/// `rights` of WASI, by which wasi-libc knows that a descriptor can be read and written: `fd_read`,
/// `fd_fdstat_set_flags`, `fd_write`, `poll_fd_readwrite`, `sock_shutdown`, `sock_accept`.
const RIGHTS: u64 = 1 << 1 | 1 << 3 | 1 << 6 | 1 << 27 | 1 << 28 | 1 << 29;

/// `filetype` of WASI.
const SOCKET_DGRAM: u8 = 5;
const SOCKET_STREAM: u8 = 6;

/// `sock_open`
pub fn open(sockets: &mut Sockets, memory: &mut Memory<'_>, family: u32, kind: u32, to: u32) -> Result<()> {
    memory.will_take(to, 4)?;
    let kind = match kind {
        DATAGRAM => SocketType::DGRAM,
        STREAM => SocketType::STREAM,
        _ => return Err(Errno::INVAL),
    };
    let socket = rustix::net::socket_with(address::domain(family)?, kind, SocketFlags::CLOEXEC, None)?;
    memory.write(to, &sockets.add(socket).to_le_bytes())
}

/// `sock_bind`
pub fn bind(socket: &OwnedFd, memory: &Memory<'_>, address: u32, port: u32) -> Result<()> {
    Ok(rustix::net::bind(socket, &address::read(memory, address, port)?)?)
}

/// `sock_listen`
pub fn listen(socket: &OwnedFd, backlog: i32) -> Result<()> {
    Ok(rustix::net::listen(socket, backlog)?)
}

/// `sock_accept`. Its older version has no flags.
pub fn accept(sockets: &mut Sockets, memory: &mut Memory<'_>, number: u32, flags: u32, to: u32) -> Result<()> {
    memory.will_take(to, 4)?;
    let listener = sockets.get(number).ok_or(Errno::BADF)?;
    let nonblocking = if is_nonblocking(flags)? { SocketFlags::NONBLOCK } else { SocketFlags::empty() };
    let socket = retry_on_intr(|| rustix::net::accept_with(listener, SocketFlags::CLOEXEC | nonblocking))?;
    memory.write(to, &sockets.add(socket).to_le_bytes())
}

/// `sock_connect`
pub fn connect(socket: &OwnedFd, memory: &Memory<'_>, address: u32, port: u32) -> Result<()> {
    Ok(rustix::net::connect(socket, &address::read(memory, address, port)?)?)
}

/// `sock_shutdown`
pub fn shutdown(socket: &OwnedFd, how: u32) -> Result<()> {
    let how = match how {
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        3 => Shutdown::Both,
        _ => return Err(Errno::INVAL),
    };
    Ok(rustix::net::shutdown(socket, how)?)
}

/// A list of buffers, and flags: what all functions have that send or receive.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// The pointer to the list.
    pub list: u32,
    /// How many buffers there are.
    pub count: u32,
    /// What the functions of WASI call `riflags` and `siflags`.
    pub flags: u32,
}

/// `sock_recv`, and `fd_read`, which has no flags to return.
pub fn receive(socket: &OwnedFd, memory: &mut Memory<'_>, message: Message, size_to: u32, flags_to: Option<u32>) -> Result<()> {
    receive_message(socket, memory, message, size_to, flags_to).map(drop)
}

/// Where `sock_recv_from` returns whom a message is from.
#[derive(Debug, Clone, Copy)]
pub struct Sender {
    /// The record of the buffer for the address.
    pub address: u32,
    /// Where the port goes, which only the newer version has.
    pub port: Option<u32>,
}

/// `sock_recv_from`. In its older version an address that does not fit is left out, and there is no
/// port.
pub fn receive_from(
    socket: &OwnedFd,
    memory: &mut Memory<'_>,
    message: Message,
    sender: Sender,
    size_to: u32,
    flags_to: u32,
) -> Result<()> {
    let version = if sender.port.is_some() { Version::V2 } else { Version::V1 };
    let place = Place::new(memory, sender.address, version)?;
    if version == Version::V2 && !place.is_tagged() && ![4, 16].contains(&place.size()) {
        return Err(Errno::INVAL);
    }
    if let Some(port) = sender.port {
        memory.will_take(port, 2)?;
    }
    let from = receive_message(socket, memory, message, size_to, Some(flags_to))?;
    // A stream's messages have no sender.
    let Some(from) = from.and_then(|from| SocketAddr::try_from(from).ok()) else { return Ok(()) };
    // The message is received, which no error may hide.
    let _ = place.write(memory, from.ip());
    // In the order of the module's own numbers, as the crate wasmedge_wasi_socket reads it.
    // WasmEdge 0.17 has it in the network's order here, and nowhere else.
    sender.port.map_or(Ok(()), |port| memory.write(port, &from.port().to_le_bytes()))
}

fn receive_message(
    socket: &OwnedFd,
    memory: &mut Memory<'_>,
    message: Message,
    size_to: u32,
    flags_to: Option<u32>,
) -> Result<Option<SocketAddrAny>> {
    if message.flags & !(PEEK | WAIT_ALL) != 0 {
        return Err(Errno::INVAL);
    }
    let mut flags = RecvFlags::empty();
    flags.set(RecvFlags::PEEK, message.flags & PEEK != 0);
    flags.set(RecvFlags::WAITALL, message.flags & WAIT_ALL != 0);
    memory.will_take(size_to, 4)?;
    flags_to.map_or(Ok(()), |to| memory.will_take(to, 2))?;
    let mut buffers = memory.buffers(message.list, message.count)?;
    buffers.retain(|buffer| buffer.size() > 0);
    let received = match *buffers {
        [] => receive_into(socket, &mut [], flags)?,
        [buffer] => receive_into(socket, memory.bytes_mut(buffer), flags)?,
        [..] => {
            let size = buffers.iter().fold(0, |size: usize, buffer| size.saturating_add(buffer.size()));
            let mut between = vec![0; size.min(MOST_SCATTERED)];
            let received = receive_into(socket, &mut between, flags)?;
            let mut rest = between.get(..received.bytes).unwrap_or_default();
            for buffer in buffers {
                let (now, later) = rest.split_at(buffer.size().min(rest.len()));
                memory.bytes_mut(buffer).get_mut(..now.len()).unwrap_or_default().copy_from_slice(now);
                rest = later;
            }
            received
        }
    };
    memory.write(size_to, &size(received.bytes))?;
    if let Some(to) = flags_to {
        let truncated = if received.flags.contains(ReturnFlags::TRUNC) { TRUNCATED } else { 0 };
        memory.write(to, &truncated.to_le_bytes())?;
    }
    Ok(received.address)
}

fn receive_into(socket: &OwnedFd, buffer: &mut [u8], flags: RecvFlags) -> Result<RecvMsg> {
    Ok(retry_on_intr(|| rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut RecvAncillaryBuffer::default(), flags))?)
}

/// `sock_send`, `sock_send_to` with an address, and `fd_write`. WASI has no flags for it.
pub fn send(socket: &OwnedFd, memory: &mut Memory<'_>, message: Message, to: Option<(u32, u32)>, size_to: u32) -> Result<()> {
    if message.flags != 0 {
        return Err(Errno::INVAL);
    }
    memory.will_take(size_to, 4)?;
    let to = to.map(|(address, port)| address::read(memory, address, port)).transpose()?;
    let buffers = memory.buffers(message.list, message.count)?;
    let parts: Vec<_> = buffers.iter().map(|buffer| IoSlice::new(memory.bytes(*buffer))).collect();
    let flags = SendFlags::NOSIGNAL;
    let sent = retry_on_intr(|| {
        let mut control = SendAncillaryBuffer::default();
        match &to {
            Some(to) => rustix::net::sendmsg_addr(socket, to, &parts, &mut control, flags),
            None => rustix::net::sendmsg(socket, &parts, &mut control, flags),
        }
    })?;
    memory.write(size_to, &size(sent))
}

/// A number of bytes, which Linux keeps below 2^31 for each call.
fn size(bytes: usize) -> [u8; 4] {
    (bytes as u32).to_le_bytes()
}

/// Which end of a connection to name.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    /// `sock_getlocaladdr`
    Local,
    /// `sock_getpeeraddr`
    Peer,
}

/// `sock_getlocaladdr` and `sock_getpeeraddr`. The older version says by a number of its own what
/// the address is: 4 or 6.
pub fn name(socket: &OwnedFd, memory: &mut Memory<'_>, side: Side, address: u32, kind: Option<u32>, port: u32) -> Result<()> {
    let version = if kind.is_some() { Version::V1 } else { Version::V2 };
    let place = Place::new(memory, address, version)?;
    let fits = if version == Version::V1 { [4, 16].contains(&place.size()) } else { place.is_tagged() };
    if !fits {
        return Err(Errno::INVAL);
    }
    kind.map_or(Ok(()), |kind| memory.will_take(kind, 4))?;
    memory.will_take(port, 4)?;
    let name = match side {
        Side::Local => rustix::net::getsockname(socket)?,
        Side::Peer => rustix::net::getpeername(socket)?.ok_or(rustix::io::Errno::NOTCONN)?,
    };
    let name = SocketAddr::try_from(name)?;
    place.write(memory, name.ip())?;
    if let Some(kind) = kind {
        memory.write(kind, &if name.is_ipv4() { 4_u32 } else { 6 }.to_le_bytes())?;
    }
    memory.write(port, &u32::from(name.port()).to_le_bytes())
}

/// `fd_fdstat_get`
pub fn status(socket: &OwnedFd, memory: &mut Memory<'_>, to: u32) -> Result<()> {
    let file_type = if socket_type(socket)? == SocketType::STREAM { SOCKET_STREAM } else { SOCKET_DGRAM };
    let flags = if fcntl_getfl(socket)?.contains(OFlags::NONBLOCK) { NONBLOCK } else { 0 };
    let mut record = [0; 24];
    record[0] = file_type;
    record[2..4].copy_from_slice(&(flags as u16).to_le_bytes());
    record[8..16].copy_from_slice(&RIGHTS.to_le_bytes());
    record[16..24].copy_from_slice(&RIGHTS.to_le_bytes());
    memory.write(to, &record)
}

/// `fd_fdstat_set_flags`, of which only `nonblock` means something for a socket.
pub fn set_flags(socket: &OwnedFd, flags: u32) -> Result<()> {
    let mut all = fcntl_getfl(socket)?;
    all.set(OFlags::NONBLOCK, is_nonblocking(flags)?);
    Ok(fcntl_setfl(socket, all)?)
}

fn is_nonblocking(flags: u32) -> Result<bool> {
    if flags & !ALL_FLAGS != 0 { Err(Errno::INVAL) } else { Ok(flags & NONBLOCK != 0) }
}

#[cfg(test)]
mod tests;
