// SPDX-License-Identifier: Apache-2.0
//! Runs the OCI hooks of a container in a virtual machine, for which no OCI runtime on this host
//! does it.
//!
//! Each hook is a program that gets the container's state as JSON on its standard input. It runs in
//! the host's namespaces: clients use hooks to give a container a network, and need both the host's
//! network and the container's for that (runtime-spec, config.md, "POSIX-platform Hooks").

use crate::error::{Code, Context, Error, Result};
use crate::reaper::{Exit, Reaper};
use nix::sched::{CloneFlags, setns};
use rustix::fs::MemfdFlags;
use serde::Deserialize;
use serde_json::Value;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How many bytes of a failed hook's output are put into the error.
const OUTPUT: usize = 1024;

/// The hooks of one container, by the moment at which they run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hooks {
    /// When the namespaces exist; deprecated, and still used.
    pub prestart: Vec<Hook>,
    /// When the namespaces exist.
    pub create_runtime: Vec<Hook>,
    /// The same, in the container's mount namespace.
    pub create_container: Vec<Hook>,
    /// Before the program runs, in the container.
    pub start_container: Vec<Hook>,
    /// When the program runs.
    pub poststart: Vec<Hook>,
    /// When the container was removed.
    pub poststop: Vec<Hook>,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Hook {
    /// The program: an absolute path.
    pub path: PathBuf,
    /// Its arguments, the first of which is its name.
    #[serde(default)]
    pub args: Vec<String>,
    /// All of its environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// How many seconds it may take; unlimited if `None`.
    #[serde(default)]
    pub timeout: Option<u64>,
}

/// Runs hooks one after another in the network namespace `network`, and gives each the `state`.
///
/// # Errors
/// The first hook that cannot be run, fails or takes too long, with its output. Later hooks are not
/// run.
pub async fn run(hooks: &[Hook], state: &Value, network: &OwnedFd, reaper: &Reaper) -> Result<()> {
    for hook in hooks {
        hook.run(state, network, reaper).await.map_err(|e| Error::new(e.code(), format!("the hook {}: {e}", hook.path.display())))?;
    }
    Ok(())
}

impl Hook {
    async fn run(&self, state: &Value, network: &OwnedFd, reaper: &Reaper) -> Result<()> {
        if !self.path.is_absolute() {
            return Err(Error::invalid("its path is not absolute"));
        }
        let (input, output) = (memory_file()?, memory_file()?);
        (&input).write_all(state.to_string().as_bytes()).and_then(|()| (&input).rewind()).context(|| "cannot write its input".into())?;
        let mut command = Command::new(&self.path);
        if let Some((name, arguments)) = self.args.split_first() {
            command.arg0(name).args(arguments);
        }
        command.env_clear().envs(self.env.iter().filter_map(|variable| variable.split_once('='))).current_dir("/");
        let share = |file: &File| file.try_clone().context(|| "cannot share a file with it".into());
        command.stdin(input).stdout(share(&output)?).stderr(share(&output)?);
        let pid = spawn_in(command, network)?;
        let ended = reaper.watch(pid);
        let exit = match self.timeout {
            None => ended.await,
            Some(seconds) => match tokio::time::timeout(Duration::from_secs(seconds), ended).await {
                Ok(exit) => exit,
                Err(_) => {
                    let _ended_meanwhile = reaper.signal(pid, libc::SIGKILL as u32);
                    return Err(Error::new(Code::DeadlineExceeded, format!("it has not ended within {seconds} s")));
                }
            },
        };
        match exit {
            Ok(Exit { code: 0, .. }) => Ok(()),
            Ok(Exit { code, .. }) => Err(Error::internal(format!("it ended with code {code}: {}", tail(&output)))),
            Err(_) => Err(Error::internal("its exit status was lost")),
        }
    }
}

/// Runs a command in another network namespace. Returns its process id.
fn spawn_in(mut command: Command, network: &OwnedFd) -> Result<u32> {
    let network = network.as_fd();
    // A network namespace belongs to a thread, so a new thread enters it and this one stays in its
    // own.
    let spawned = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, move || {
            setns(network, CloneFlags::CLONE_NEWNET).context(|| "cannot enter the host's network namespace".into())?;
            command.spawn().map(|child| child.id()).context(|| "it cannot be run".into())
        });
        thread.context(|| "there is no thread to run it from".into())?.join().map_err(|_| Error::internal("it cannot be run"))
    });
    spawned?
}

fn memory_file() -> Result<File> {
    rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC).map(File::from).context(|| "cannot make a file in memory".into())
}

/// The end of a hook's output, as one line.
fn tail(output: &File) -> String {
    let length = output.metadata().map_or(0, |metadata| metadata.len());
    let mut text = vec![0; OUTPUT];
    let read = output.read_at(&mut text, length.saturating_sub(OUTPUT as u64)).unwrap_or_default();
    String::from_utf8_lossy(&text[..read]).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_specification_names_its_hooks() {
        let hooks: Hooks = serde_json::from_value(json!({
            "createRuntime": [{ "path": "/bin/net", "args": ["net", "up"], "timeout": 5 }],
            "poststop": [{ "path": "/bin/net" }],
        }))
        .unwrap();
        assert_eq!((hooks.create_runtime.len(), hooks.poststop.len(), hooks.prestart.len()), (1, 1, 0));
        assert_eq!(hooks.create_runtime[0].timeout, Some(5));
    }
}
