// SPDX-License-Identifier: Apache-2.0
//! The host's connections to the agent in the guest.
//!
//! ```text
//! dial ──vsock──> agent     one connection per purpose (magnetar_vm_agent_api), through the kernel or a Unix socket
//! Guest::ask                requests, one after the other, on one connection
//! Guest::tasks              containerd's Task API
//! ```
//!
//! A guest that misses a deadline counts as dead: the caller gets an error.

mod answers;
mod tasks;

pub use tasks::{Answer as TaskAnswer, Failure, GuestTasks};

use crate::host::vsock::Cid;
use magnetar_core::confined::socket::NamedSocket;
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

/// How long a guest may take for its first message on a connection.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How many requests may wait behind the current one.
const QUEUE: usize = 16;

/// The interval between attempts to connect to an agent that does not listen yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The longest answer of the vsock device to CONNECT, in bytes.
const MAX_GREETING: usize = 32;

/// A connection to the agent.
pub type Connection = Either<UnixStream, VsockStream>;

/// How the guest is reached.
#[derive(Debug, Clone)]
pub struct Dialer {
    way: Transport,
    secret: Secret,
}

#[derive(Debug, Clone)]
enum Transport {
    /// Through the Unix socket of a hybrid vsock device (Firecracker's docs/vsock.md has its
    /// protocol).
    Hybrid {
        /// Its path.
        socket: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Through the kernel.
    Kernel {
        /// The guest's address.
        number: u32,
        /// The device that holds the address. Once it is closed, the address may belong to another
        /// guest.
        device: Weak<OwnedFd>,
    },
}

impl Dialer {
    /// Through the Unix socket of a hybrid vsock device that runs as `owner`, to an agent with this
    /// secret.
    pub fn hybrid(socket: PathBuf, owner: u32, secret: Secret) -> Self {
        Self { way: Transport::Hybrid { socket, owner }, secret }
    }

    /// Through the kernel, as long as the caller keeps the address.
    pub fn kernel(cid: &Cid, secret: Secret) -> Self {
        Self { way: Transport::Kernel { number: cid.number, device: Arc::downgrade(&cid.device) }, secret }
    }

    /// Connects for a purpose.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers, `FailedPrecondition` with the agent's reason if it refuses.
    pub async fn dial(&self, purpose: Purpose) -> Result<Connection> {
        within_open_timeout(async { self.open(self.connect().await?, purpose).await }).await
    }

    /// Connects for a purpose to an agent that may not listen yet. Retries without limit, so the
    /// caller needs a deadline.
    ///
    /// # Errors
    /// As [`Dialer::dial`].
    pub async fn dial_first(&self, purpose: Purpose) -> Result<Connection> {
        let stream = match &self.way {
            // The guest has sent its first message, so its agent listens.
            Transport::Hybrid { socket, owner } => hybrid(socket, *owner).await?,
            Transport::Kernel { number, device } => loop {
                match vsock(*number, device).await {
                    Err(error) if is_starting(&error) => tokio::time::sleep(RETRY_INTERVAL).await,
                    connected => break Either::Right(connected.map_err(unavailable)?),
                }
            },
        };
        within_open_timeout(self.open(stream, purpose)).await
    }

    /// Connects to the agent's port.
    async fn connect(&self) -> Result<Connection> {
        match &self.way {
            Transport::Hybrid { socket, owner } => hybrid(socket, *owner).await,
            Transport::Kernel { number, device } => vsock(*number, device).await.map(Either::Right).map_err(unavailable),
        }
    }

    /// Sends the connection's purpose and the secret.
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

/// Whether a connection failed because the guest is still starting. Either its vsock driver is not
/// loaded (Linux before 2026 waits for it), or the guest's kernel says that nobody listens.
fn is_starting(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::ConnectionReset)
}

/// Connects to a guest that may be slow. The kernel gives up after two seconds
/// (`VSOCK_DEFAULT_CONNECT_TIMEOUT`), so retry.
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

async fn within_open_timeout(opened: impl Future<Output = Result<Connection>>) -> Result<Connection> {
    match tokio::time::timeout(OPEN_TIMEOUT, opened).await {
        Ok(opened) => opened,
        Err(_) => Err(no_answer(OPEN_TIMEOUT)),
    }
}

/// The error of an agent that has not answered within `patience`.
pub fn no_answer(patience: Duration) -> Error {
    Error::new(Code::Unavailable, format!("the agent in the guest has not answered within {patience:?}"))
}

/// Reads `OK <port>` and a line feed, byte by byte, because the bytes after it belong to the guest.
async fn greeting(stream: &mut UnixStream) -> Result<()> {
    let what = || "the vsock device has no connection to the agent in the guest".to_string();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if line.len() == MAX_GREETING {
            return Err(Error::new(Code::Unavailable, what()));
        }
        line.push(stream.read_u8().await.map_err(|error| Error::new(Code::Unavailable, format!("{}: {error}", what())))?);
    }
    if line.starts_with(b"OK ") { Ok(()) } else { Err(Error::new(Code::Unavailable, what())) }
}

/// The agent of a running guest. Cheap to clone.
#[derive(Clone)]
pub struct Guest {
    dialer: Dialer,
    requests: mpsc::Sender<(Request, oneshot::Sender<Result<()>>)>,
    tasks: GuestTasks,
}

impl Guest {
    /// Connects for requests and for tasks, once the agent listens. Returns the guest, and the loop
    /// that sends its requests. The loop ends with the connection.
    ///
    /// # Errors
    /// As [`Dialer::dial`].
    pub async fn connect(dialer: Dialer) -> Result<(Self, impl Future<Output = ()> + Send)> {
        let control = dialer.dial_first(Purpose::Control).await?;
        let tasks = GuestTasks::new(dialer.dial(Purpose::Tasks).await?);
        let (requests, asked) = mpsc::channel(QUEUE);
        Ok((Self { dialer, requests, tasks }, serve_requests(control, asked)))
    }

    /// Sends a request, and waits for the answer, at most for `patience`.
    ///
    /// # Errors
    /// The agent's error; `Unavailable` if it does not answer.
    pub async fn ask(&self, request: Request, patience: Duration) -> Result<()> {
        let gone = || Error::new(Code::Unavailable, "the agent in the guest is gone");
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.requests.send((request, answer)).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        };
        match tokio::time::timeout(patience, asked).await {
            Ok(outcome) => outcome,
            Err(_) => Err(no_answer(patience)),
        }
    }

    /// Sends a request that may take long. Uses a connection of its own, so that no other request
    /// waits.
    ///
    /// # Errors
    /// As [`Guest::ask`].
    pub async fn ask_on_new_connection(&self, request: &Request, patience: Duration) -> Result<()> {
        let asked = async {
            let mut control = self.dialer.dial(Purpose::Control).await?;
            frame::write(&mut control, request).await.context(what)?;
            match frame::read::<Answer>(&mut control, frame::FROM_GUEST).await.context(what)? {
                Answer::Done => Ok(()),
                Answer::Failed(line) => Err(answers::error(&Error::from_line(&line))),
            }
        };
        tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| Err(no_answer(patience)))
    }

    /// The Task API in the guest.
    pub fn tasks(&self) -> &GuestTasks {
        &self.tasks
    }

    /// Opens another connection.
    ///
    /// # Errors
    /// As [`Dialer::dial`].
    pub async fn dial(&self, purpose: Purpose) -> Result<Connection> {
        self.dialer.dial(purpose).await
    }
}

/// Pings an agent, on a request connection that nothing else uses, and tells it the time. Not
/// cancel-safe.
///
/// # Errors
/// If the connection fails.
pub async fn ping(control: &mut Connection) -> std::io::Result<()> {
    frame::write(control, &Request::Ping { now: now() }).await?;
    // Any answer shows that it lives.
    frame::read::<Answer>(control, frame::FROM_GUEST).await.map(drop)
}

/// Sends requests one after the other, even if the caller no longer waits.
async fn serve_requests(mut control: Connection, mut asked: mpsc::Receiver<(Request, oneshot::Sender<Result<()>>)>) {
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

/// The current time for the agent: nanoseconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
