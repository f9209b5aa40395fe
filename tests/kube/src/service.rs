// SPDX-License-Identifier: Apache-2.0
//! What the node's init runs, to be killed by tests: init starts it again after 0.2 s.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::Kubectl;

/// A service that pods must not need to live on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The kubelet.
    Kubelet,
    /// containerd.
    Containerd,
    /// Our resident front.
    Magnetar,
}

impl Service {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Kubelet, Self::Containerd, Self::Magnetar];

    /// Kills it without warning, and waits until init has started it again.
    ///
    /// # Errors
    /// It does not run, or is not started again.
    pub fn kill(self, kubectl: Kubectl) -> Result<()> {
        let old = self.pid()?;
        let killed = Command::new("kill").args(["-KILL", &old]).status().context("kill")?;
        ensure!(killed.success(), "process {old}, {self:?}, cannot be killed");
        let end = Instant::now() + kubectl.within(20);
        while self.pid()? == old {
            ensure!(Instant::now() < end, "{self:?} was killed and is not started again");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn pid(self) -> Result<String> {
        let name = match self {
            Self::Kubelet => "kubelet",
            Self::Containerd => "containerd",
            Self::Magnetar => "magnetar",
        };
        let file = format!("/run/node/{name}.pid");
        Ok(fs::read_to_string(&file).context(file)?.trim().to_owned())
    }
}
