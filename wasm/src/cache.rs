// SPDX-License-Identifier: Apache-2.0
//! The cache of compiled code, by the digest of the module.
//!
//! ```text
//!   host       look ──a hit──> the open file goes into the container, and is mapped
//!                   └a miss─> keeper: a copy of this process, which compiles (`compiler.rs`), and stores the code
//!   container  Compiling::wait <── the code, or why there is none, from the keeper; then the module runs
//! ```
//!
//! Each tenant has a cache of its own. A module is compiled while its container is made, by a
//! process that the container cannot reach. The keeper reads the module once, takes the digest of
//! exactly these bytes, and stores what the compiler delivered as code of that digest. So a module
//! that takes over the compiler can change no other module's code.
//!
//! Only root can enter the cache's folder; containers get a file of it through a read-only mount.
//! Each file's own digest is checked before the file is used, so damaged code is compiled again.

mod folder;

use crate::engine::{Effort, Failure};
pub use folder::Folder;
use magnetar_core::error::{Context, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Seek as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// The folder of the cache.
pub const ROOT: &str = "/var/lib/magnetar/wasm";

/// The limit of the cache in bytes, for all engines together. The code that was used longest ago is
/// removed first.
const LIMIT: u64 = 1 << 30;

/// The longest answer of a keeper, in bytes.
const ANSWER: usize = 8192;

/// The first byte of a keeper's answer.
const CODE: u8 = b'c';
const DRAFT: u8 = b'd';
const REFUSED: u8 = b'r';
const FAILED: u8 = b'f';

/// The size in bytes from which on a module is worth two compilations: a smaller one takes less
/// than 0.2 s.
const LARGE: usize = 256 << 10;

/// How long a compilation waits for another one of the same module, which may have fewer
/// processors. LLVM takes about 18 s for a module of 1 MiB.
const OTHERS_TURN: Duration = Duration::from_secs(30);

/// The digest of a module.
type Digest = [u8; 32];

/// Compiled code of one engine.
#[derive(Debug)]
pub struct Cache {
    folder: Folder,
}

/// What a look-up has found.
#[derive(Debug)]
pub enum Found {
    /// The module's code.
    Code(File),
    /// There was no code. It is being compiled.
    Compiling(Compiling),
}

/// The code of a module that is being compiled.
#[derive(Debug)]
pub struct Compiling {
    keeper: OwnedFd,
    /// How long ago a compilation of it began that did not end.
    since: Duration,
}

impl Found {
    /// Its open descriptor.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Code(code) => code.as_fd(),
            Self::Compiling(Compiling { keeper, .. }) => keeper.as_fd(),
        }
    }

    /// The code. Waits until the module is compiled, or for as long as `patience` says, and not at
    /// all if it is known to take longer. The module is then compiled nevertheless, for the next
    /// container.
    ///
    /// # Errors
    /// Why there is none.
    pub fn code(self, patience: Option<Duration>) -> std::result::Result<(File, Effort), Failure> {
        let (keeper, since) = match self {
            Self::Code(code) => return Ok((code, Effort::Full)),
            Self::Compiling(Compiling { keeper, since }) => (keeper, since),
        };
        let waits = patience.map(|patience| if since < patience { patience } else { Duration::ZERO });
        let limit = waits.and_then(|waits| Timespec::try_from(waits).ok());
        let mut ready = [PollFd::new(&keeper, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, limit.as_ref())) {
            Ok(0) => Err(Failure::Failed(format!("compiling it takes more than {} s", patience.unwrap_or_default().as_secs()))),
            Ok(_) => answer_of(&keeper),
            Err(error) => Err(Failure::Failed(format!("cannot wait for its compiler: {error}"))),
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

    /// The code of a module, which must be read from its beginning, if it is kept.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn find(&self, mut module: impl Read) -> Result<Option<Found>> {
        let code = self.folder.find(&digest(&mut module)?)?;
        code.map(|code| read_only(&code).map(Found::Code)).transpose()
    }

    /// Looks for the code of a module, which must be read from its beginning. If there is none, has
    /// a copy of this process compile it: `read` reads the module, `compile` compiles what was
    /// read, and `needs` is the descriptor that both need. If the container wants a `draft`, a
    /// large module is compiled quickly for it first. The process must have one thread.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn look(
        self,
        mut module: impl Read,
        needs: BorrowedFd<'_>,
        draft: bool,
        read: impl FnOnce() -> Result<Vec<u8>>,
        compile: impl Fn(&[u8], Effort) -> std::result::Result<File, Failure>,
    ) -> Result<Found> {
        let looked_up = digest(&mut module)?;
        if let Some(code) = self.folder.find(&looked_up)? {
            return read_only(&code).map(Found::Code);
        }
        // Where nothing can be noted, nothing is known.
        let since = self.folder.begun(&looked_up).unwrap_or_default();
        let what = || "cannot have the module compiled".to_string();
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context(what)?;
        // The copy is in the pod's cgroup, ends with the pod, and is reaped by the sandbox process.
        magnetar_sys::fork::spawn(|| {
            magnetar_sys::fork::keep_only(&[needs, theirs.as_fd(), self.folder.as_fd()]);
            // Of all in the pod, this can best be done without. A node may forbid to change it.
            let _unchanged = std::fs::write("/proc/self/oom_score_adj", "1000");
            let outcome = read().map_err(|error| Failure::Refused(error.to_string())).and_then(|bytes| {
                // The container and its files may be removed while this goes on.
                magnetar_sys::fork::keep_only(&[theirs.as_fd(), self.folder.as_fd()]);
                if draft && bytes.len() >= LARGE {
                    // Without a draft the container waits for the rest.
                    let _waits = compile(&bytes, Effort::Draft).map(|draft| answer(&theirs, &Ok((draft, Effort::Draft))));
                }
                let read = digest(&mut bytes.as_slice()).map_err(failed)?;
                let _turn = self.folder.turn(&read, OTHERS_TURN);
                // Of a module that many containers begin with, the first one has kept it.
                let code = match self.folder.find(&read).ok().flatten().and_then(|code| read_only(&code).ok()) {
                    Some(code) => code,
                    None => keep(&self.folder, &read, compile(&bytes, Effort::Full)?),
                };
                Ok((code, Effort::Full))
            });
            if !matches!(outcome, Err(Failure::Failed(_))) {
                self.folder.ended(&looked_up);
            }
            // A container that has a draft does not hear it.
            let heard = answer(&theirs, &outcome);
            // If this fails, the cache is too large until the next module is compiled.
            let _too_large = self.folder.prune(LIMIT);
            i32::from(heard.is_err())
        })
        .context(what)?;
        Ok(Found::Compiling(Compiling { keeper: ours, since }))
    }
}

fn failed(error: Error) -> Failure {
    Failure::Failed(error.to_string())
}

/// Stores code. Returns it as containers get it: the stored file, or, if it could not be stored,
/// the sealed file in memory.
fn keep(folder: &Folder, digest: &Digest, mut code: File) -> File {
    let stored = folder.store(digest, &mut code).and_then(|()| folder.find(digest)?.map(|stored| read_only(&stored)).transpose());
    stored.ok().flatten().unwrap_or_else(|| {
        // Only its readers by position would mind.
        let _at_its_end = code.rewind();
        code
    })
}

fn read_only(code: &File) -> Result<File> {
    magnetar_sys::sealed::reopen(code).context(|| "cannot mount compiled code read-only".into())
}

fn answer(socket: &OwnedFd, outcome: &std::result::Result<(File, Effort), Failure>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let (word, text, code) = match outcome {
        Ok((code, Effort::Full)) => (CODE, "", [code.as_fd()]),
        Ok((code, Effort::Draft)) => (DRAFT, "", [code.as_fd()]),
        Err(Failure::Refused(why)) => (REFUSED, why.as_str(), [socket.as_fd()]),
        Err(Failure::Failed(why)) => (FAILED, why.as_str(), [socket.as_fd()]),
    };
    if outcome.is_ok() && !ancillary.push(SendAncillaryMessage::ScmRights(&code)) {
        return Err(rustix::io::Errno::NOBUFS);
    }
    let text = text.as_bytes();
    let text = text.get(..ANSWER - 1).unwrap_or(text);
    // The container may have ended meanwhile.
    rustix::net::sendmsg(socket, &[IoSlice::new(&[word]), IoSlice::new(text)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

fn answer_of(socket: &OwnedFd) -> std::result::Result<(File, Effort), Failure> {
    let failed = |why: &str| Failure::Failed(format!("cannot learn of its compiler: {why}"));
    let mut text = vec![0; ANSWER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    let length = received.map_err(|error| failed(&std::io::Error::from(error).to_string()))?.bytes;
    let code = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    text.truncate(length);
    match (text.split_first(), code) {
        (Some((&CODE, _)), Some(code)) => Ok((code.into(), Effort::Full)),
        (Some((&DRAFT, _)), Some(code)) => Ok((code.into(), Effort::Draft)),
        (Some((&REFUSED, why)), _) => Err(Failure::Refused(String::from_utf8_lossy(why).into_owned())),
        (Some((&FAILED, why)), _) => Err(Failure::Failed(String::from_utf8_lossy(why).into_owned())),
        // It was killed: it is in the pod, and the first to go when memory is short.
        (None, _) => Err(Failure::Failed("out of memory: the process that compiles it was killed".into())),
        (Some(_), _) => Err(failed("an answer does not parse")),
    }
}

fn digest(reader: &mut impl Read) -> Result<Digest> {
    let mut hash = Sha256::new();
    std::io::copy(reader, &mut hash).context(|| "cannot read a module".into())?;
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests;
