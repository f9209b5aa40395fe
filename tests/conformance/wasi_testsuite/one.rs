// SPDX-License-Identifier: Apache-2.0
//! One test: its module in a container of a pod, and the operations on that, one after the other.
//!
//! ```text
//!   run       CreateContainer and StartContainer
//!   read      the container's log; with a `write` in the test, a client that is attached
//!   write     the client
//!   connect   PortForward: the addresses that modules name are of the pod's loopback
//!   request   HTTP to the pod's address, at the port that the engine listens on
//!   kill      the signal, by containerd's Task API
//!   wait      until the container has ended; its exit code
//! ```

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use magnetar_cri::{Container, ContainerSpec, Forward, Frame, Pod, Session};
use magnetar_e2e::{Case, Tool, eventually};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::{
    servers::Servers,
    spec::{Operation, Output, Request, Spec},
};

/// Where the engine serves a component of HTTP.
const PORT: u16 = 8080;

/// How often a test is begun whose client may come too late.
const ATTEMPTS: u32 = 3;

/// The most of a module's output that a failure shows, in bytes from its end.
const SHOWN: usize = 4000;

/// A test: its name, the image and the name of its module in there, and what is done with it.
#[derive(Debug)]
pub struct Test {
    pub name: String,
    pub image: String,
    pub module: String,
    pub spec: Spec,
}

/// A module that has written nothing to a client. If it had written before the client came, that is
/// lost: it is not in the log either, which has whole lines only until the container ends.
#[derive(Debug, thiserror::Error)]
#[error("read: {0} not within the time")]
struct Silent(String);

impl Test {
    /// Runs it in a pod. What is wrong, if it fails.
    pub async fn run(&self, case: &Case, pod: &Pod) -> Result<Option<String>> {
        let mut failure = None;
        for attempt in 1..=ATTEMPTS {
            let node = facing(pod).await?;
            let servers = Servers::start(&self.spec.servers, node).await?;
            let mut spec = ContainerSpec::new(&format!("{}-{attempt}", self.name), &self.image);
            spec = spec.command([&self.module].into_iter().chain(&self.spec.run.args));
            for (name, value) in self.spec.run.env.iter().chain(&servers.addresses) {
                spec = spec.env(name, value);
            }
            let container = pod.create(&if self.spec.is_dialogue() { spec.stdin(true) } else { spec }).await?;
            let outcome = self.operations(case, pod, &container).await;
            failure = match outcome {
                Ok(()) => None,
                Err(ref error) => Some(format!("{error:#}{}", said(&container)?)),
            };
            container.remove().await?;
            if !outcome.is_err_and(|error| error.is::<Silent>()) {
                break;
            }
        }
        Ok(failure)
    }

    async fn operations(&self, case: &Case, pod: &Pod, container: &Container) -> Result<()> {
        container.start().await.context("run")?;
        let session = if self.spec.is_dialogue() { Some(container.attach(true, false).await.context("attach")?) } else { None };
        let mut running = Running {
            case,
            pod,
            container,
            streams: Streams { session, stdout: Vec::new(), stderr: Vec::new(), answered: true },
            read: [0; 2],
            connections: Vec::new(),
        };
        for operation in &self.spec.operations {
            running.perform(operation).await?;
        }
        Ok(())
    }
}

/// The node's address as a pod sees it: that from which the node reaches the pod.
async fn facing(pod: &Pod) -> Result<std::net::IpAddr> {
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await?;
    // It sends nothing.
    socket.connect((pod.ip().await?.as_str(), 9)).await.context("the pod's address")?;
    Ok(socket.local_addr()?.ip())
}

/// The end of what a container has written.
fn said(container: &Container) -> Result<String> {
    let log = container.log()?;
    let part = |name: &str, text: String| {
        let from = (text.len().saturating_sub(SHOWN)..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or_default();
        text.get(from..)
            .filter(|text| !text.is_empty())
            .map(|text| format!("\n  {name}: {}", text.trim_end().replace('\n', "\n    ")))
            .unwrap_or_default()
    };
    Ok(part("standard output", log.stdout()) + &part("standard error", log.stderr()))
}

/// The module while it runs.
struct Running<'a> {
    case: &'a Case,
    pod: &'a Pod,
    container: &'a Container,
    streams: Streams,
    /// How much of the log's standard output and standard error was read.
    read: [usize; 2],
    connections: Vec<(String, Forward)>,
}

/// The streams of a module that is talked to.
struct Streams {
    session: Option<Session>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// It has written since it was written to: nothing to it is on its way any more.
    answered: bool,
}

impl Running<'_> {
    async fn perform(&mut self, operation: &Operation) -> Result<()> {
        match operation {
            Operation::Run { .. } => bail!("run: it runs already"),
            Operation::Wait { exit_code } => self.wait(*exit_code).await,
            Operation::Read { id, payload } if self.streams.session.is_some() => self.streams.read(self.case.soon(), *id, payload).await,
            Operation::Read { id, payload } => self.read_log(*id, payload).await,
            Operation::Write { payload, .. } => self.streams.write(payload).await,
            Operation::Connect { id, .. } => self.connect(id).await,
            Operation::Send { id, payload } => Ok(self.connection(id)?.send(payload.as_bytes()).await?),
            Operation::Recv { id, payload } => self.receive(id, payload).await,
            Operation::Request(request) => {
                self.request(request).await.with_context(|| format!("request {} {}", request.method, request.path))
            }
            Operation::Kill { signal } => {
                let ctr = Tool::ctr_in("k8s.io", self.case.soon()).context("the node has no ctr")?;
                ctr.run(&["tasks", "kill", "--signal", signal, self.container.id()]).map(drop)
            }
        }
    }

    /// As the suite has it, this is the end of standard input as well.
    async fn wait(&mut self, expected: i32) -> Result<()> {
        let within = self.case.within(30);
        let ended = match self.streams.session.take() {
            // The server forgets what it has not passed on when the client leaves, so that the
            // client stays until the module has ended, or is sure to wait for the end of its input.
            Some(session) if !self.streams.answered => {
                let ended = self.container.exited(within).await;
                session.close().await?;
                ended
            }
            Some(session) => {
                session.close().await?;
                self.container.exited(within).await
            }
            None => self.container.exited(within).await,
        };
        let code = ended.context("wait")?.exit_code;
        self.case.whole_log(self.container).await?;
        ensure!(code == expected, "wait: exit code {code}, not {expected}");
        Ok(())
    }

    /// What is next in the log, which has an end of line after the last word, whether the module
    /// has written one or not.
    async fn read_log(&mut self, id: Output, payload: &str) -> Result<()> {
        let at = self.read[id as usize];
        let text = || -> Result<String> {
            let log = self.container.log()?;
            Ok(match id {
                Output::Stdout => log.stdout(),
                Output::Stderr => log.stderr(),
            })
        };
        let what = format!("read: {payload:?} on {id:?}");
        eventually(&what, self.case.soon(), async || Ok((text()?.len() >= at + payload.len()).then_some(()))).await?;
        let text = text()?;
        let is = text.get(at..at + payload.len()).unwrap_or(&text);
        ensure!(is == payload, "{what}, which is {is:?}");
        self.read[id as usize] += payload.len();
        Ok(())
    }

    async fn connect(&mut self, id: &str) -> Result<()> {
        let log = self.container.logged(self.case.soon(), |log| log.stdout().contains('\n')).await.context("connect: no address")?;
        let said = log.stdout();
        let address = said.lines().next().unwrap_or_default();
        let port = address.strip_prefix("127.0.0.1:").and_then(|port| port.parse().ok());
        let port = port.with_context(|| format!("connect: {address:?} is no address of the loopback"))?;
        let forward = self.pod.port_forward(port).await.with_context(|| format!("connect: {address}"))?;
        self.connections.push((id.to_owned(), forward));
        Ok(())
    }

    fn connection(&mut self, id: &str) -> Result<&mut Forward> {
        let found = self.connections.iter_mut().find(|(name, _)| name == id);
        found.map(|(_, connection)| connection).with_context(|| format!("there is no connection {id:?}"))
    }

    async fn receive(&mut self, id: &str, payload: &str) -> Result<()> {
        let within = self.case.soon();
        let connection = self.connection(id)?;
        let mut bytes = Vec::new();
        while bytes.len() < payload.len() {
            match timeout(within, connection.receive()).await.with_context(|| format!("recv: {payload:?} not within {within:?}"))?? {
                Some(more) => bytes.extend(more),
                None => break,
            }
        }
        ensure!(bytes.starts_with(payload.as_bytes()), "recv: {:?}, not {payload:?}", String::from_utf8_lossy(&bytes));
        Ok(())
    }

    async fn request(&self, request: &Request) -> Result<()> {
        let address = format!("{}:{PORT}", self.pod.ip().await?);
        // The port is open when the component can answer.
        let stream = eventually("the port is open", self.case.within(30), async || match TcpStream::connect(&address).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => {
                let status = self.container.status().await?;
                ensure!(status.finished_at == 0, "nobody listens ({error}), and the container has ended: {}", status.exit_code);
                Ok(None)
            }
        })
        .await?;
        let within = self.case.soon();
        let answered = timeout(within, exchange(stream, &address, request)).await;
        let (status, headers, body) = answered.with_context(|| format!("no answer within {within:?}"))??;
        let expected = &request.response;
        ensure!(status == expected.status, "status {status}, not {}; {body:?}", expected.status);
        for (name, value) in &expected.headers {
            let is: Vec<_> = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
            ensure!(is.join(", ") == *value, "the header {name} is {is:?}, not {value:?}");
        }
        ensure!(body == expected.body, "the body is {body:?}, not {:?}", expected.body);
        Ok(())
    }
}

/// Sends a request and returns the whole answer.
async fn exchange(stream: TcpStream, host: &str, request: &Request) -> Result<(u16, hyper::HeaderMap, String)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let mut message = hyper::Request::builder().method(request.method.as_str()).uri(&request.path).header("host", host);
    for (name, value) in &request.headers {
        message = message.header(name, value);
    }
    let answer = sender.send_request(message.body(Full::<Bytes>::from(request.body.clone()))?).await?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok((head.status.as_u16(), head.headers, String::from_utf8_lossy(&body).into_owned()))
}

impl Streams {
    async fn write(&mut self, payload: &str) -> Result<()> {
        self.answered = false;
        let session = self.session.as_mut().context("write: there is no client")?;
        session.send(payload.as_bytes()).await.context("write")
    }

    async fn read(&mut self, within: Duration, id: Output, payload: &str) -> Result<()> {
        let session = self.session.as_mut().context("read: there is no client")?;
        loop {
            let so_far = match id {
                Output::Stdout => &mut self.stdout,
                Output::Stderr => &mut self.stderr,
            };
            if so_far.len() >= payload.len() {
                let is = so_far.drain(..payload.len()).collect::<Vec<_>>();
                ensure!(is == payload.as_bytes(), "read: {:?} on {id:?}, not {payload:?}", String::from_utf8_lossy(&is));
                self.answered = true;
                return Ok(());
            }
            match timeout(within, session.receive()).await {
                Err(_) if so_far.is_empty() => return Err(Silent(format!("{payload:?} on {id:?}")).into()),
                Err(_) => {
                    bail!("read: {:?} on {id:?}, and then nothing within {within:?}; not {payload:?}", String::from_utf8_lossy(so_far))
                }
                Ok(frame) => match frame.context("read")? {
                    Some(Frame::Stdout(data)) => self.stdout.extend(data),
                    Some(Frame::Stderr(data)) => self.stderr.extend(data),
                    Some(Frame::Exit(_) | Frame::Failed(_)) | None => {
                        bail!("read: {:?} on {id:?}, and then its end; not {payload:?}", String::from_utf8_lossy(so_far))
                    }
                },
            }
        }
    }
}
