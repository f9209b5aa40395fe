// SPDX-License-Identifier: Apache-2.0
//! Error numbers of WASI preview 1, and of the system calls behind the sockets.

use rustix::io::Errno as System;

/// An error number as a module gets it: `errno` of WASI preview 1, and from 77 on what WasmEdge
/// adds for the lookup of names (`__wasi_errno_t` in its `api.hpp`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(u16);

/// What a call comes to.
pub type Result<T> = std::result::Result<T, Errno>;

impl Errno {
    /// `badf`: there is no such descriptor.
    pub const BADF: Self = Self(8);
    /// `dom`: a number is outside of what a call takes.
    pub const DOM: Self = Self(18);
    /// `fault`: a pointer leads out of the module's memory.
    pub const FAULT: Self = Self(21);
    /// `inval`: an argument is not one that a call takes.
    pub const INVAL: Self = Self(28);
    /// `io`: any other error.
    pub const IO: Self = Self(29);
    /// `nomem`: also the number for an address that does not fit where it should go.
    pub const NOMEM: Self = Self(48);
    /// `noprotoopt`: there is no such option.
    pub const NOPROTOOPT: Self = Self(50);
    /// `nosys`: the call cannot do this.
    pub const NOSYS: Self = Self(52);
    /// `aibadflag`: a flag for the lookup is none, or contradicts the name.
    pub const AIBADFLAG: Self = Self(79);
    /// `aifamily`: there is no such family of addresses.
    pub const AIFAMILY: Self = Self(81);
    /// `aimemory`: there is no room for a result.
    pub const AIMEMORY: Self = Self(82);
    /// `ainoname`: the name has no address.
    pub const AINONAME: Self = Self(84);
    /// `aiservice`: the service has no port.
    pub const AISERVICE: Self = Self(85);
    /// `aisocktype`: sockets of this type do not have this protocol.
    pub const AISOCKTYPE: Self = Self(86);

    /// What a function returns: 0, or the number of the error.
    pub fn code(result: Result<()>) -> i32 {
        result.map_or_else(|Self(number)| i32::from(number), |()| 0)
    }

    /// An error that a function of Wasmtime has returned.
    pub fn known(code: i32) -> Option<Self> {
        u16::try_from(code).ok().filter(|number| *number != 0).map(Self)
    }

    /// The number for an event of `poll_oneoff`, and for the option `SO_ERROR`.
    pub fn number(self) -> u16 {
        self.0
    }
}

/// What the kernel answers to calls for sockets, and the same in WASI.
const NUMBERS: [(System, u16); 44] = [
    (System::ACCESS, 2),
    (System::ADDRINUSE, 3),
    (System::ADDRNOTAVAIL, 4),
    (System::AFNOSUPPORT, 5),
    (System::AGAIN, 6),
    (System::ALREADY, 7),
    (System::BADF, 8),
    (System::CONNABORTED, 13),
    (System::CONNREFUSED, 14),
    (System::CONNRESET, 15),
    (System::DESTADDRREQ, 17),
    (System::DOM, 18),
    (System::FAULT, 21),
    (System::HOSTDOWN, 23),
    (System::HOSTUNREACH, 23),
    (System::INPROGRESS, 26),
    (System::INTR, 27),
    (System::INVAL, 28),
    (System::IO, 29),
    (System::ISCONN, 30),
    (System::MFILE, 33),
    (System::MSGSIZE, 35),
    (System::NETDOWN, 38),
    (System::NETRESET, 39),
    (System::NETUNREACH, 40),
    (System::NFILE, 41),
    (System::NOBUFS, 42),
    (System::NODEV, 43),
    (System::NOENT, 44),
    (System::NOMEM, 48),
    (System::NOPROTOOPT, 50),
    (System::NOSYS, 52),
    (System::NOTCONN, 53),
    (System::NOTSOCK, 57),
    (System::OPNOTSUPP, 58),
    (System::NXIO, 60),
    (System::OVERFLOW, 61),
    (System::PERM, 63),
    (System::PIPE, 64),
    (System::PROTO, 65),
    (System::PROTONOSUPPORT, 66),
    (System::PROTOTYPE, 67),
    (System::RANGE, 68),
    (System::TIMEDOUT, 73),
];

impl From<System> for Errno {
    fn from(error: System) -> Self {
        NUMBERS.iter().find(|(known, _)| *known == error).map_or(Self::IO, |&(_, number)| Self(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_kernel_have_their_numbers_in_wasi() {
        assert_eq!(Errno::code(Err(System::AGAIN.into())), 6);
        assert_eq!(Errno::from(System::BADF), Errno::BADF);
        assert_eq!(Errno::from(System::XDEV), Errno::IO, "what no socket answers");
        assert_eq!(Errno::code(Ok(())), 0);
        assert!(NUMBERS.windows(2).all(|pair| pair[0].1 <= pair[1].1), "they are in WASI's order");
    }
}
