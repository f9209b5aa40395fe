// SPDX-License-Identifier: Apache-2.0
//! The resident front: containerd's sandbox Controller over gRPC, for all pods of the node.
//!
//! ```text
//!   containerd ──gRPC──> controller ──> pods ──ttrpc──> a pod's sandbox process
//!                                        │ ├── launch   new processes
//!                                        │ └── watch    one task per process: it ends, its pod is removed
//!                                        │       └── unwanted ──gRPC──> containerd's store: is the pod still known?
//!                                      adopt            the pods of an earlier serve
//! ```
//!
//! `serve` may end at any moment. Pods live on, containerd calls again, and the next `serve` takes
//! over. [`stage`](crate::stage) tells it which pods were left half made.

mod adopt;
mod client;
mod controller;
mod log;
mod lost;
mod pod;
mod pods;
mod process;
mod socket;
mod store;
mod unwanted;
mod watch;
pub mod wire;

use crate::cli::Serve;
use crate::launch::Places;
use controller::{ControllerServer, Front};
use magnetar_core::error::{Context, Error, Result};
use magnetar_core::server::connections::{self, Connection};
use magnetar_sys::signal::Watch;
use pods::Pods;
use rustix::process::Signal;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};
use unwanted::Rhythm;

/// The largest message that containerd sends (`defaults.DefaultMaxSendMsgSize`).
const MAX_MESSAGE: usize = 16 << 20;
/// The most connections at a time. containerd has one, and a few tools have others.
const CONNECTIONS: usize = 64;
/// How long `serve` waits at its end for pods that are being made or removed.
const LAST_CHANGES: Duration = Duration::from_secs(5);
/// How long the last answers may take to be sent.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot begin to serve.
pub fn run(options: Serve) -> Result<()> {
    log::start(if options.debug { LevelFilter::DEBUG } else { LevelFilter::INFO });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "cannot start the event loop".into())?;
    runtime.block_on(serve(options))
}

async fn serve(options: Serve) -> Result<()> {
    let mut ends = (listen_for(Signal::TERM)?, listen_for(Signal::INT)?);
    socket::folder(&options.state_dir)?;
    socket::folder(options.listen.parent().unwrap_or(Path::new("/")))?;
    let (listener, owned) = socket::listen(&options.listen)?;
    let pods = Pods::new(options.state_dir, Places::new(options.libexec.as_deref()), Rhythm::default());
    adopt::adopt_all(&pods);
    info!(socket = %options.listen.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    if let Err(error) = socket::notify_ready() {
        warn!(%error, "serving, but the service manager does not know it");
    }
    let stop = CancellationToken::new();
    let server = answer_calls(listener, Front::new(pods.clone(), options.config_dir), stop.clone());
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return ended,
        _ = ends.0.arrived() => {}
        _ = ends.1.arrived() => {}
    }
    info!("ending; pods live on");
    stop.cancel();
    drop(owned);
    pods.changes().close();
    let last = async {
        // A Wait call may never end, so do not wait for the server, but only for calls that change
        // pods.
        tokio::select! {
            ended = &mut server => ended?,
            () = pods.changes().wait() => tokio::time::sleep(LAST_ANSWERS).await,
        }
        pods.changes().wait().await;
        Ok(())
    };
    tokio::time::timeout(LAST_CHANGES, last).await.unwrap_or_else(|_| {
        warn!("ending while a pod is being made or removed: the next serve removes it");
        Ok(())
    })
}

async fn answer_calls(listener: UnixListener, front: Front, stop: CancellationToken) -> Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener).context(|| "cannot use the socket".into())?;
    let service = ControllerServer::new(front).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
    // containerd has a Wait call for each pod on one connection, so a limit on calls would limit
    // pods.
    let server = Server::builder().max_concurrent_streams(None).add_service(service);
    let callers = connections::bounded(listener, CONNECTIONS, &TaskTracker::new()).map(|connection| connection.map(Caller));
    let ended = server.serve_with_incoming_shutdown(callers, stop.cancelled()).await;
    ended.map_err(|error| Error::internal(format!("the gRPC server has ended: {error}")))
}

/// A connection without information about its client, for tonic.
struct Caller(Connection);

impl Connected for Caller {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Caller {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Caller {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn listen_for(signal: Signal) -> Result<Watch> {
    Watch::new(signal).context(|| "cannot watch for signals".into())
}

#[cfg(test)]
mod tests;
