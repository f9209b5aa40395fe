// SPDX-License-Identifier: Apache-2.0
//! Connections to sandbox processes: one for each call, so that no call can block another.

use containerd_shim_protos::sandbox_async::SandboxClient;
use magnetar_core::error::{Code, Error};
use magnetar_core::record::PodDir;
use magnetar_core::sandbox::update::{METHOD, SERVICE};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

/// Why a call failed.
#[derive(Debug)]
pub enum Failure {
    /// The sandbox process answered with an error.
    Answered(Error),
    /// There was no answer: no process listens, or the connection broke.
    Broken(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Answered(error) | Failure::Broken(error) => error,
        }
    }
}

/// Calls a sandbox process. It has no deadline of its own: dropping the future ends the call.
///
/// # Errors
/// [`Failure`]
pub async fn call<T, F>(dir: &PodDir, request: impl FnOnce(SandboxClient) -> F) -> Result<T, Failure>
where
    F: Future<Output = ttrpc::Result<T>>,
{
    outcome(request(SandboxClient::new(connect(dir).await?)).await)
}

/// Asks a sandbox process to update its sandbox, which is not among the calls of [`SandboxClient`]
/// yet.
///
/// # Errors
/// [`Failure`]; `FailedPrecondition` if the process is of a version that does not have this call.
/// containerd would take its answer, Unimplemented, for an update that is done.
pub async fn update(dir: &PodDir, payload: Vec<u8>) -> Result<(), Failure> {
    let request = ttrpc::Request { service: SERVICE.into(), method: METHOD.into(), payload, ..Default::default() };
    match outcome(connect(dir).await?.request(request).await.map(drop)) {
        Err(Failure::Answered(error)) if error.code() == Code::Unimplemented => Err(Failure::Answered(Error::precondition(
            "the pod's process is of an earlier version, which cannot resize it: make the pod anew",
        ))),
        outcome => outcome,
    }
}

async fn connect(dir: &PodDir) -> Result<Client, Failure> {
    // Not by ttrpc's own connect, which blocks the thread while the queue of a stuck process is
    // full.
    let stream = UnixStream::connect(dir.socket()).await.map_err(|error| {
        Failure::Broken(Error::new(Code::Unavailable, format!("cannot connect to {}: {error}", dir.socket().display())))
    })?;
    Ok(Client::new(Socket::from(stream)))
}

fn outcome<T>(answer: ttrpc::Result<T>) -> Result<T, Failure> {
    answer.map_err(|error| match error {
        status @ ttrpc::Error::RpcStatus(_) => Failure::Answered(status.into()),
        broken => Failure::Broken(Error::new(Code::Unavailable, format!("the sandbox process did not answer: {broken}"))),
    })
}
