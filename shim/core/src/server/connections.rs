// SPDX-License-Identifier: Apache-2.0
//! Connections that are limited in number, and whose end can be awaited.
//!
//! - Only a limited number is open at once. Further clients wait, first in the kernel's queue.
//! - A client that sends nothing for too long after connecting is disconnected: some clients
//!   connect and forget.
//! - The answer to ShutdownSandbox has arrived when the client disconnects.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long a client may take to send its first byte. Clients of ttrpc and gRPC send it at once.
const FIRST_BYTE: Duration = Duration::from_secs(60);

/// A connection. It occupies its place, and is counted, for as long as it is open.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// The deadline for the first byte, until that has arrived.
    silent: Option<Pin<Box<Sleep>>>,
    _place: Option<OwnedSemaphorePermit>,
    _open: TaskTrackerToken,
}

/// The connections of `listener`: at most `most` at once, each counted in `open`.
pub fn bounded(
    listener: UnixListener,
    most: usize,
    open: &TaskTracker,
) -> impl Stream<Item = io::Result<Connection>> + Send + Unpin + use<> {
    let (places, open) = (Arc::new(Semaphore::new(most)), open.clone());
    let connections = UnixListenerStream::new(listener).then(move |stream| {
        let (places, open) = (places.clone(), open.clone());
        async move {
            let stream = stream?;
            // It fails only for a closed semaphore, and this one is never closed.
            let place = places.acquire_owned().await.ok();
            Ok(Connection { stream, silent: Some(Box::pin(sleep(FIRST_BYTE))), _place: place, _open: open.token() })
        }
    });
    Box::pin(connections)
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => match &mut self.silent {
                Some(silent) => silent.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
                None => Poll::Pending,
            },
            read @ Poll::Ready(_) => {
                self.silent = None;
                read
            }
        }
    }
}

impl AsyncWrite for Connection {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn listening(most: usize) -> (tempfile::TempDir, impl Stream<Item = io::Result<Connection>> + Unpin, TaskTracker) {
        let dir = tempfile::tempdir().unwrap();
        let open = TaskTracker::new();
        let stream = bounded(UnixListener::bind(dir.path().join("socket")).unwrap(), most, &open);
        (dir, stream, open)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_beyond_the_limit_waits_until_a_connection_is_closed() {
        let (dir, mut accepted, open) = listening(2);
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(UnixStream::connect(dir.path().join("socket")).await.unwrap());
        }
        let first = accepted.next().await.unwrap().unwrap();
        let _second = accepted.next().await.unwrap().unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(1), accepted.next()).await.is_err());
        drop(first);
        let _third = accepted.next().await.unwrap().unwrap();
        assert_eq!(open.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_sends_is_disconnected_and_one_that_has_sent_may_idle() {
        let (dir, mut accepted, _open) = listening(8);
        let mut client = UnixStream::connect(dir.path().join("socket")).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(connection);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);

        let mut client = UnixStream::connect(dir.path().join("socket")).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        client.write_all(b"a").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'a');
        assert!(tokio::time::timeout(FIRST_BYTE * 10, connection.read_u8()).await.is_err(), "it may be silent now");
    }
}
