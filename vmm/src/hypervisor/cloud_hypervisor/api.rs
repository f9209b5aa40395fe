// SPDX-License-Identifier: Apache-2.0
//! The part of Cloud Hypervisor's API that is needed here: HTTP over a Unix socket, with JSON
//! (Cloud Hypervisor's vmm/src/api/openapi/cloud-hypervisor.yaml, version 0.3.0).
//!
//! ```text
//! GET /api/v1/vmm.ping          its version
//! GET /api/v1/vm.info           the machine's state, memory and devices
//! GET /api/v1/vm.counters       waits until a change of its devices is complete
//! PUT /api/v1/vm.resize         another size
//! PUT /api/v1/vm.add-disk       one more disk
//! PUT /api/v1/vm.remove-device  one less
//! PUT /api/v1/vm.pause          its processors stand still
//! PUT /api/v1/vm.snapshot       writes it to a directory
//! PUT /api/v1/vm.restore        reads it from one
//! PUT /api/v1/vm.add-vsock      a vsock
//! PUT /api/v1/vm.resume         its processors go on
//! ```
//!
//! Each request has a connection of its own, so an answer never belongs to another request.
//!
//! The crate `cloud-hypervisor-client` is not used. It is generated from the whole description, so
//! it brings a type for each part of it, and a pool of connections. Two requests need neither, and
//! hyper is in this project already.

use super::carrier::Carrier;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use magnetar_core::error::{Code, Context, Error, Result};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

/// The largest answer that is read, in bytes. `vm.info` has some ten thousand.
const MAX_ANSWER: usize = 1 << 20;

/// How long it may take for an answer. It answers nothing while it makes a machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The API behind a socket.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
}

/// A version of Cloud Hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// In its own words.
    pub text: String,
    /// The first number.
    pub major: u32,
}

#[derive(Debug, Deserialize)]
struct Ping {
    version: String,
}

#[derive(Debug, Deserialize)]
struct Info {
    state: String,
    /// In bytes: what the guest had at the start, and what it has taken since.
    #[serde(default)]
    memory_actual_size: u64,
    /// By their names.
    #[serde(default)]
    device_tree: HashMap<String, IgnoredAny>,
}

impl Api {
    /// The API that is served at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Cloud Hypervisor's version.
    ///
    /// # Errors
    /// As all requests: `Unavailable` if nobody listens, `DeadlineExceeded` if it does not answer,
    /// `Internal` if the answer is none of this API's or an error.
    pub async fn version(&self) -> Result<Version> {
        let Ping { version: text } = self.get("vmm.ping").await?;
        let major = text.trim_start_matches('v').split('.').next().unwrap_or_default().parse();
        let major = major.map_err(|_| Error::internal(format!("Cloud Hypervisor says that its version is {text:?}, which is none")))?;
        Ok(Version { text, major })
    }

    /// The machine's state: `Created`, `Running`, `Shutdown`, `Paused` or `BreakPoint`.
    ///
    /// # Errors
    /// As [`version`](Self::version).
    pub async fn state(&self) -> Result<String> {
        let Info { state, .. } = self.get("vm.info").await?;
        Ok(state)
    }

    /// The memory that the guest has, in bytes.
    ///
    /// # Errors
    /// As [`version`](Self::version).
    pub async fn memory(&self) -> Result<u64> {
        let Info { memory_actual_size, .. } = self.get("vm.info").await?;
        Ok(memory_actual_size)
    }

    /// Whether the machine has a device with this name.
    ///
    /// # Errors
    /// As [`version`](Self::version).
    pub async fn has_device(&self, name: &str) -> Result<bool> {
        let Info { device_tree, .. } = self.get("vm.info").await?;
        Ok(device_tree.contains_key(name))
    }

    /// Waits until a change of the machine's devices that has begun is complete: the thread of a
    /// processor that executes it holds their lock, which the answer to this needs.
    ///
    /// # Errors
    /// As [`version`](Self::version).
    pub async fn settle(&self) -> Result<()> {
        self.get::<IgnoredAny>("vm.counters").await.map(drop)
    }

    /// Gives an order.
    ///
    /// # Errors
    /// As [`version`](Self::version); `FailedPrecondition` if the machine is not in the state for
    /// it; `ResourceExhausted` if it is not yet.
    pub async fn order(&self, path: &str, order: &Value) -> Result<()> {
        self.order_with(path, order, &[]).await
    }

    /// Gives an order that descriptors belong to.
    ///
    /// # Errors
    /// As [`order`](Self::order).
    pub async fn order_with(&self, path: &str, order: &Value, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        // An order that is only a word has no body.
        let body = if order.is_null() { Bytes::new() } else { order.to_string().into() };
        self.in_time(Method::PUT, path, body, descriptors).await.map(drop)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.in_time(Method::GET, path, Bytes::new(), &[]).await?;
        let what = |error| Error::internal(format!("Cloud Hypervisor's answer to {path} is not what is expected: {error}"));
        serde_json::from_slice(&answer).map_err(what)
    }

    async fn in_time(&self, method: Method, path: &str, body: Bytes, descriptors: &[BorrowedFd<'_>]) -> Result<Bytes> {
        let late = |_| Error::new(Code::DeadlineExceeded, format!("Cloud Hypervisor has not answered {path} within {TIMEOUT:?}"));
        tokio::time::timeout(TIMEOUT, self.request(method, path, body, descriptors)).await.map_err(late)?
    }

    async fn request(&self, method: Method, path: &str, body: Bytes, descriptors: &[BorrowedFd<'_>]) -> Result<Bytes> {
        let what = || format!("cannot ask Cloud Hypervisor for {path} at {}", self.socket.display());
        let failed = |error: hyper::Error| Error::new(Code::Unavailable, format!("{}: {error}", what()));
        let stream = Carrier::new(UnixStream::connect(&self.socket).await.context(what)?, descriptors).context(what)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let request = Request::builder().method(method).uri(format!("/api/v1/{path}")).header("Host", "localhost");
        let request = request.body(Full::new(body)).map_err(|error| Error::internal(format!("{}: {error}", what())))?;
        let exchange = async {
            let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|error| Error::internal(format!("{}: {error}", what())))?.to_bytes();
            Ok::<_, Error>((head.status, body))
        };
        let (status, body) = tokio::select! {
            answer = exchange => answer?,
            // It ends only when the other side hangs up; then the exchange has failed, too.
            Err(error) = connection => return Err(failed(error)),
        };
        if !status.is_success() {
            return Err(Error::new(code(status), format!("Cloud Hypervisor refuses {path}: {}", reason(status, &body))));
        }
        Ok(body)
    }
}

fn code(status: StatusCode) -> Code {
    match status {
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::BAD_REQUEST => Code::InvalidArgument,
        StatusCode::METHOD_NOT_ALLOWED => Code::FailedPrecondition,
        // A processor that the guest was asked to let go of is still there.
        StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

/// An error's text: a list of causes, or any other text, on one line of bounded length.
fn reason(status: StatusCode, body: &[u8]) -> String {
    let causes = serde_json::from_slice::<Vec<String>>(body).map(|causes| causes.join(": "));
    let said = causes.unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned());
    let said: String = said.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(500).collect();
    if said.trim().is_empty() { status.to_string() } else { said.trim().to_owned() }
}
