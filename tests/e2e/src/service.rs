// SPDX-License-Identifier: Apache-2.0
//! The node's resident services, to be killed by tests. The node's init starts a service again
//! 0.2 s after it ends; where a test wants it down for longer, its supervisor is stopped.

use std::{fs, os::unix::net::UnixStream};

use anyhow::{Context, Result, ensure};
use magnetar_cri::Code;
use magnetar_observe::Processes;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Case, eventually};

/// A service that the node's init supervises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// containerd.
    Containerd,
    /// Our resident front.
    Magnetar,
}

/// A service that stays down until it is let go.
#[derive(Debug)]
pub struct Held {
    service: Service,
    supervisor: i32,
    killed: i32,
}

impl Service {
    /// Its process id.
    pub fn pid(self) -> Result<i32> {
        let file = format!("/run/node/{}.pid", self.name());
        let text = fs::read_to_string(&file).context(file)?;
        Ok(text.trim().parse()?)
    }

    /// Kills it without warning and waits until it runs again and answers.
    pub async fn restart(self, case: &Case) -> Result<()> {
        let old = self.pid()?;
        signal(old, Signal::SIGKILL)?;
        self.back(case, old).await
    }

    /// Kills it without warning and keeps it down.
    pub fn hold(self) -> Result<Held> {
        let killed = self.pid()?;
        let supervisor = Processes::now()?.find(killed).context("the service does not run")?.parent;
        ensure!(supervisor > 1, "the service has no supervisor of its own");
        signal(supervisor, Signal::SIGSTOP)?;
        let held = Held { service: self, supervisor, killed };
        signal(killed, Signal::SIGKILL)?;
        Ok(held)
    }

    async fn back(self, case: &Case, old: i32) -> Result<()> {
        let what = format!("{} runs again", self.name());
        eventually(&what, case.soon(), async || Ok((self.pid()? != old).then_some(()))).await?;
        let what = format!("{} answers again", self.name());
        eventually(&what, case.within(60), async || self.answers(case).await).await
    }

    async fn answers(self, case: &Case) -> Result<Option<()>> {
        match self {
            Self::Containerd => {
                let Ok(status) = case.node().status().await else { return Ok(None) };
                let conditions = status.status.map(|s| s.conditions).unwrap_or_default();
                // Others are warnings: of what is deprecated in its configuration, say.
                Ok(conditions.iter().filter(|c| c.r#type.ends_with("Ready")).all(|c| c.status).then_some(()))
            }
            Self::Magnetar => {
                if UnixStream::connect("/run/magnetar/serve.sock").is_err() {
                    return Ok(None);
                }
                // containerd tries a connection that failed again only after a while. A pod's
                // status goes through it; without pods there is nobody to notice.
                for id in case.node().leftovers() {
                    if case.node().pod_state(&id).await.is_err_and(|error| error.code() == Some(Code::Unavailable)) {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Magnetar => "magnetar",
        }
    }
}

impl Held {
    /// Lets it start again, and waits until it answers.
    pub async fn release(self, case: &Case) -> Result<()> {
        let (service, killed) = (self.service, self.killed);
        drop(self);
        service.back(case, killed).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Also when a test fails: the node must get its service back.
        if let Err(error) = signal(self.supervisor, Signal::SIGCONT) {
            eprintln!("the node does not get its service back: {error:#}");
        }
    }
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to process {pid}"))
}
