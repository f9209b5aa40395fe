// SPDX-License-Identifier: Apache-2.0
//! Exec, attach and port-forward streams: the streaming server's WebSocket protocol.
//!
//! Every binary message starts with a byte that names its channel. For exec and attach: 0 stdin, 1
//! stdout, 2 stderr, 3 the result as a JSON status, 4 the terminal's size. For one forwarded port:
//! 0 data, 1 errors, each opened by the server with the port's number in two bytes. The protocol
//! (`v4.channel.k8s.io`) has no message for the end of stdin; only closing the connection ends it.
//! So a test of a command that reads to the end has to find the command's output elsewhere (the
//! log, a file).

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::{Error, Result};

const PROTOCOL: &str = "v4.channel.k8s.io";

type Socket = WebSocketStream<TcpStream>;

/// One message of an exec or attach session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Standard output, or what the terminal shows.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
    /// The command has ended with this exit code.
    Exit(i32),
    /// The server failed, with this message.
    Failed(String),
}

/// The output of a whole session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionOutput {
    /// Standard output, or what the terminal showed.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The exit code; none when the stream ended without one.
    pub code: Option<i32>,
}

/// Streams of a command (exec) or of a container's own process (attach).
#[derive(Debug)]
pub struct Session {
    socket: Socket,
}

impl Session {
    /// Connects to a URL that Exec or Attach returned.
    pub async fn open(url: &str) -> Result<Self> {
        Ok(Self { socket: connect(url).await? })
    }

    /// Writes to stdin.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        send(&mut self.socket, 0, bytes).await
    }

    /// Sets the terminal's size.
    pub async fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let size = serde_json::json!({ "Width": columns, "Height": rows }).to_string();
        send(&mut self.socket, 4, size.as_bytes()).await
    }

    /// The next message; none when the server has closed the stream.
    pub async fn receive(&mut self) -> Result<Option<Frame>> {
        while let Some((channel, data)) = receive(&mut self.socket).await? {
            match channel {
                // The server opens channels with empty messages.
                _ if data.is_empty() => {}
                1 => return Ok(Some(Frame::Stdout(data))),
                2 => return Ok(Some(Frame::Stderr(data))),
                3 => return result(&data).map(Some),
                other => return Err(Error::Stream(format!("message on channel {other}"))),
            }
        }
        Ok(None)
    }

    /// Reads stdout until it contains `text`; returns everything read.
    pub async fn receive_until(&mut self, text: &str) -> Result<String> {
        let mut seen = Vec::new();
        loop {
            let so_far = String::from_utf8_lossy(&seen).into_owned();
            if so_far.contains(text) {
                return Ok(so_far);
            }
            match self.receive().await? {
                Some(Frame::Stdout(data)) => seen.extend(data),
                Some(Frame::Stderr(_)) => {}
                Some(Frame::Exit(_) | Frame::Failed(_)) | None => {
                    return Err(Error::Stream(format!("ended after {so_far:?}")));
                }
            }
        }
    }

    /// Reads until the end.
    pub async fn finish(mut self) -> Result<SessionOutput> {
        let mut output = SessionOutput::default();
        while let Some(frame) = self.receive().await? {
            match frame {
                Frame::Stdout(data) => output.stdout.extend(data),
                Frame::Stderr(data) => output.stderr.extend(data),
                Frame::Exit(code) => output.code = Some(code),
                Frame::Failed(message) => return Err(Error::Stream(message)),
            }
        }
        Ok(output)
    }

    /// Closes the connection, which is the end of stdin.
    pub async fn close(mut self) -> Result<()> {
        close(&mut self.socket).await
    }
}

/// One forwarded port.
#[derive(Debug)]
pub struct Forward {
    socket: Socket,
    opened: [bool; 2],
}

impl Forward {
    /// Connects to a URL that PortForward returned.
    pub async fn open(url: &str, port: u16) -> Result<Self> {
        let socket = connect(&format!("{url}?port={port}")).await?;
        Ok(Self { socket, opened: [false; 2] })
    }

    /// Writes to the port.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        send(&mut self.socket, 0, bytes).await
    }

    /// Reads the next data from the port; none at the end. An error of the server, for example that
    /// nothing listens on the port, is an error here.
    pub async fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        while let Some((channel, data)) = receive(&mut self.socket).await? {
            match (channel, self.opened) {
                (0, [false, errors]) => self.opened = [true, errors],
                (1, [data, false]) => self.opened = [data, true],
                (0, [true, _]) if data.is_empty() => {}
                (0, [true, _]) => return Ok(Some(data)),
                (1, [_, true]) if data.is_empty() => {}
                (1, [_, true]) => {
                    return Err(Error::Stream(String::from_utf8_lossy(&data).into_owned()));
                }
                (other, _) => return Err(Error::Stream(format!("message on channel {other}"))),
            }
        }
        Ok(None)
    }

    /// Reads from the port until what was read contains `text`; returns everything read.
    pub async fn receive_until(&mut self, text: &str) -> Result<String> {
        let mut seen = Vec::new();
        loop {
            let so_far = String::from_utf8_lossy(&seen).into_owned();
            if so_far.contains(text) {
                return Ok(so_far);
            }
            match self.receive().await? {
                Some(data) => seen.extend(data),
                None => return Err(Error::Stream(format!("ended after {so_far:?}"))),
            }
        }
    }

    /// Closes the connection.
    pub async fn close(mut self) -> Result<()> {
        close(&mut self.socket).await
    }
}

async fn connect(url: &str) -> Result<Socket> {
    let address = url.strip_prefix("http://").ok_or_else(|| Error::Stream(format!("not an http address: {url}")))?;
    let mut request = format!("ws://{address}").into_client_request().map_err(Box::new)?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(PROTOCOL));
    let host = address.split('/').next().unwrap_or_default();
    let tcp = TcpStream::connect(host).await.map_err(|e| Error::Stream(format!("cannot connect to {host}: {e}")))?;
    let (socket, _) = tokio_tungstenite::client_async(request, tcp).await.map_err(Box::new)?;
    Ok(socket)
}

async fn send(socket: &mut Socket, channel: u8, bytes: &[u8]) -> Result<()> {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    Ok(socket.send(Message::Binary(message.into())).await.map_err(Box::new)?)
}

/// The next message with its channel. A connection that is closed without a close message is the
/// end as well: the server sends none when it has no more data.
async fn receive(socket: &mut Socket) -> Result<Option<(u8, Vec<u8>)>> {
    use tungstenite::error::{Error as WsError, ProtocolError};
    loop {
        let bytes = match socket.next().await {
            None => return Ok(None),
            Some(Ok(Message::Binary(bytes))) => bytes.to_vec(),
            Some(Ok(Message::Text(text))) => text.as_bytes().to_vec(),
            Some(Ok(Message::Close(_))) => return Ok(None),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Err(WsError::ConnectionClosed | WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => return Ok(None),
            Some(Err(error)) => return Err(Box::new(error).into()),
        };
        if let Some((&channel, data)) = bytes.split_first() {
            return Ok(Some((channel, data.to_vec())));
        }
    }
}

async fn close(socket: &mut Socket) -> Result<()> {
    match socket.close(None).await {
        Ok(()) | Err(tungstenite::Error::ConnectionClosed) => Ok(()),
        Err(error) => Err(Box::new(error).into()),
    }
}

/// The part of a Kubernetes status object that says how a command ended.
#[derive(serde::Deserialize)]
struct Status {
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Default, serde::Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(serde::Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

fn result(data: &[u8]) -> Result<Frame> {
    let status: Status = serde_json::from_slice(data).map_err(|e| Error::Stream(format!("{e} in {:?}", String::from_utf8_lossy(data))))?;
    if status.status == "Success" {
        return Ok(Frame::Exit(0));
    }
    let code = status.details.unwrap_or_default().causes.iter().find(|c| c.reason == "ExitCode").and_then(|c| c.message.parse().ok());
    Ok(code.map_or(Frame::Failed(status.message), Frame::Exit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: &str, expected: Frame) {
        assert_eq!(result(status.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn results_become_exit_codes() {
        check(r#"{"metadata":{},"status":"Success"}"#, Frame::Exit(0));
        check(
            r#"{"metadata":{},"status":"Failure","message":"m","reason":"NonZeroExitCode",
                "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#,
            Frame::Exit(7),
        );
        check(r#"{"status":"Failure","message":"no"}"#, Frame::Failed("no".to_owned()));
    }
}
