// SPDX-License-Identifier: Apache-2.0
//! `sock_getsockopt` and `sock_setsockopt`. The numbers of options are WasmEdge's
//! (`__wasi_sock_opt_so_t` in its `api.hpp`); the values are laid out as Linux has them on 64 bits,
//! as WasmEdge passes them on.

use super::calls::{DATAGRAM, STREAM};
use super::errno::{Errno, Result};
use super::memory::{Memory, u32_at, u64_at};
use rustix::net::SocketType;
use rustix::net::sockopt::{self, Timeout};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The only level: options of sockets in general.
const SOL_SOCKET: u32 = 0;

const REUSEADDR: u32 = 0;
const TYPE: u32 = 1;
const ERROR: u32 = 2;
const BROADCAST: u32 = 4;
const SNDBUF: u32 = 5;
const RCVBUF: u32 = 6;
const KEEPALIVE: u32 = 7;
const OOBINLINE: u32 = 8;
const LINGER: u32 = 9;
const RCVTIMEO: u32 = 11;
const SNDTIMEO: u32 = 12;
const ACCEPTCONN: u32 = 13;

/// The longest value: a `struct timeval` of two numbers.
const LONGEST: usize = 16;

/// `sock_getsockopt`. A value is cut off to the size that the module gives.
pub fn get(socket: &OwnedFd, memory: &mut Memory<'_>, level: u32, option: u32, to: u32, size_at: u32) -> Result<()> {
    if level != SOL_SOCKET {
        return Err(Errno::INVAL);
    }
    let room = u32_at(&memory.record::<4>(size_at)?, 0);
    memory.will_take(to, room)?;
    let value = value(socket, option)?;
    let value = value.get(..value.len().min(room as usize)).unwrap_or_default();
    memory.write(to, value)?;
    memory.write(size_at, &(value.len() as u32).to_le_bytes())
}

fn value(socket: &OwnedFd, option: u32) -> Result<Vec<u8>> {
    let number = match option {
        REUSEADDR => sockopt::socket_reuseaddr(socket)?.into(),
        // As sock_open has it.
        TYPE if sockopt::socket_type(socket)? == SocketType::STREAM => STREAM,
        TYPE => DATAGRAM,
        ERROR => sockopt::socket_error(socket)?.map_or_else(|error| Errno::from(error).number().into(), |()| 0),
        BROADCAST => sockopt::socket_broadcast(socket)?.into(),
        SNDBUF => length(sockopt::socket_send_buffer_size(socket)?),
        RCVBUF => length(sockopt::socket_recv_buffer_size(socket)?),
        KEEPALIVE => sockopt::socket_keepalive(socket)?.into(),
        OOBINLINE => sockopt::socket_oobinline(socket)?.into(),
        ACCEPTCONN => sockopt::socket_acceptconn(socket)?.into(),
        LINGER => {
            let time = sockopt::socket_linger(socket)?;
            let seconds = time.map_or(0, |time| time.as_secs() as u32);
            return Ok([u32::from(time.is_some()).to_le_bytes(), seconds.to_le_bytes()].concat());
        }
        RCVTIMEO | SNDTIMEO => {
            let time = sockopt::socket_timeout(socket, direction(option))?.unwrap_or_default();
            return Ok([time.as_secs().to_le_bytes(), u64::from(time.subsec_micros()).to_le_bytes()].concat());
        }
        _ => return Err(Errno::NOPROTOOPT),
    };
    Ok(number.to_le_bytes().to_vec())
}

/// `sock_setsockopt`
pub fn set(socket: &OwnedFd, memory: &Memory<'_>, level: u32, option: u32, at: u32, size: u32) -> Result<()> {
    if level != SOL_SOCKET {
        return Err(Errno::INVAL);
    }
    let given = memory.bytes(memory.buffer(at, size)?);
    let wanted = match option {
        LINGER => 8,
        RCVTIMEO | SNDTIMEO => LONGEST,
        _ => 4,
    };
    // As Linux: more than it reads is no error.
    let value = given.get(..wanted).ok_or(Errno::INVAL)?;
    let (number, is_on) = (u32_at(value, 0), u32_at(value, 0) != 0);
    match option {
        REUSEADDR => sockopt::set_socket_reuseaddr(socket, is_on)?,
        BROADCAST => sockopt::set_socket_broadcast(socket, is_on)?,
        SNDBUF => sockopt::set_socket_send_buffer_size(socket, number as usize)?,
        RCVBUF => sockopt::set_socket_recv_buffer_size(socket, number as usize)?,
        KEEPALIVE => sockopt::set_socket_keepalive(socket, is_on)?,
        OOBINLINE => sockopt::set_socket_oobinline(socket, is_on)?,
        LINGER => sockopt::set_socket_linger(socket, is_on.then(|| Duration::from_secs(u32_at(value, 4).into())))?,
        RCVTIMEO | SNDTIMEO => sockopt::set_socket_timeout(socket, direction(option), time(value)?)?,
        _ => return Err(Errno::NOPROTOOPT),
    }
    Ok(())
}

/// No time means without end.
fn time(value: &[u8]) -> Result<Option<Duration>> {
    let (seconds, microseconds) = (u64_at(value, 0), u64_at(value, 8));
    // A time of more than 2^31 seconds is one that wraps around in the kernel, or is negative.
    if seconds > i32::MAX as u64 || microseconds >= 1_000_000 {
        return Err(Errno::DOM);
    }
    let time = Duration::from_secs(seconds) + Duration::from_micros(microseconds);
    Ok((!time.is_zero()).then_some(time))
}

fn direction(option: u32) -> Timeout {
    if option == RCVTIMEO { Timeout::Recv } else { Timeout::Send }
}

fn length(size: usize) -> u32 {
    size.try_into().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn socket() -> OwnedFd {
        UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    /// Sets an option to bytes, and gets it with so much room.
    fn through(socket: &OwnedFd, option: u32, given: &[u8], room: u32) -> Result<Vec<u8>> {
        let mut bytes = [0; 64];
        let mut memory = Memory::new(&mut bytes);
        memory.write(16, given).unwrap();
        set(socket, &memory, SOL_SOCKET, option, 16, given.len() as u32)?;
        memory.write(0, &room.to_le_bytes()).unwrap();
        get(socket, &mut memory, SOL_SOCKET, option, 32, 0)?;
        let size = u32_at(&memory.record::<4>(0)?, 0);
        Ok(memory.bytes(memory.buffer(32, size)?).to_vec())
    }

    #[test]
    fn options_have_the_values_that_they_were_set_to() {
        let socket = socket();
        for option in [REUSEADDR, BROADCAST, KEEPALIVE, OOBINLINE] {
            assert_eq!(through(&socket, option, &[1, 0, 0, 0], 4).as_deref(), Ok(&[1, 0, 0, 0][..]), "{option}");
            assert_eq!(through(&socket, option, &[0; 4], 2).as_deref(), Ok(&[0, 0][..]), "{option}");
        }
        assert_eq!(through(&socket, LINGER, &[1, 0, 0, 0, 9, 0, 0, 0], 8).as_deref(), Ok(&[1, 0, 0, 0, 9, 0, 0, 0][..]));
        let second = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for option in [RCVTIMEO, SNDTIMEO] {
            assert_eq!(through(&socket, option, &second, 16).as_deref(), Ok(&second[..]));
            assert_eq!(through(&socket, option, &[0; 16], 16).as_deref(), Ok(&[0; 16][..]), "without end");
            assert_eq!(through(&socket, option, &[255; 16], 16), Err(Errno::DOM));
        }
        assert!(through(&socket, RCVBUF, &[0, 64, 0, 0], 4).is_ok_and(|size| u32_at(&size, 0) >= 1 << 14));
    }

    #[test]
    fn wrong_options_and_sizes_are_refused() {
        let socket = socket();
        let mut bytes = [0; 64];
        let mut memory = Memory::new(&mut bytes);
        assert_eq!(set(&socket, &memory, SOL_SOCKET, REUSEADDR, 0, 3), Err(Errno::INVAL));
        assert_eq!(set(&socket, &memory, SOL_SOCKET, LINGER, 0, 4), Err(Errno::INVAL));
        assert_eq!(set(&socket, &memory, SOL_SOCKET, 99, 0, 4), Err(Errno::NOPROTOOPT));
        assert_eq!(set(&socket, &memory, SOL_SOCKET, TYPE, 0, 4), Err(Errno::NOPROTOOPT));
        assert_eq!(set(&socket, &memory, 6, REUSEADDR, 0, 4), Err(Errno::INVAL));
        assert_eq!(set(&socket, &memory, SOL_SOCKET, REUSEADDR, 62, 4), Err(Errno::FAULT));
        assert_eq!(set(&socket, &memory, SOL_SOCKET, REUSEADDR, 0, u32::MAX), Err(Errno::FAULT));
        assert_eq!(get(&socket, &mut memory, SOL_SOCKET, TYPE, 0, 62), Err(Errno::FAULT));
        memory.write(0, &u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(get(&socket, &mut memory, SOL_SOCKET, TYPE, 8, 0), Err(Errno::FAULT));
        memory.write(0, &4_u32.to_le_bytes()).unwrap();
        assert_eq!(get(&socket, &mut memory, SOL_SOCKET, TYPE, 8, 0), Ok(()));
        assert_eq!(memory.record(8), Ok(DATAGRAM.to_le_bytes()));
    }
}
