// SPDX-License-Identifier: Apache-2.0
//! A connection that carries descriptors: they go with the first byte that is written (SCM_RIGHTS
//! of unix(7)), as Cloud Hypervisor wants those of a request (its
//! vmm/src/api/http/http_endpoint.rs).

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// The most descriptors of one request: the network interfaces of a pod.
const MOST: usize = 64;

/// The connection.
#[derive(Debug)]
pub struct Carrier {
    stream: UnixStream,
    /// Those that were not sent yet.
    descriptors: Vec<OwnedFd>,
}

impl Carrier {
    /// A connection that carries these descriptors.
    ///
    /// # Errors
    /// If there are too many, for a request or for this process.
    pub fn new(stream: UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<Self> {
        if descriptors.len() > MOST {
            return Err(io::Error::other(format!("{} descriptors are too many for one request", descriptors.len())));
        }
        let descriptors = descriptors.iter().map(|descriptor| descriptor.try_clone_to_owned()).collect::<io::Result<_>>()?;
        Ok(Self { stream, descriptors })
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let descriptors: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        message.push(SendAncillaryMessage::ScmRights(&descriptors));
        Ok(sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut message, SendFlags::NOSIGNAL)?)
    }
}

impl AsyncRead for Carrier {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.descriptors.is_empty() {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_io(Interest::WRITABLE, || self.send(bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    self.descriptors.clear();
                    return Poll::Ready(sent);
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
