// SPDX-License-Identifier: Apache-2.0
//! The short-lived front: containerd executes a shim to start a sandbox and to clean up after one.
//!
//! ```text
//!   start   parameters on stdin ──> launch ──> address on stdout         (sandboxer = "shim", containerd 2.3)
//!   delete  after a lost connection: removes a pod, or a container of one  (both fronts)
//!   -info   what the OCI runtime can do; -v the version
//! ```
//!
//! containerd reads `start`'s standard output and standard error as one stream, so `start` logs
//! nothing.

mod bootstrap;
mod delete;
mod info;
mod start;
mod sweep;

use crate::options::{self, CONFIG_DIR};
use magnetar_core::config::HandlerConfig;
use magnetar_core::error::{Context, Result};
use magnetar_core::record::DEFAULT_STATE_DIR;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

/// The largest input in bytes, as in containerd's own shims.
const MAX_INPUT: u64 = 10 << 20;

/// What containerd asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// The version, for people.
    #[default]
    Version,
    /// The features of this runtime.
    Info,
    /// Start a sandbox process.
    Start,
    /// Remove what a lost sandbox process left behind.
    Delete,
}

/// One call of containerd. A field is empty if its flag was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// What containerd asks for.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The sandbox, or for `delete` a container.
    pub id: String,
    /// The bundle. If not given, it is the working directory.
    pub bundle: String,
    /// containerd's gRPC socket.
    pub grpc_address: String,
    /// Whether containerd logs debug messages.
    pub debug: bool,
    /// The directory of pods' records. containerd does not pass this flag.
    pub state_dir: String,
    /// The directory of handlers' options. containerd does not pass this flag.
    pub config_dir: String,
    /// One more folder in which sandboxers are searched. containerd does not pass this flag.
    pub libexec: String,
}

impl Call {
    fn state_dir(&self) -> PathBuf {
        PathBuf::from(if self.state_dir.is_empty() { DEFAULT_STATE_DIR } else { &self.state_dir })
    }

    /// The options of a handler without an options table. Its kind is in the name under which
    /// containerd executes us.
    fn named_options(&self) -> Result<HandlerConfig> {
        let folder = if self.config_dir.is_empty() { CONFIG_DIR } else { &self.config_dir };
        let program = std::env::args().next().unwrap_or_default();
        options::of_kind(Path::new(folder), options::kind_of_runtime(&program).as_deref())
    }
}

/// Does what containerd asks for.
///
/// # Errors
/// Messages that containerd shows to the client that asked for the pod.
pub fn run(call: Call) -> Result<()> {
    match call.action {
        Action::Version => write(format!("containerd-shim-magnetar-v2:\n  Version:  {}\n", env!("CARGO_PKG_VERSION")).as_bytes()),
        Action::Info => write(&info::run(&call, &input()?)?),
        Action::Start => write(&start::run(&call, &input()?)?),
        Action::Delete => write(&delete::run(&call)?),
    }
}

/// Reads standard input, unless it is a terminal.
fn input() -> Result<Vec<u8>> {
    let mut input = Vec::new();
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        stdin.lock().take(MAX_INPUT).read_to_end(&mut input).context(|| "cannot read standard input".into())?;
    }
    Ok(input)
}

fn write(output: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(output).and_then(|()| stdout.flush()).context(|| "cannot write to standard output".into())
}
