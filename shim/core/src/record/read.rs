// SPDX-License-Identifier: Apache-2.0
//! Reading a record that may be anything: cut, of another version, another pod's, a FIFO that nobody writes to.

use crate::error::{Context, Error, Result};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use std::io::Read;
use std::path::Path;

/// The layout of the files. Those of earlier ones are read; a later one cannot be.
///
/// 2: the sandbox process is not in the pod's cgroup (`cgroup`), which there need not be. `parent`, `claimed`.
pub(super) const VERSION: u32 = 2;

/// The largest record, in bytes: ours have a few thousand.
const MAX: u64 = 1 << 20;

/// What was found where a record should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// The record.
    Record(T),
    /// Nothing.
    Absent,
    /// Something that cannot be believed, and why.
    Damaged(String),
}

impl<T> Found<T> {
    /// The record, if it can be believed.
    pub fn record(&self) -> Option<&T> {
        match self {
            Self::Record(record) => Some(record),
            Self::Absent | Self::Damaged(_) => None,
        }
    }

    /// The record, or why there is none in `dir`.
    pub(super) fn or_error(self, dir: &Path) -> Result<T> {
        match self {
            Self::Record(record) => Ok(record),
            Self::Absent => Err(Error::not_found(format!("there is no record in {}", dir.display()))),
            Self::Damaged(why) => Err(Error::internal(format!("a record in {} is damaged: {why}", dir.display()))),
        }
    }
}

/// Reads the record at `path`. `check` says what is wrong with one that parses.
///
/// # Errors
/// Only where one cannot look: for want of descriptors or memory, or because the disk fails.
pub(super) fn record<T: DeserializeOwned>(path: &Path, check: impl FnOnce(&T) -> Result<(), String>) -> Result<Found<T>> {
    let what = || format!("cannot read {}", path.display());
    let damaged = |why: String| Ok(Found::Damaged(format!("{}: {why}", path.display())));
    // Without waiting for whoever would write to a FIFO.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Found::Absent),
        Err(Errno::LOOP) => return damaged("it is a symbolic link".into()),
        Err(Errno::NXIO | Errno::NODEV) => return damaged("it is no file".into()),
        Err(error) => return Err(error).context(what),
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).context(what)?.st_mode);
    if kind != FileType::RegularFile {
        return damaged(format!("it is no file but a {kind:?}"));
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
