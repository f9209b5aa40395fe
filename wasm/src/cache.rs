// SPDX-License-Identifier: Apache-2.0
//! The cache of compiled code, by the digest of the module.
//!
//! ```text
//!   host       find ──a hit──> the open file goes into the container, and is mapped
//!              offer ─a miss─> keeper: a copy of this process that waits at a pipe
//!   container  compile ──> Offer::deliver: the code into a sealed memory file, a byte into the pipe, both closed; then the module runs
//!   host       keeper: only if it is sealed ──> store
//! ```
//!
//! Each tenant has a cache of its own. A module is compiled in its tenant's container, and a module
//! that takes over the compiler could deliver any code. That code reaches only containers of the
//! same namespace.
//!
//! The process that compiles is in the container, within its limits. No other process of the
//! container can trace it or open its files (`program.rs`). It delivers the code before the module
//! runs, compiled from exactly the bytes that have the digest, and the code cannot be changed
//! afterwards. Only root can write to the cache's folder; containers get a file of it through a
//! read-only mount. Each file's own digest is checked before the file is used, so damaged code is
//! compiled again.

mod folder;

use folder::Folder;
use magnetar_core::error::{Context, Error, Result};
use rustix::fs::{MemfdFlags, SealFlags};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The folder of the cache.
pub const ROOT: &str = "/var/lib/magnetar/wasm";

/// The limit of the cache in bytes, for all engines together. The code that was used longest ago is
/// removed first.
const LIMIT: u64 = 1 << 30;

/// The seals of code that cannot be changed any more.
const SEALED: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK);

/// The digest of a module.
type Digest = [u8; 32];

/// Compiled code of one engine.
#[derive(Debug)]
pub struct Cache {
    folder: Folder,
}

/// A place for the code of a module that was not found.
#[derive(Debug)]
pub struct Offer {
    digest: Digest,
    code: File,
    done: File,
}

/// The result of a look-up.
#[derive(Debug)]
pub enum Found {
    /// The module's code.
    Code(File),
    /// There is no code yet.
    Missing(Offer),
}

impl Found {
    /// Makes the code's file read-only for the container, which gets it.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn protected(self) -> Result<Self> {
        match self {
            Self::Code(code) => {
                magnetar_sys::sealed::reopen(&code).map(Self::Code).context(|| "cannot mount compiled code read-only".into())
            }
            Self::Missing(offer) => Ok(Self::Missing(offer)),
        }
    }

    /// Its open descriptors.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Code(code) => vec![code.as_fd()],
            Self::Missing(Offer { code, done, .. }) => vec![code.as_fd(), done.as_fd()],
        }
    }
}

impl Cache {
    /// The cache of engines that are `compatible`, a name for everything on which their code
    /// depends, for the containers of `tenant`.
    ///
    /// # Errors
    /// When others than root could write to the folder, or it cannot be made.
    pub fn open(root: &Path, compatible: &str, tenant: &str) -> Result<Self> {
        // A tenant's name may have any form; a part of its digest does as a folder's name.
        let tenant: String = Sha256::digest(tenant).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { folder: Folder::open(root, &format!("{compatible}-{tenant}"))? })
    }

    /// Looks for the code of a module, which must be read from its beginning. The process must have
    /// one thread.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn look(self, mut module: impl Read) -> Result<Found> {
        let digest = digest(&mut module)?;
        match self.folder.find(&digest)? {
            Some(code) => Ok(Found::Code(code)),
            None => self.offer(digest).map(Found::Missing),
        }
    }

    fn offer(self, digest: Digest) -> Result<Offer> {
        let what = || "cannot offer to keep compiled code".to_string();
        let code = rustix::fs::memfd_create("compiled", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).context(what)?;
        let (waits, done) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(what)?;
        // The copy is in the pod's cgroup, ends when the pipe does, and is reaped by the sandbox
        // process.
        magnetar_sys::fork::spawn(|| {
            magnetar_sys::fork::keep_only(&[code.as_fd(), waits.as_fd(), self.folder.as_fd()]);
            keep(&self.folder, &digest, &code, &waits)
        })
        .context(what)?;
        Ok(Offer { digest, code: code.into(), done: done.into() })
    }
}

impl Offer {
    /// Delivers the code of `module`. It cannot be changed afterwards.
    ///
    /// # Errors
    /// `FailedPrecondition` if the module is not the one that was looked up. Its file may be in a
    /// volume to which others write; the code would then be kept under another module's digest.
    /// Otherwise the kernel's error, when memory is short.
    pub fn deliver(mut self, mut module: &[u8], code: &[u8]) -> Result<()> {
        let what = || "cannot hand compiled code over".to_string();
        if digest(&mut module)? != self.digest {
            return Err(Error::precondition("the module was changed while its container was made"));
        }
        self.code.write_all(code).context(what)?;
        rustix::fs::fcntl_add_seals(&self.code, SEALED).context(what)?;
        self.done.write_all(b".").context(what)
    }
}

/// Waits for code and stores it. Returns the keeper's exit code; its standard error is the sandbox
/// process's.
fn keep(folder: &Folder, digest: &Digest, code: &OwnedFd, waits: &OwnedFd) -> i32 {
    let delivered = rustix::io::read(waits, &mut [0; 1]).is_ok_and(|length| length == 1);
    // Without the byte, the compilation was not finished.
    if !delivered {
        return 0;
    }
    let stored = sealed(code).and_then(|mut code| folder.store(digest, &mut code)).and_then(|()| folder.prune(LIMIT));
    match stored {
        Ok(()) => 0,
        Err(error) => {
            let _unheard = writeln!(std::io::stderr(), "compiled code is not kept: {error}");
            1
        }
    }
}

fn sealed(code: &OwnedFd) -> Result<File> {
    let seals = rustix::fs::fcntl_get_seals(code).context(|| "cannot look at compiled code".into())?;
    if !seals.contains(SEALED) {
        return Err(Error::precondition("compiled code is not sealed, so it could still be changed"));
    }
    let mut file = File::from(code.try_clone().context(|| "cannot read compiled code".into())?);
    file.rewind().context(|| "cannot read compiled code".into())?;
    Ok(file)
}

fn digest(reader: &mut impl Read) -> Result<Digest> {
    let mut hash = Sha256::new();
    std::io::copy(reader, &mut hash).context(|| "cannot read a module".into())?;
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_is_not_sealed_is_not_stored() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(&root.path().join("cache"), "engine-1").unwrap();
        let (waits, done) = rustix::pipe::pipe().unwrap();
        let code = rustix::fs::memfd_create("code", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::io::write(&code, b"code").unwrap();
        rustix::io::write(&done, b".").unwrap();
        assert_eq!(keep(&folder, &[1; 32], &code, &waits), 1);
        assert!(folder.find(&[1; 32]).unwrap().is_none());

        let module = digest(&mut &b"module"[..]).unwrap();
        let offer = || Offer { digest: module, code: code.try_clone().unwrap().into(), done: done.try_clone().unwrap().into() };
        assert!(offer().deliver(b"another module", b"").is_err());
        offer().deliver(b"module", b"").unwrap();
        assert_eq!(keep(&folder, &module, &code, &waits), 0);
        assert!(folder.find(&module).unwrap().is_some());
        assert!(rustix::io::write(&code, b"other").is_err());
    }

    #[test]
    fn code_that_was_not_delivered_is_not_stored() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(&root.path().join("cache"), "engine-1").unwrap();
        let (waits, done) = rustix::pipe::pipe().unwrap();
        drop(done);
        let code = rustix::fs::memfd_create("code", MemfdFlags::ALLOW_SEALING).unwrap();
        assert_eq!(keep(&folder, &[1; 32], &code, &waits), 0);
        assert!(folder.find(&[1; 32]).unwrap().is_none());
    }
}
