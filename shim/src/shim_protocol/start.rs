// SPDX-License-Identifier: Apache-2.0
//! `start`: launches a sandbox process and prints its address. containerd then calls that process
//! directly.

use super::Call;
use super::{bootstrap, sweep};
use crate::launch::{Log, Places, launch};
use crate::stage::Stage;
use magnetar_core::error::Result;
use magnetar_core::ids::{Namespace, SandboxId};
use magnetar_core::record::{PodDir, PodRecord};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Starts a sandbox process; returns the bytes for standard output.
///
/// # Errors
/// Those of [`launch`], and for invalid parameters.
pub fn run(call: &Call, input: &[u8]) -> Result<Vec<u8>> {
    let (namespace, id) = (Namespace::parse(&call.namespace)?, SandboxId::parse(&call.id)?);
    let state_dir = call.state_dir();
    let dir = PodDir::new(&state_dir, &namespace, &id)?;
    let parameters = bootstrap::read(call, input, std::env::var("TTRPC_ADDRESS").unwrap_or_default())?;
    let libexec = (!call.libexec.is_empty()).then(|| Path::new(&call.libexec));
    let program = Places::new(libexec).find(&parameters.config.sandboxer)?;
    let answer = bootstrap::answer(parameters.protocol, &dir.socket())?;
    let record = PodRecord::new(namespace, id, parameters.config);
    // Our working directory is containerd's bundle. The sandbox process writes to the bundle's log.
    let log = shim_log(Path::new("log")).map_or(Log::Nowhere, Log::File);
    // Wait, because containerd's own error would not say why a process ended before it served.
    launch(&dir, &record, &program, log, Stage::Foreign)?.serves().inspect_err(|_| undo(&dir))?;
    sweep::sweep(&state_dir);
    Ok(answer)
}

/// Removes the directory of a process that never served. It has made nothing else.
fn undo(dir: &PodDir) {
    // A failure cannot be printed: standard output and error already have the reason why the
    // process does not serve.
    let _left_to_delete = dir.remove();
}

/// Opens the FIFO from which containerd copies to its own log.
///
/// It is opened for reading as well, so that it has a reader while containerd restarts. It is
/// non-blocking, so messages that do not fit are lost instead of blocking the process.
fn shim_log(path: &Path) -> Option<File> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags.bits() as i32).open(path).ok()?;
    file.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo()).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_not_a_fifo_is_ignored() {
        let temporary = tempfile::tempdir().unwrap();
        let fifo = temporary.path().join("log");
        assert!(shim_log(&fifo).is_none());
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        assert!(shim_log(&fifo).is_some());
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        assert!(shim_log(&link).is_none());
        let file = temporary.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(shim_log(&file).is_none());
    }
}
