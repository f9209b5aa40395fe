// SPDX-License-Identifier: Apache-2.0
//! The agent in the guest, as the host talks to it.
//!
//! ```text
//! dial ──vsock──> agent     one connection for each purpose (magnetar_vm_agent_api), by way of the kernel or of a Unix socket
//! Guest::ask                requests, one after the other, on the one connection that is for them
//! Guest::tasks              containerd's Task API
//! ```
//!
//! A guest that does not answer within the deadline is as good as dead; who asks is told so.

mod answers;
mod tasks;

pub use tasks::{Answer as TaskAnswer, Failure, GuestTasks};

use crate::host::socket::NamedSocket;
use crate::host::vsock::Cid;
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_vm_agent_api::secret::Secret;
use magnetar_vm_agent_api::{self as api, Answer, Opened, Opening, Purpose, Request, VERSION, frame};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::either::Either;
use tokio_vsock::{VsockAddr, VsockStream};

/// How long a guest may take for its first word on a connection.
const OPENED: Duration = Duration::from_secs(10);

/// How many requests may wait for the one that is being answered.
const QUEUE: usize = 16;

/// Between two calls of an agent that does not listen yet.
const AGAIN: Duration = Duration::from_millis(20);

/// The longest answer of the vsock device to CONNECT, in bytes.
const LONGEST_GREETING: usize = 32;

/// A connection to the agent.
pub type Connection = Either<UnixStream, VsockStream>;

/// How the guest is reached.
#[derive(Debug, Clone)]
pub struct Dialer {
    way: Way,
    secret: Secret,
}

#[derive(Debug, Clone)]
enum Way {
    /// Through the Unix socket of a hybrid vsock device (Firecracker's docs/vsock.md has its protocol).
    Hybrid {
        /// Where it is.
        socket: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Through the kernel.
    Kernel {
        /// The guest's address.
        number: u32,
        /// The device that has it. Without the device the address may be another guest's.
        device: Weak<OwnedFd>,
    },
}

impl Dialer {
    /// Through the Unix socket of a hybrid vsock device, which `owner` is, to an agent with this secret.
    pub fn hybrid(socket: PathBuf, owner: u32, secret: Secret) -> Self {
        Self { way: Way::Hybrid { socket, owner }, secret }
    }

    /// Through the kernel, as long as somebody else keeps the address.
    pub fn kernel(cid: &Cid, secret: Secret) -> Self {
        Self { way: Way::Kernel { number: cid.number, device: Arc::downgrade(&cid.device) }, secret }
    }

    /// Connects for a purpose.
    ///
    /// # Errors
    /// `Unavailable` where there is nobody to talk to, `FailedPrecondition` where the agent refuses, with its reason.
    pub async fn dial(&self, purpose: Purpose) -> Result<Connection> {
        in_time(async { self.open(self.connect().await?, purpose).await }).await
    }

    /// Connects for a purpose to an agent that may not listen yet, for as long as it does not: the caller has a deadline.
    ///
    /// # Errors
    /// As [`Dialer::dial`].
    pub async fn dial_first(&self, purpose: Purpose) -> Result<Connection> {
        let stream = match &self.way {
            // Its guest has said hello.
            Way::Hybrid { socket, owner } => hybrid(socket, *owner).await?,
            Way::Kernel { number, device } => loop {
                match vsock(*number, device).await {
                    Err(error) if not_yet(&error) => tokio::time::sleep(AGAIN).await,
                    connected => break Either::Right(connected.map_err(unavailable)?),
                }
            },
        };
        in_time(self.open(stream, purpose)).await
    }

    /// Connects to the agent's port.
    async fn connect(&self) -> Result<Connection> {
        match &self.way {
            Way::Hybrid { socket, owner } => hybrid(socket, *owner).await,
            Way::Kernel { number, device } => vsock(*number, device).await.map(Either::Right).map_err(unavailable),
        }
    }

    /// Says what the connection is for, and that it is ours.
    async fn open(&self, mut stream: Connection, purpose: Purpose) -> Result<Connection> {
        frame::write(&mut stream, &Opening { version: VERSION, purpose }).await.context(what)?;
        self.secret.say(&mut stream).await.context(what)?;
        match frame::read::<Opened>(&mut stream, frame::FROM_GUEST).await.context(what).map_err(|error| answers::error(&error))? {
            Opened::Ready => Ok(stream),
            Opened::Refused { version, .. } if version != VERSION => Err(Error::precondition(format!(
                "the agent in the guest speaks version {version} of the guest protocol, this program {VERSION}: \
                 install an initramfs and a magnetar-vmm of the same release"
            ))),
            Opened::Refused { reason, .. } => {
                Err(Error::precondition(format!("the agent in the guest refuses: {}", answers::sentence(&reason))))
            }
        }
    }
}

async fn hybrid(socket: &Path, owner: u32) -> Result<Connection> {
    let socket = NamedSocket::of(socket, owner)?;
    let mut stream = UnixStream::connect(socket.path()).await.context(what)?;
    stream.write_all(format!("CONNECT {}\n", api::PORT).as_bytes()).await.context(what)?;
    greeting(&mut stream).await?;
    Ok(Either::Left(stream))
}

/// Whether this is what is said of a guest that starts: that it has no driver for its device yet (Linux before 2026 waits for it),
/// or, by the guest's own kernel, that nobody listens.
fn not_yet(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::ConnectionReset)
}

/// Connects to a guest that may be slow: the kernel gives a connection up after two seconds (`VSOCK_DEFAULT_CONNECT_TIMEOUT`).
async fn vsock(number: u32, device: &Weak<OwnedFd>) -> std::io::Result<VsockStream> {
    let Some(_kept) = device.upgrade() else { return Err(ErrorKind::ConnectionRefused.into()) };
    loop {
        match VsockStream::connect(VsockAddr::new(number, api::PORT)).await {
            Err(error) if error.kind() == ErrorKind::TimedOut => {}
            connected => return connected,
        }
    }
}

fn unavailable(error: std::io::Error) -> Error {
    Error::new(Code::Unavailable, format!("{}: {error}", what()))
}

fn what() -> String {
    "cannot reach the agent in the guest".into()
}

async fn in_time(opened: impl Future<Output = Result<Connection>>) -> Result<Connection> {
    match tokio::time::timeout(OPENED, opened).await {
        Ok(opened) => opened,
        Err(_) => Err(late(OPENED)),
    }
}

/// The error of an agent that has not answered within `patience`.
pub fn late(patience: Duration) -> Error {
    Error::new(Code::Unavailable, format!("the agent in the guest has not answered within {patience:?}"))
}

/// `OK <port>` and a line feed, read byte by byte: what follows is the guest's.
async fn greeting(stream: &mut UnixStream) -> Result<()> {
    let what = || "the vsock device has no connection to the agent in the guest".to_string();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if line.len() == LONGEST_GREETING {
            return Err(Error::new(Code::Unavailable, what()));
        }
        line.push(stream.read_u8().await.map_err(|error| Error::new(Code::Unavailable, format!("{}: {error}", what())))?);
    }
    if line.starts_with(b"OK ") { Ok(()) } else { Err(Error::new(Code::Unavailable, what())) }
}

/// The agent of a guest that runs. Cheap to clone.
#[derive(Clone)]
pub struct Guest {
    dialer: Dialer,
    requests: mpsc::Sender<(Request, oneshot::Sender<Result<()>>)>,
    tasks: GuestTasks,
}

impl Guest {
    /// Connects for requests and for tasks, when the agent listens. Returns the guest, and the loop that carries its requests,
    /// which ends with the connection.
    ///
    /// # Errors
    /// As [`Dialer::dial`].
    pub async fn connect(dialer: Dialer) -> Result<(Self, impl Future<Output = ()> + Send)> {
        let control = dialer.dial_first(Purpose::Control).await?;
        let tasks = GuestTasks::new(dialer.dial(Purpose::Tasks).await?);
        let (requests, asked) = mpsc::channel(QUEUE);
        Ok((Self { dialer, requests, tasks }, carry(control, asked)))
    }

    /// Has the agent do something, within `patience`.
    ///
    /// # Errors
    /// What the agent says; `Unavailable` where it does not answer.
    pub async fn ask(&self, request: Request, patience: Duration) -> Result<()> {
        let gone = || Error::new(Code::Unavailable, "the agent in the guest is gone");
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.requests.send((request, answer)).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        };
        match tokio::time::timeout(patience, asked).await {
            Ok(outcome) => outcome,
            Err(_) => Err(late(patience)),
        }
    }

    /// Has the agent do something that may take long, and that nothing else is to wait for: on a connection of its own.
    ///
    /// # Errors
    /// As [`Guest::ask`].
    pub async fn ask_apart(&self, request: &Request, patience: Duration) -> Result<()> {
        let asked = async {
            let mut control = self.dialer.dial(Purpose::Control).await?;
            frame::write(&mut control, request).await.context(what)?;
            match frame::read::<Answer>(&mut control, frame::FROM_GUEST).await.context(what)? {
                Answer::Done => Ok(()),
                Answer::Failed(line) => Err(answers::error(&Error::from_line(&line))),
            }
        };
        tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| Err(late(patience)))
    }

    /// The Task API in the guest.
    pub fn tasks(&self) -> &GuestTasks {
        &self.tasks
    }

    /// A further connection.
    ///
    /// # Errors
    /// As [`Dialer::dial`].
    pub async fn dial(&self, purpose: Purpose) -> Result<Connection> {
        self.dialer.dial(purpose).await
    }
}

/// Asks an agent whether it lives, on a connection for requests that nothing else uses, and tells it the time. Not cancel-safe.
///
/// # Errors
/// Where the connection fails.
pub async fn ping(control: &mut Connection) -> std::io::Result<()> {
    frame::write(control, &Request::Ping { now: now() }).await?;
    // Whatever it answers, it lives.
    frame::read::<Answer>(control, frame::FROM_GUEST).await.map(drop)
}

/// Carries requests one after the other, whether or not whoever asked still waits.
async fn carry(mut control: Connection, mut asked: mpsc::Receiver<(Request, oneshot::Sender<Result<()>>)>) {
    while let Some((request, answer)) = asked.recv().await {
        let answered = async {
            frame::write(&mut control, &request).await?;
            frame::read::<Answer>(&mut control, frame::FROM_GUEST).await
        };
        let outcome = match answered.await {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Failed(line)) => Err(answers::error(&Error::from_line(&line))),
            Err(_) => return,
        };
        let _unheard = answer.send(outcome);
    }
}

/// The time now, as the agent is told it: nanoseconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
