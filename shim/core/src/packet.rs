// SPDX-License-Identifier: Apache-2.0
//! Packets between two processes of a pod, over a pair of sockets: bytes, and open descriptors.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most descriptors in one packet.
pub const MAX_DESCRIPTORS: usize = 128;

/// Makes the two ends. Ours is non-blocking.
///
/// # Errors
/// When no descriptors are left.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Sends a packet that is not empty.
///
/// # Errors
/// `ENOBUFS` for more than [`MAX_DESCRIPTORS`]; otherwise the kernel's error.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The space is rounded up, and may have room for more.
    if descriptors.len() > MAX_DESCRIPTORS || !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::NOBUFS);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// Receives a packet into `buffer`, which cuts it. Returns its length, which is 0 when the other
/// side is gone, and its descriptors.
///
/// # Errors
/// The kernel's error: `EAGAIN` if there is none yet and the socket or `flags` say not to wait.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((received.bytes, descriptors.flatten().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_received_with_their_packet() {
        let (ours, theirs) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&theirs, b"one", &[]).unwrap();
        send(&theirs, b"two", &[file.as_fd(), file.as_fd()]).unwrap();
        assert_eq!(send(&theirs, b"many", &[file.as_fd(); MAX_DESCRIPTORS + 1]), Err(Errno::NOBUFS));
        let mut bytes = [0; 64];
        let mut next = || receive(&ours, &mut bytes, RecvFlags::empty()).map(|(length, descriptors)| (length, descriptors.len()));
        assert_eq!((next(), next(), next()), (Ok((3, 0)), Ok((3, 2)), Err(Errno::AGAIN)));
        drop(theirs);
        assert_eq!(next(), Ok((0, 0)));
    }
}
