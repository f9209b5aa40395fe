// SPDX-License-Identifier: Apache-2.0
//! The cgroup filesystem: a tree of directories, whose files show and change cgroups.

use crate::error::{Context, Result};
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use tracing::debug;

/// Writes to an existing file of the kernel. It never creates the file.
pub(super) fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// Whether a directory is the root of a mounted hierarchy: it is a cgroup, and its parent is not.
pub(super) fn is_root(dir: &Path) -> bool {
    let is_cgroup = |dir: &Path| dir.join("cgroup.procs").exists();
    is_cgroup(dir) && !dir.parent().is_some_and(is_cgroup)
}

/// Whether an error means that a cgroup is gone: its directory is not found, or its open files
/// return "no such device".
pub(super) fn has_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

pub(super) fn pids_in(dir: &Path, recursive: bool) -> io::Result<Vec<u32>> {
    let dirs = if recursive { subtree(dir)? } else { vec![dir.to_owned()] };
    let mut pids = Vec::new();
    for dir in dirs {
        match fs::read_to_string(dir.join("cgroup.procs")) {
            // Processes outside our PID namespace are listed as 0.
            Ok(list) => pids.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0)),
            Err(error) if has_gone(&error) => {}
            // A threaded cgroup: the cgroup above lists its processes.
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => return Err(error),
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// The directory and all directories below it, parents first. A directory that is gone, or
/// disappears meanwhile, counts as empty.
///
/// # Errors
/// When a directory cannot be read.
pub(super) fn subtree(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next) {
        let below = match fs::read_dir(dir) {
            Ok(entries) => directories(entries)?,
            Err(error) if has_gone(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        found.extend(below);
        next += 1;
    }
    Ok(found)
}

fn directories(entries: fs::ReadDir) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in entries {
        match entry.and_then(|entry| Ok((entry.file_type()?, entry.path()))) {
            Ok((kind, path)) if kind.is_dir() => found.push(path),
            Err(error) if !has_gone(&error) => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(found)
}

/// Enables all controllers in the cgroups on the way down to `dir`. If the kernel refuses one (the
/// cgroup has processes, or v1 uses the controller), the others are still tried.
pub(super) fn enable_controllers(dir: &Path) {
    let above: Vec<_> = dir.ancestors().skip(1).collect();
    for level in above.into_iter().rev() {
        let read = |file: &str| fs::read_to_string(level.join(file)).unwrap_or_default();
        let enabled = read("cgroup.subtree_control");
        for controller in read("cgroup.controllers").split_whitespace() {
            if !enabled.split_whitespace().any(|already| already == controller)
                && let Err(error) = write(&level.join("cgroup.subtree_control"), &format!("+{controller}"))
            {
                debug!(cgroup = %level.display(), controller, %error, "the controller is not enabled here");
            }
        }
    }
}

/// Gives a new v1 cgroup the CPUs and memory nodes of its parent. It starts with none, and no
/// process can join it then.
pub(super) fn inherit_cpuset(dir: &Path) -> Result<()> {
    let levels: Vec<_> = dir.ancestors().take_while(|level| !is_root(level)).collect();
    for level in levels.into_iter().rev() {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let what = || format!("{file} of cgroup {}", level.display());
            let own = fs::read_to_string(level.join(file)).context(what)?;
            if let Some(above) = level.parent().filter(|_| own.trim().is_empty()) {
                let inherited = fs::read_to_string(above.join(file)).context(what)?;
                write(&level.join(file), inherited.trim()).context(what)?;
            }
        }
    }
    Ok(())
}
