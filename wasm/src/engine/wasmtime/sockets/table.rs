// SPDX-License-Identifier: Apache-2.0
//! The descriptors of a module's sockets.

use std::os::fd::OwnedFd;

/// The number of the first socket. Wasmtime's own descriptors are numbered from 0 on, each has a
/// descriptor of this process or a stream, and Linux gives a process fewer than this (`fs.nr_open`
/// can be at most 2^30 - 64 on 64 bits), so that numbers never collide. As an `int` it is positive.
const FIRST: u32 = 1 << 30;

/// The sockets of a module. How many there can be is bounded by `RLIMIT_NOFILE`.
#[derive(Debug, Default)]
pub struct Sockets {
    places: Vec<Option<OwnedFd>>,
    /// The numbers of places that are empty.
    free: Vec<u32>,
}

impl Sockets {
    /// The socket with this number.
    pub fn get(&self, number: u32) -> Option<&OwnedFd> {
        self.places.get(number.checked_sub(FIRST)? as usize)?.as_ref()
    }

    /// Takes a socket in, and returns its number.
    pub fn add(&mut self, socket: OwnedFd) -> u32 {
        if let Some(number) = self.free.pop()
            && let Some(place) = self.places.get_mut((number - FIRST) as usize)
        {
            *place = Some(socket);
            return number;
        }
        self.places.push(Some(socket));
        // There are fewer than 2^30.
        FIRST + (self.places.len() - 1) as u32
    }

    /// Gives a socket out, which is closed when it is dropped.
    pub fn remove(&mut self, number: u32) -> Option<OwnedFd> {
        let socket = self.places.get_mut(number.checked_sub(FIRST)? as usize)?.take()?;
        self.free.push(number);
        Some(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn any() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn numbers_are_used_again_and_belong_to_one_socket() {
        let mut sockets = Sockets::default();
        let (one, other) = (sockets.add(any()), sockets.add(any()));
        assert_eq!((one, other), (1 << 30, (1 << 30) + 1));
        let kept = sockets.get(other).unwrap().as_raw_fd();
        assert!(sockets.remove(one).is_some() && sockets.remove(one).is_none() && sockets.get(one).is_none());
        assert_eq!(sockets.add(any()), one);
        assert_eq!(sockets.get(other).unwrap().as_raw_fd(), kept);
        for unknown in [0, 2, FIRST - 1, FIRST + 2, u32::MAX] {
            assert!(sockets.get(unknown).is_none() && sockets.remove(unknown).is_none(), "{unknown}");
        }
    }
}
