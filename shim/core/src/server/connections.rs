// SPDX-License-Identifier: Apache-2.0
//! Connections that can be waited for: the answer to ShutdownSandbox has arrived when the caller, who
//! has no more to say, hangs up.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use ttrpc::asynchronous::transport::Listener;

/// A connection that is counted for as long as it is open.
#[derive(Debug)]
struct Counted {
    stream: UnixStream,
    _open: TaskTrackerToken,
}

/// `listener` for a ttrpc server, with its connections counted in `connections`.
pub fn counted(listener: UnixListener, connections: &TaskTracker) -> Listener {
    let connections = connections.clone();
    Listener::new(UnixListenerStream::new(listener).map(move |stream| stream.map(|stream| Counted { stream, _open: connections.token() })))
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
