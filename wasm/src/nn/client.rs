// SPDX-License-Identifier: Apache-2.0
//! Asks the pod's process for models, and hears from it how far a model is loaded, and when the
//! engine of one has died.

use super::channel::{self, ReceiveError, Reply, Request};
use super::metadata::LoadOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The container's end of the channel.
#[derive(Debug)]
pub struct Client {
    socket: Arc<OwnedFd>,
    replies: Receiver<(Reply, Vec<OwnedFd>)>,
}

/// The stack of the thread that listens, in bytes.
const STACK: usize = 64 << 10;

impl Client {
    /// Listens to the pod's process in a thread. `say` gets lines for the container's log. `died`
    /// gets the reason when the engine of a model has died, and ends this process.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(socket: OwnedFd, say: impl Fn(&str) + Send + 'static, died: impl Fn(&str) + Send + 'static) -> io::Result<Self> {
        let socket = Arc::new(socket);
        let (received, replies) = sync_channel(1);
        let ours = socket.clone();
        std::thread::Builder::new().name("models".into()).stack_size(STACK).spawn(move || listen(&ours, &received, say, died))?;
        Ok(Self { socket, replies })
    }

    /// Loads a model, and waits until it is loaded.
    ///
    /// # Errors
    /// Why it could not be loaded.
    pub fn load(&self, model: usize, options: LoadOptions) -> Result<(), String> {
        match self.ask(&Request::Load { model, options })? {
            (Reply::Loaded, _) => Ok(()),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Connects to the engine of a loaded model.
    ///
    /// # Errors
    /// Why it could not be connected to.
    pub fn connect(&self, model: usize) -> Result<UnixStream, String> {
        let (reply, connection) = self.ask(&Request::Connect { model })?;
        match (reply, connection.into_iter().next()) {
            (Reply::Connected, Some(connection)) => Ok(connection.into()),
            (other, _) => Err(unexpected(other)),
        }
    }

    fn ask(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), String> {
        channel::send(&*self.socket, request, &[]).map_err(|error| format!("the pod's process cannot be asked: {error}"))?;
        self.replies.recv().map_err(|_| "the pod's process does not answer any more".into())
    }
}

fn unexpected(reply: Reply) -> String {
    match reply {
        Reply::Failed(why) => why,
        other => format!("the pod's process has answered {other:?}"),
    }
}

fn listen(socket: &impl AsFd, received: &SyncSender<(Reply, Vec<OwnedFd>)>, say: impl Fn(&str), died: impl Fn(&str)) {
    loop {
        match channel::receive(socket) {
            Ok((Reply::Loading(line), _)) => say(&line),
            Ok((Reply::Died(why), _)) => died(&why),
            // Nobody waits for it if the asker is gone.
            Ok(reply) => drop(received.send(reply)),
            // The socket waits for messages, so it can only be closed.
            Err(ReceiveError::None | ReceiveError::Gone | ReceiveError::Invalid) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::packet;
    use std::sync::mpsc;

    #[test]
    fn answers_go_to_the_asker_and_a_death_to_whoever_ends_the_process() {
        let (container, pod) = packet::pair().unwrap();
        for fd in [&container, &pod] {
            rustix::io::ioctl_fionbio(fd, false).unwrap();
        }
        let (tell, told) = mpsc::channel();
        let client = Client::start(container, |_| {}, move |why| tell.send(why.to_owned()).unwrap()).unwrap();
        let (end, _other) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let asked = channel::receive::<Request>(&pod).unwrap().0;
            assert_eq!(asked, Request::Connect { model: 2 });
            channel::send(&pod, &Reply::Loading("the model is loading".into()), &[]).unwrap();
            channel::send(&pod, &Reply::Died("it was ended by signal 9".into()), &[]).unwrap();
            channel::send(&pod, &Reply::Connected, &[end.as_fd()]).unwrap();
            channel::receive::<Request>(&pod).unwrap();
            channel::send(&pod, &Reply::Failed("no such file".into()), &[]).unwrap();
        });
        client.connect(2).unwrap();
        assert_eq!(told.recv().unwrap(), "it was ended by signal 9");
        assert_eq!(client.load(0, LoadOptions::default()).unwrap_err(), "no such file");
        server.join().unwrap();
        // It notices when it sends or when it waits.
        assert!(client.connect(0).unwrap_err().starts_with("the pod's process "));
    }
}
