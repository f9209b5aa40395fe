// SPDX-License-Identifier: Apache-2.0
//! The socket that containerd connects to. One process owns it, only root can connect, and a socket
//! left by a dead process does not prevent a restart.

use magnetar_core::error::{Code, Context, Error, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

/// Owns the socket's path: no other process can listen there while this lives.
#[derive(Debug)]
pub struct Owned {
    path: PathBuf,
    _lock: OwnedFd,
}

/// Makes a folder that others may pass through but not list. One that exists is left as it is.
///
/// # Errors
/// The kernel's error.
pub fn folder(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path);
    made.context(|| format!("cannot make {}", path.display()))
}

/// Listens on `path`. Replaces a socket that a dead process left there.
///
/// # Errors
/// `FailedPrecondition` if another process listens there, or if `path` is not a socket.
pub fn listen(path: &Path) -> Result<(UnixListener, Owned)> {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    let lock_path = Path::new(&lock);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::open(lock_path, flags, Mode::RUSR | Mode::WUSR).context(|| format!("cannot open {}", lock_path.display()))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(Error::precondition(format!(
                "another serve listens on {}: stop it first, or choose another --listen",
                path.display()
            )));
        }
        Err(e) => return Err(e).context(|| format!("cannot lock {}", lock_path.display())),
    }
    match path.symlink_metadata() {
        Ok(metadata) if metadata.file_type().is_socket() => {
            std::fs::remove_file(path).context(|| format!("cannot replace the stale socket {}", path.display()))?;
        }
        Ok(_) => return Err(Error::new(Code::FailedPrecondition, format!("{} exists and is not a socket", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).context(|| format!("cannot look at {}", path.display())),
    }
    // By umask, so that the mode is right from the first moment on. The process has one thread, so
    // no other file is made meanwhile.
    let before = rustix::process::umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.context(|| format!("cannot listen on {}", path.display()))?;
    listener.set_nonblocking(true).context(|| "cannot use the socket".into())?;
    Ok((listener, Owned { path: path.into(), _lock: lock }))
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Still locked, so the socket is ours. If it cannot be removed, the next serve replaces it.
        let _stays = std::fs::remove_file(&self.path);
    }
}

/// Tells the service manager, if there is one, that `serve` is ready and containerd may start.
///
/// # Errors
/// When the service manager cannot be reached.
pub fn notify_ready() -> Result<()> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(Path::new(&address)),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    sent.map(drop).context(|| "cannot tell the service manager that serve is ready".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_second_listener_is_refused_until_the_first_is_dropped() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("serve.sock");
        let (listener, owned) = listen(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let refused = listen(&path).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(UnixStream::connect(&path).is_ok(), "the refused one must not have replaced it");
        drop((listener, owned));
        assert!(!path.exists());
        listen(&path).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("serve.sock");
        drop(UnixListener::bind(&path).unwrap());
        // A child that another test has just forked may still have a copy of the listener.
        while UnixStream::connect(&path).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let (_listener, _owned) = listen(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        let file = temporary.path().join("precious");
        std::fs::write(&file, "data").unwrap();
        assert!(listen(&file).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
    }
}
