// SPDX-License-Identifier: Apache-2.0
//! The templates of this node: a folder that only root can enter.
//!
//! ```text
//! <root>/lock                  whoever changes anything here holds it (flock)
//!        making/               a template that is being made, or what is left of one
//!        <name>/manifest.json  what the template depends on, and the sizes of its files
//!               memory         the guest's memory, with holes where it is zero
//!               state          the hypervisor's part
//! ```
//!
//! A template is complete or absent: it gets its name at the end. What a crash leaves of one is
//! removed by the next process that makes one. Their number is bounded: those that nothing can use
//! any more are removed first, then the one that was used longest ago.

use super::recipe::{Key, Recipe};
use magnetar_core::error::{Code, Context, Error, Result};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, fchmod, flock, fstat, mkdirat, openat, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tracing::{info, warn};

/// The folder.
pub const ROOT: &str = "/var/lib/magnetar/templates";

/// The most templates of a node. A machine with another size needs another template.
const MOST: usize = 8;

/// A template that was used within this time is not removed to make room. Otherwise pods of more
/// sizes than there is room for would make templates all the time.
const KEPT: Duration = Duration::from_secs(600);

const LOCK: &str = "lock";
const MAKING: &str = "making";
const MANIFEST: &str = "manifest.json";
const MEMORY: &str = "memory";
const STATE: &str = "state";

/// The longest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 64 << 10;

/// The flags for a folder of the store. None is a link.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is said of a template beside its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    key: Key,
    /// The version of the hypervisor, in its own words.
    version: String,
    /// The sizes of the files, in bytes.
    memory: u64,
    state: u64,
}

/// The store.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

/// A template, opened for reading.
#[derive(Debug)]
pub struct Template {
    /// The guest's memory.
    pub memory: File,
    /// The hypervisor's part.
    pub state: File,
    /// The version of the hypervisor that has saved it.
    pub version: String,
}

impl Store {
    /// The store in this folder, which need not exist.
    pub fn at(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// Finds the template for a recipe, and notes its use.
    ///
    /// # Errors
    /// `FailedPrecondition` if it is damaged, `PermissionDenied` if others than root could have
    /// written it; errors of the kernel.
    pub fn find(&self, recipe: &Recipe) -> Result<Option<Template>> {
        let Some(root) = self.existing()? else { return Ok(None) };
        let name = recipe.key.name();
        let folder = match openat(&root, name.as_str(), FOLDER, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            folder => folder.context(|| format!("cannot open the template {name}"))?,
        };
        check(folder.as_fd(), &name)?;
        let damaged = |what: &str| Error::precondition(format!("the template {name} is damaged: {what}"));
        let manifest = manifest(folder.as_fd()).map_err(|error| damaged(&error.to_string()))?;
        if manifest.key != recipe.key {
            return Err(damaged("it is of another machine"));
        }
        if manifest.memory != u64::from(recipe.memory_mib) << 20 {
            return Err(damaged("its memory has another size than the machine's"));
        }
        let file = |file: &str, size: u64| {
            let opened = open(folder.as_fd(), file)?;
            let length = fstat(&opened).context(|| format!("cannot inspect {file}"))?.st_size;
            let whole = u64::try_from(length).is_ok_and(|length| length == size);
            if whole { Ok(opened) } else { Err(damaged(&format!("{file} has {length} bytes instead of {size}"))) }
        };
        let (memory, state) = (file(MEMORY, manifest.memory)?, file(STATE, manifest.state)?);
        // If this fails, it may be removed a little earlier.
        let _not_noted = open(folder.as_fd(), MANIFEST).and_then(|file| file.set_modified(SystemTime::now()).context(String::new));
        Ok(Some(Template { memory, state, version: manifest.version }))
    }

    /// Begins to make a template. `None` if there is one, if another process makes one, or if there
    /// is no room.
    ///
    /// # Errors
    /// `PermissionDenied` if others than root could write to the store; errors of the kernel.
    pub fn begin(&self, recipe: &Recipe) -> Result<Option<Making>> {
        let Some((root, lock)) = self.lock()? else { return Ok(None) };
        remove(root.as_fd(), MAKING)?;
        let name = recipe.key.name();
        if has(root.as_fd(), &name) || !make_room(root.as_fd())? {
            return Ok(None);
        }
        mkdirat(&root, MAKING, Mode::RWXU).context(|| format!("cannot make {}/{MAKING}", self.0.display()))?;
        Ok(Some(Making { root, _lock: lock, name, key: recipe.key.clone(), memory: u64::from(recipe.memory_mib) << 20, is_done: false }))
    }

    /// Removes the template for a recipe, if there is one. Does nothing while another process makes
    /// one.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn discard(&self, recipe: &Recipe) -> Result<()> {
        match self.lock()? {
            Some((root, _lock)) => remove(root.as_fd(), &recipe.key.name()),
            None => Ok(()),
        }
    }

    fn existing(&self) -> Result<Option<OwnedFd>> {
        match openat(CWD, &self.0, FOLDER, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            root => {
                let root = root.context(|| format!("cannot open {}", self.0.display()))?;
                check(root.as_fd(), &self.0.display().to_string())?;
                Ok(Some(root))
            }
        }
    }

    /// The store, made if it does not exist, and its lock; `None` if another process has that.
    fn lock(&self) -> Result<Option<(OwnedFd, OwnedFd)>> {
        let what = || format!("cannot make {}", self.0.display());
        if let Some(parent) = self.0.parent() {
            std::fs::create_dir_all(parent).context(what)?;
        }
        match mkdirat(CWD, &self.0, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context(what),
        }
        let Some(root) = self.existing()? else { return Err(Error::new(Code::NotFound, what())) };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = openat(&root, LOCK, flags, Mode::RUSR | Mode::WUSR).context(|| "cannot open the templates' lock".into())?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            locked => locked.context(|| "cannot lock the templates".into()).map(|()| Some((root, lock))),
        }
    }
}

/// A template that is being made, under the store's lock. Removed when dropped, unless it is
/// [finished](Self::finish).
#[derive(Debug)]
pub struct Making {
    root: OwnedFd,
    _lock: OwnedFd,
    name: String,
    key: Key,
    memory: u64,
    is_done: bool,
}

impl Making {
    /// The file for the guest's memory, of its size and without contents.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn memory(&self) -> Result<File> {
        let what = || "cannot make the file for a template's memory".to_string();
        let file = self.create(MEMORY)?;
        file.set_len(self.memory).context(what)?;
        // A hypervisor that loads it does so as the pod's user. Nobody else enters the folder.
        fchmod(&file, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH).context(what)?;
        Ok(file)
    }

    /// The file for the hypervisor's part.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn state(&self) -> Result<File> {
        self.create(STATE)
    }

    /// Gives the template its name: from now on it is used. `version` is the hypervisor's.
    ///
    /// # Errors
    /// Errors of the kernel. There is no template then.
    pub fn finish(mut self, version: String, state: &File) -> Result<()> {
        let what = || "cannot complete a template".to_string();
        let state = state.metadata().context(what)?.len();
        let manifest = Manifest { key: self.key.clone(), version, memory: self.memory, state };
        let text = serde_json::to_vec(&manifest).map_err(|error| Error::internal(format!("{}: {error}", what())))?;
        self.create(MANIFEST)?.write_all(&text).context(what)?;
        renameat_with(&self.root, MAKING, &self.root, self.name.as_str(), RenameFlags::NOREPLACE).context(what)?;
        self.is_done = true;
        info!(template = self.name, "made a template");
        Ok(())
    }

    fn create(&self, name: &str) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.root, format!("{MAKING}/{name}"), flags, Mode::RUSR | Mode::WUSR);
        file.map(File::from).context(|| format!("cannot make the file {name} of a template"))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.is_done
            && let Err(error) = remove(self.root.as_fd(), MAKING)
        {
            warn!(%error, "cannot remove a template that was not completed; the next one that is made does it");
        }
    }
}

/// Refuses what others than root could have written.
fn check(found: BorrowedFd<'_>, name: &str) -> Result<()> {
    let stat = fstat(found).context(|| format!("cannot inspect {name}"))?;
    // Its owner may be the root of a container in which a node runs.
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != own || stat.st_mode & 0o022 != 0 {
        let (owner, mode) = (stat.st_uid, stat.st_mode & 0o7777);
        let what = format!("{name} belongs to user {owner}, with mode {mode:o}: only root may be able to write to templates");
        return Err(Error::new(Code::PermissionDenied, what));
    }
    Ok(())
}

fn open(folder: BorrowedFd<'_>, name: &str) -> Result<File> {
    let opened = openat(folder, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let opened = opened.context(|| format!("cannot open {name}"))?;
    check(opened.as_fd(), name)?;
    Ok(opened.into())
}

fn manifest(folder: BorrowedFd<'_>) -> Result<Manifest> {
    let mut text = Vec::new();
    open(folder, MANIFEST)?.take(MAX_MANIFEST).read_to_end(&mut text).context(|| format!("cannot read {MANIFEST}"))?;
    serde_json::from_slice(&text).map_err(|error| Error::precondition(format!("{MANIFEST}: {error}")))
}

fn has(root: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::accessat(root, name, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
}

/// Removes what nothing can use any more, and makes room for one template. Returns whether there is
/// room.
fn make_room(root: BorrowedFd<'_>) -> Result<bool> {
    let mut used = Vec::new();
    for name in names(root)?.into_iter().filter(|name| name != LOCK) {
        match last_use(root, &name) {
            Some(at) => used.push((at, name)),
            None => remove(root, &name)?,
        }
    }
    used.sort();
    let excess = (used.len() + 1).saturating_sub(MOST);
    for (at, name) in used.into_iter().take(excess) {
        if SystemTime::now().duration_since(at).is_ok_and(|since| since < KEPT) {
            return Ok(false);
        }
        remove(root, &name)?;
    }
    Ok(true)
}

/// When a template was used last; `None` if it is not one, or none that is of use.
fn last_use(root: BorrowedFd<'_>, name: &str) -> Option<SystemTime> {
    let folder = openat(root, name, FOLDER, Mode::empty()).ok()?;
    let manifest = manifest(folder.as_fd()).ok()?;
    let at = open(folder.as_fd(), MANIFEST).ok()?.metadata().ok()?.modified().ok()?;
    manifest.key.is_current().then_some(at)
}

fn names(folder: BorrowedFd<'_>) -> Result<Vec<String>> {
    let what = || "cannot list the templates".to_string();
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder).context(what)? {
        let name = entry.context(what)?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes a template, or whatever has its name. Idempotent.
fn remove(root: BorrowedFd<'_>, name: &str) -> Result<()> {
    let what = || format!("cannot remove {name} from the templates");
    let ignore_missing = |removed: rustix::io::Result<()>| match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).context(what),
    };
    match openat(root, name, FOLDER, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        // A file or a link.
        Err(Errno::NOTDIR | Errno::LOOP) => ignore_missing(rustix::fs::unlinkat(root, name, AtFlags::empty())),
        folder => {
            let folder = folder.context(what)?;
            for file in names(folder.as_fd())? {
                ignore_missing(rustix::fs::unlinkat(&folder, file.as_str(), AtFlags::empty()))?;
            }
            ignore_missing(rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR))
        }
    }
}

#[cfg(test)]
mod tests;
