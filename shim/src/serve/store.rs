// SPDX-License-Identifier: Apache-2.0
//! Asks containerd's sandbox store whether it knows a pod.
//!
//! A client adds a pod to the store before it calls Create, and removes it after Shutdown or when
//! making the pod has failed. The store is asked seldom, so each question has a connection of its
//! own.

use super::pod::Pod;
use super::wire::NAMESPACE;
use containerd_client::services::v1::sandbox::StoreGetRequest;
use containerd_client::services::v1::sandbox::store_client::StoreClient;
use hyper_util::rt::TokioIo;
use magnetar_core::error::{Code, Context, Error, Result};
use std::error::Error as _;
use std::future::ready;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use tracing::{debug, warn};

/// How long containerd may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Access to the store.
#[derive(Debug)]
pub struct Store {
    /// Allows one question at a time: after a restart there is one for every pod, and connections
    /// need memory.
    turn: Semaphore,
    /// Whether a failed question was logged already.
    silent: AtomicBool,
}

impl Store {
    /// Does not connect yet.
    pub fn new() -> Self {
        Self { turn: Semaphore::new(1), silent: AtomicBool::new(false) }
    }

    /// Whether containerd knows a pod; `None` if containerd cannot be asked. That is logged once,
    /// and again only after an answer.
    pub async fn knows(&self, pod: &Pod) -> Option<bool> {
        let outcome = async {
            let _turn = self.turn.acquire().await.map_err(|_| Error::internal("the store is closed"))?;
            let address = pod.dir.pod()?.config.containerd.address;
            let late = |_| Error::new(Code::DeadlineExceeded, format!("{} did not answer in {} s", address.display(), ANSWER.as_secs()));
            tokio::time::timeout(ANSWER, ask(&address, pod)).await.map_err(late)?
        };
        match outcome.await {
            Ok(known) => {
                self.silent.store(false, Ordering::Relaxed);
                Some(known)
            }
            Err(error) => {
                if self.silent.swap(true, Ordering::Relaxed) {
                    debug!(%error, "still cannot ask containerd");
                } else {
                    warn!(%error, "cannot ask containerd about pods without a Wait call: leaving them alone");
                }
                None
            }
        }
    }
}

async fn ask(address: &Path, pod: &Pod) -> Result<bool> {
    let mut request = Request::new(StoreGetRequest { sandbox_id: pod.id.to_string() });
    let namespace =
        pod.namespace.as_str().parse().map_err(|_| Error::invalid(format!("{NAMESPACE} {:?} cannot be sent", pod.namespace)))?;
    request.metadata_mut().insert(NAMESPACE, namespace);
    match StoreClient::new(connect(address).await?).get(request).await {
        Ok(_) => Ok(true),
        // A status with a source was made on this side, for a broken connection. It is not
        // containerd's answer.
        Err(status) if status.code() == tonic::Code::NotFound && status.source().is_none() => Ok(false),
        Err(status) => {
            let why = format!("containerd at {} cannot look for sandbox {}: {}", address.display(), pod.id, status.message());
            Err(Error::new(Code::Unavailable, why))
        }
    }
}

/// Opens a connection that is closed with the channel.
async fn connect(address: &Path) -> Result<Channel> {
    let what = || format!("cannot connect to containerd at {}", address.display());
    let mut stream = Some(TokioIo::new(UnixStream::connect(address).await.context(what)?));
    let used = || std::io::Error::from(std::io::ErrorKind::NotConnected);
    let connector = service_fn(move |_| ready(stream.take().ok_or_else(used)));
    let connected = Endpoint::from_static("http://containerd").connect_with_connector(connector).await;
    connected.map_err(|error| Error::new(Code::Unavailable, format!("{}: {error}", what())))
}
