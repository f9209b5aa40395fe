// SPDX-License-Identifier: Apache-2.0
//! The loopback of the pod's network namespace. The pod's processes have another loopback, in the
//! guest. A process of the host that connects to this one (containerd, for `kubectl port-forward`)
//! means the guest's, so connections are passed on.
//!
//! ```text
//! dial 127.0.0.1:PORT ──loopback::steer──> our listener ──dial(PORT), chunks──> agent ──> 127.0.0.1:PORT or [::1]:PORT
//! ```
//!
//! Whether anything listens on the port is known only in the guest, after the connection was
//! accepted here. If nothing listens, the connection is reset at once. It is also reset if the
//! guest's side fails: a normal close would tell the client that it received everything.

use magnetar_core::error::{Context, Error, Result};
use magnetar_sys::loopback::{self, Steering};
use magnetar_sys::readiness;
use magnetar_vm_agent_api::chunk;
use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// The most connections at a time. Each takes three descriptors and up to 64 KiB. More wait in the
/// kernel's queues, which are bounded too.
const MAX_CONNECTIONS: usize = 256;

/// The pause after a failed accept, for example for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Forwards connections to the pod's loopback to the guest while this exists.
#[derive(Debug)]
pub struct Forwarder {
    _end: DropGuard,
}

/// Forwards all TCP connections to the loopback of the calling thread's network namespace, which
/// must be the pod's. Runs until `cancel`, or until the [`Forwarder`] is dropped. Then open
/// connections are reset.
///
/// Never call it in the host's network namespace: all connections to the host's loopback would go
/// to the guest.
///
/// `dial` connects to a port of the guest, or fails if nothing listens there. It should have a
/// deadline.
///
/// # Errors
/// `Unimplemented` if the kernel cannot do it; other errors of the kernel.
pub fn start<D, F, C>(tasks: &TaskTracker, cancel: &CancellationToken, dial: D) -> Result<Forwarder>
where
    D: Fn(u16) -> F + Send + Sync + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let what = || "cannot listen on the pod's loopback".to_string();
    let v4 = listen(Ipv4Addr::LOCALHOST.into()).context(what)?;
    let v6 = match listen(Ipv6Addr::LOCALHOST.into()) {
        Ok(listener) => Some(listener),
        Err(error) if has_no_ipv6(&error) => None,
        Err(error) => return Err(error).context(what),
    };
    let steering = match loopback::steer(v4.as_fd(), v6.as_ref().map(AsFd::as_fd)) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            return Err(Error::unimplemented(format!("no port-forward: {error}")));
        }
        steered => steered.context(|| "cannot redirect connections to the pod's loopback".into())?,
    };
    let cancel = cancel.child_token();
    tasks.spawn(accept(Loopback { v4, v6, _steering: steering }, tasks.clone(), cancel.clone(), Arc::new(dial)));
    Ok(Forwarder { _end: cancel.drop_guard() })
}

/// The listeners that receive the connections.
struct Loopback {
    _steering: Steering,
    v4: TcpListener,
    v6: Option<TcpListener>,
}

impl Loopback {
    /// Cancel-safe.
    async fn next(&self) -> io::Result<TcpStream> {
        let v6 = async {
            match &self.v6 {
                Some(v6) => v6.accept().await,
                None => std::future::pending().await,
            }
        };
        let (client, _) = tokio::select! {
            accepted = self.v4.accept() => accepted,
            accepted = v6 => accepted,
        }?;
        Ok(client)
    }
}

/// Listens on any port: connections to all ports are redirected to it.
fn listen(address: IpAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind((address, 0))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Whether IPv6 is missing in the kernel or in the namespace.
fn has_no_ipv6(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].contains(&Errno::from_raw_os_error(code)))
}

async fn accept<D, F, C>(loopback: Loopback, tasks: TaskTracker, cancel: CancellationToken, dial: Arc<D>)
where
    D: Fn(u16) -> F + Send + Sync + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut failing = false;
    let next = async || {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        Ok::<_, io::Error>((loopback.next().await?, place))
    };
    while let Some(accepted) = cancel.run_until_cancelled(next()).await {
        match accepted {
            Ok((client, place)) => {
                failing = false;
                let (cancel, dial) = (cancel.clone(), dial.clone());
                tasks.spawn(async move {
                    let _place = place;
                    serve(client, &cancel, &*dial).await;
                });
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, "cannot accept connections to the pod's loopback");
                }
                let _cancelled = cancel.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
}

/// Serves one connection until it ends or all are cancelled.
async fn serve<D, F, C>(mut client: TcpStream, cancel: &CancellationToken, dial: &D)
where
    D: Fn(u16) -> F,
    F: Future<Output = Result<C>>,
    C: AsyncRead + AsyncWrite,
{
    let ended = cancel.run_until_cancelled(carry(&mut client, dial)).await;
    if let Some(Ok(())) = ended {
        return;
    }
    if let Some(Err(error)) = ended {
        debug!(%error, "a connection to the pod's loopback has failed");
    }
    if let Err(error) = client.set_zero_linger() {
        debug!(%error, "cannot reset a connection");
    }
}

async fn carry<D, F, C>(client: &mut TcpStream, dial: &D) -> Result<()>
where
    D: Fn(u16) -> F,
    F: Future<Output = Result<C>>,
    C: AsyncRead + AsyncWrite,
{
    let what = || "cannot serve a connection".to_string();
    let port = client.local_addr().context(what)?.port();
    client.set_nodelay(true).context(what)?;
    // Once a client has closed its sending side, nothing is read from it, and there may be nothing
    // to write to it for a long time. So a reset by the client is only noticed by watching for
    // errors.
    let watched = readiness::watch(client.as_fd().try_clone_to_owned().context(what)?).context(what)?;
    let carried = async {
        let guest = dial(port).await?;
        let (from, to) = client.split();
        chunk::carry(from, to, guest).await.context(|| format!("port {port}"))
    };
    tokio::select! {
        biased;
        carried = carried => carried,
        failed = watched.ready(Interest::ERROR) => {
            let _ready = failed.context(what)?;
            Err(Error::internal(format!("port {port}: the client's connection has failed")))
        }
    }
}

#[cfg(test)]
mod tests;
