// SPDX-License-Identifier: Apache-2.0
//! What a template is made of, and the key by which it is found: all that must be the same in the
//! machine that was saved and in one that begins as its copy.
//!
//! Files are known by their identity and not by their contents: reading a kernel takes longer than
//! loading a template. Whoever replaces or writes a file changes its inode or its times, and the
//! kernel sets the time of change itself.
//!
//! Templates are of one boot of the host. So the host's kernel and processor need not be in the
//! key, and no file of a template can have been torn by a power failure.

use crate::hypervisor::snapshots::Snapshots;
use crate::machine::size::Size;
use crate::machine::spec::{Acceleration, VmSpec};
use magnetar_core::error::{Context, Result};
use serde::{Deserialize, Serialize};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// All that a template depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The boot of the host.
    pub boot: String,
    /// This program, the hypervisor, the guest's kernel and what else takes part.
    pub files: Vec<FileIdentity>,
    /// The machine, in the hypervisor's words.
    pub machine: String,
    /// Whether the guest keeps contents of shared files, which it is told when it boots.
    pub caches_files: bool,
}

/// A file at one moment. Its times are in nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    /// Its path, without links.
    pub path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: i128,
    changed: i128,
}

impl FileIdentity {
    /// The file at this path now.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn of(path: &Path) -> Result<Self> {
        let what = || format!("cannot inspect {}", path.display());
        let path = path.canonicalize().context(what)?;
        let found = path.metadata().context(what)?;
        let time = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        let modified = time(found.mtime(), found.mtime_nsec());
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified,
            changed: time(found.ctime(), found.ctime_nsec()),
            path,
        })
    }

    /// Whether the file is still what it was.
    fn is_current(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }
}

impl Key {
    /// The folder's name. Two keys may have the same; so a template has its key in it.
    pub fn name(&self) -> String {
        let mut hash = DefaultHasher::new();
        self.hash(&mut hash);
        format!("{:016x}", hash.finish())
    }

    /// Whether a machine may still need it: nothing that it depends on was replaced, and the host
    /// has not been restarted.
    pub fn is_current(&self) -> bool {
        boot_id().is_ok_and(|boot| boot == self.boot) && self.files.iter().all(FileIdentity::is_current)
    }
}

/// What a template is made of.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Its key.
    pub key: Key,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initramfs: PathBuf,
    /// Parameters of the kernel's command line.
    pub parameters: Vec<String>,
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// Its processors.
    pub vcpus: u32,
    /// The size that its copies may grow to.
    pub most: Size,
    /// What executes its code.
    pub acceleration: Acceleration,
    /// The program that shares files with it.
    pub virtiofsd: Option<PathBuf>,
    /// How many network interfaces it has.
    pub interfaces: usize,
}

impl Recipe {
    /// For copies that have this specification.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn of(spec: &VmSpec, snapshots: &dyn Snapshots) -> Result<Self> {
        let own = std::env::current_exe().context(|| "cannot find the path of this program".into())?;
        let virtiofsd = spec.share.as_ref().map(|share| share.program.clone());
        let programs = snapshots.programs();
        let files = [&own, &spec.kernel, &spec.initramfs].into_iter().chain(&programs).chain(&virtiofsd);
        let files = files.map(|path| FileIdentity::of(path)).collect::<Result<_>>()?;
        Ok(Self {
            key: Key {
                boot: boot_id()?,
                files,
                machine: snapshots.compatibility(spec),
                caches_files: spec.share.as_ref().is_some_and(|share| share.is_cached),
            },
            kernel: spec.kernel.clone(),
            initramfs: spec.initramfs.clone(),
            parameters: spec.parameters.clone(),
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            most: spec.most,
            acceleration: spec.acceleration,
            virtiofsd,
            interfaces: spec.nics.len(),
        })
    }
}

fn boot_id() -> Result<String> {
    let id = std::fs::read_to_string(BOOT_ID).context(|| format!("cannot read {BOOT_ID}"))?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(files: &[&Path]) -> Key {
        let files = files.iter().map(|path| FileIdentity::of(path).unwrap()).collect();
        Key { boot: boot_id().unwrap(), files, machine: "m".into(), caches_files: true }
    }

    #[test]
    fn a_file_that_is_written_or_replaced_makes_another_key() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, other) = (dir.path().join("kernel"), dir.path().join("other"));
        for path in [&kernel, &other] {
            std::fs::write(path, "the same").unwrap();
        }
        let first = key(&[&kernel]);
        assert_eq!((first.clone(), first.name()), (key(&[&kernel]), key(&[&kernel]).name()));
        assert!(first.is_current());
        std::fs::rename(&other, &kernel).unwrap();
        let second = key(&[&kernel]);
        assert_ne!(first.name(), second.name(), "it was replaced by a file with the same contents");
        assert!(!first.is_current() && second.is_current());
        std::fs::write(&kernel, "another").unwrap();
        assert_ne!(second.name(), key(&[&kernel]).name());
        std::fs::remove_file(&kernel).unwrap();
        assert!(!second.is_current());
    }

    #[test]
    fn a_link_is_known_by_the_file_that_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(FileIdentity::of(&file).unwrap(), FileIdentity::of(&link).unwrap());
    }

    #[test]
    fn another_machine_or_another_boot_makes_another_key() {
        let first = key(&[]);
        let machine = Key { machine: "another".into(), ..first.clone() };
        let uncached = Key { caches_files: false, ..first.clone() };
        let boot = Key { boot: "another".into(), ..first.clone() };
        assert!(first.name() != machine.name() && first.name() != boot.name() && first.name() != uncached.name());
        assert!(machine.is_current() && !boot.is_current());
    }
}
