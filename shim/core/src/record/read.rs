// SPDX-License-Identifier: Apache-2.0
//! Reads a record that may be damaged in any way: truncated, of another version, of another pod, or
//! a FIFO without a writer.

use crate::error::{Context, Error, Result};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use std::io::Read;
use std::path::Path;

/// The version of the files' layout. Earlier versions are read; later ones are refused.
///
/// 2: the sandbox process is not in the pod's cgroup (`cgroup`), which need not exist. New:
/// `parent`, `claimed`.
pub(super) const VERSION: u32 = 2;

/// The largest record that is read, in bytes. Usual ones have a few thousand.
const MAX: u64 = 1 << 20;

/// The result of a look for a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// The record.
    Record(T),
    /// Nothing.
    Absent,
    /// Something that cannot be trusted, and why.
    Damaged(String),
}

impl<T> Found<T> {
    /// The record, if there is one that can be trusted.
    pub fn record(&self) -> Option<&T> {
        match self {
            Self::Record(record) => Some(record),
            Self::Absent | Self::Damaged(_) => None,
        }
    }

    /// The record, or the error that there is none in `dir`.
    pub(super) fn or_error(self, dir: &Path) -> Result<T> {
        match self {
            Self::Record(record) => Ok(record),
            Self::Absent => Err(Error::not_found(format!("there is no record in {}", dir.display()))),
            Self::Damaged(why) => Err(Error::internal(format!("a record in {} is damaged: {why}", dir.display()))),
        }
    }
}

/// Reads the record at `path`. `check` checks a record that parses, and returns what is wrong with
/// it.
///
/// # Errors
/// Only if the file cannot be read: for lack of descriptors or memory, or because the disk fails.
pub(super) fn record<T: DeserializeOwned>(path: &Path, check: impl FnOnce(&T) -> Result<(), String>) -> Result<Found<T>> {
    let what = || format!("cannot read {}", path.display());
    let damaged = |why: String| Ok(Found::Damaged(format!("{}: {why}", path.display())));
    // Non-blocking, so that a FIFO without a writer does not block.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Found::Absent),
        Err(Errno::LOOP) => return damaged("it is a symbolic link".into()),
        Err(Errno::NXIO | Errno::NODEV) => return damaged("it is not a file".into()),
        Err(error) => return Err(error).context(what),
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).context(what)?.st_mode);
    if kind != FileType::RegularFile {
        return damaged(format!("it is not a file but a {kind:?}"));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(MAX).read_to_end(&mut bytes).context(what)?;
    let parsed = serde_json::from_slice::<T>(&bytes).map_err(|error| error.to_string());
    match parsed.and_then(|record| check(&record).map(|()| record)) {
        Ok(record) => Ok(Found::Record(record)),
        Err(why) => damaged(why),
    }
}

/// Whether a record of this version can be read.
pub(super) fn version(version: u32) -> Result<(), String> {
    if (1..=VERSION).contains(&version) {
        return Ok(());
    }
    Err(format!("it has version {version}, and this program reads up to {VERSION}"))
}
