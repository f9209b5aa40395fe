// SPDX-License-Identifier: Apache-2.0
//! Finds and loads the node's libwasmedge: with LLVM in the process that compiles, and without it
//! in those that run modules.
//!
//! libwasmedge is linked with LLVM, a library of more than a hundred MiB that only compiling needs,
//! and that costs each process time and memory. So a process that runs modules loads a stand-in
//! first (`stand_in.rs`): a library with LLVM's name and the symbols that libwasmedge takes from
//! it. The loader then takes that for LLVM.
//!
//! The stand-in is made once for each libwasmedge, in the cache's folder, beside a record of which
//! files it was made for.

use super::stand_in;
use crate::cache::{self, Folder};
use magnetar_core::error::{Context, Error, Result};
use magnetar_sys::{fork, library};
use rustix::process::{Pid, WaitOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The library's file name, with the version of its C interface since WasmEdge 0.15.
const LIBRARY: &str = "libwasmedge.so.0";

/// A function that version 0.17 has and earlier ones lack.
const NEWEST: &str = "WasmEdge_ConfigureSetRunMode";

/// What the loader knows of where libraries are (ld.so(8)).
const LOADERS_CACHE: &str = "/etc/ld.so.cache";

/// The folder and the files of the cache that this module makes.
const FOLDER: &str = "wasmedge";
const RECORD: &str = "library.json";
const STAND_IN: &str = "stand-in.so";

/// A file's identity: device, inode, size, and the second and nanosecond of its last change.
type Identity = [i128; 5];

/// The node's library as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Found {
    path: PathBuf,
    identity: Identity,
    loaders_cache: Option<Identity>,
    /// The digest of the stand-in, in hexadecimal; `None` if the library works only with LLVM, or
    /// has LLVM within itself.
    stand_in: Option<String>,
}

/// Finds the library, by the record or by loading it in a copy of this process, which must have one
/// thread.
///
/// # Errors
/// `FailedPrecondition` if it is not installed, otherwise the kernel's error.
pub fn found() -> Result<&'static Found> {
    static FOUND: OnceLock<Found> = OnceLock::new();
    match FOUND.get() {
        Some(found) => Ok(found),
        None => Found::new().map(|found| FOUND.get_or_init(|| found)),
    }
}

impl Found {
    fn new() -> Result<Self> {
        let folder = Folder::open(Path::new(cache::ROOT), FOLDER)?;
        let known = folder.get(RECORD)?.and_then(|record| serde_json::from_slice::<Self>(&record).ok());
        if let Some(known) = known.filter(|known| known.is_current(&folder)) {
            return Ok(known);
        }
        let (path, llvm) = places()?;
        let mut found = Self { identity: identity(&path)?, loaders_cache: identity(Path::new(LOADERS_CACHE)).ok(), path, stand_in: None };
        // Where a stand-in cannot be made, or the library does not load with it, LLVM is loaded.
        if let Some(Ok(image)) = llvm.map(|llvm| stand_in::make(&found.path, &llvm)) {
            folder.put(STAND_IN, &image)?;
            let with_stand_in = Self { stand_in: Some(hex(&image)), ..found.clone() };
            if in_a_copy(|| with_stand_in.load().map(|()| String::new())).is_ok() {
                found = with_stand_in;
            }
        }
        let record = serde_json::to_vec(&found).map_err(|error| Error::internal(format!("cannot record where libwasmedge is: {error}")))?;
        folder.put(RECORD, &record)?;
        Ok(found)
    }

    fn is_current(&self, folder: &Folder) -> bool {
        let unchanged = identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && identity(Path::new(LOADERS_CACHE)).ok() == self.loaders_cache;
        let stand_in = || folder.get(STAND_IN).ok().flatten().map(|image| hex(&image));
        unchanged && (self.stand_in.is_none() || stand_in() == self.stand_in)
    }

    /// Loads the library, for a process that does not compile.
    ///
    /// # Errors
    /// `FailedPrecondition` with the loader's message.
    pub fn load(&self) -> Result<()> {
        if self.stand_in.is_none() {
            return load_with_llvm();
        }
        library::load(&stand_in_path(), None).and_then(|()| library::load(&self.path, Some(NEWEST))).map_err(unusable)
    }
}

/// Loads the library as any program does.
///
/// # Errors
/// `FailedPrecondition` with the loader's message.
pub fn load_with_llvm() -> Result<()> {
    library::load(Path::new(LIBRARY), Some(NEWEST)).map_err(unusable)
}

fn unusable(error: String) -> Error {
    Error::precondition(format!("WasmEdge 0.17 is not installed on this node, or does not work: {error}"))
}

fn stand_in_path() -> PathBuf {
    Path::new(cache::ROOT).join(FOLDER).join(STAND_IN)
}

/// Where the loader finds the library, and the LLVM that it is linked with, by what is mapped when
/// it has loaded them (proc_pid_maps(5)).
fn places() -> Result<(PathBuf, Option<PathBuf>)> {
    let what = || "cannot see where libwasmedge was loaded from".to_string();
    let maps = in_a_copy(|| {
        load_with_llvm()?;
        std::fs::read_to_string("/proc/self/maps").context(what)
    })?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    let find = |name: &str| {
        let is_it = |path: &&Path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
        paths.clone().find(is_it).map(Path::to_owned)
    };
    let llvm = find("libLLVM");
    Ok((find("libwasmedge.so").ok_or_else(|| Error::internal(what()))?, llvm))
}

/// What `asked` returns, in a copy of this process, which ends: libraries are never unloaded.
fn in_a_copy(asked: impl FnOnce() -> Result<String>) -> Result<String> {
    let what = || "cannot look at libwasmedge".to_string();
    let (mut answer, tells) = std::io::pipe().context(what)?;
    let child = fork::spawn(|| {
        let line = asked().map_or_else(|error| error.to_line(), |text| format!("{ANSWER}{text}"));
        i32::from((&tells).write_all(line.as_bytes()).is_err())
    })
    .context(what)?;
    drop(tells);
    let mut line = String::new();
    answer.read_to_string(&mut line).context(what)?;
    rustix::process::waitpid(Pid::from_raw(child.cast_signed()), WaitOptions::empty()).context(what)?;
    match line.strip_prefix(ANSWER) {
        Some(text) => Ok(text.to_owned()),
        None if line.is_empty() => Err(Error::internal(format!("{}: the process that loads it ended without an answer", what()))),
        None => Err(Error::from_line(&line)),
    }
}

/// What an answer begins with. An error begins with a number instead.
const ANSWER: char = '=';

fn identity(path: &Path) -> Result<Identity> {
    let file = std::fs::metadata(path).context(|| format!("cannot look at {}", path.display()))?;
    Ok([file.dev().into(), file.ino().into(), file.size().into(), file.mtime().into(), file.mtime_nsec().into()])
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
