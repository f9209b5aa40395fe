// SPDX-License-Identifier: Apache-2.0
//! The cache's files: for each module its code, and beside it a file with the code's digest
//! (`.sha256`).

use magnetar_core::error::{Context, Error, Result};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// The end of the name of a digest's file.
const SUM: &str = ".sha256";

/// The end of the name of an empty file that says since when a module is compiled.
const BEGUN: &str = ".begun";

/// How long that is remembered, in seconds. Modules that never compile leave such files.
const REMEMBERED: i64 = 24 * 3600;

/// The interval at which a process looks whether another one still compiles.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The age in seconds at which a half-written file is taken for the remains of a crash, and
/// removed.
const ABANDONED: i64 = 3600;

/// The folder of one engine, in the folder of all engines.
#[derive(Debug)]
pub struct Folder(OwnedFd);

/// A file that may be removed to keep the limit.
struct Entry {
    folder: OwnedFd,
    name: OsString,
    size: u64,
    used: i64,
}

impl Folder {
    /// Opens `root` and `name` in it, and makes them if they do not exist.
    ///
    /// # Errors
    /// `PermissionDenied` if others could write to them.
    pub fn open(root: &Path, name: &str) -> Result<Self> {
        if let Some(parent) = root.parent() {
            std::fs::create_dir_all(parent).context(|| format!("cannot make {}", parent.display()))?;
        }
        let root = private(rustix::fs::CWD, root)?;
        private(root.as_fd(), Path::new(name)).map(Self)
    }

    /// The folder's descriptor, the only one it has.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Finds the code for a module's digest, and checks it. Removes a file that is damaged, or that
    /// others could have written.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn find(&self, digest: &[u8; 32]) -> Result<Option<File>> {
        let name = hex(digest);
        let what = || format!("cannot read the cached code {name}");
        let (Some(mut code), Some(mut sum)) = (self.existing(&name)?, self.existing(&format!("{name}{SUM}"))?) else {
            return Ok(None);
        };
        let mut wanted = Vec::new();
        (&mut sum).take(64).read_to_end(&mut wanted).context(what)?;
        let mut hash = Sha256::new();
        std::io::copy(&mut code, &mut hash).context(what)?;
        if hash.finalize().as_slice() != wanted {
            self.remove(&name);
            return Ok(None);
        }
        code.rewind().context(what)?;
        let now = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        };
        // If this fails, the file may be removed a little earlier.
        let _not_noted = rustix::fs::futimens(&code, &now);
        Ok(Some(code))
    }

    /// Stores code. Two processes that store the same module at the same time write the same
    /// content.
    ///
    /// # Errors
    /// The kernel's error; nothing is stored then.
    pub fn store(&self, digest: &[u8; 32], code: &mut impl Read) -> Result<()> {
        let name = hex(digest);
        let temporary = |end: &str| format!(".{name}{end}.{}", std::process::id());
        let (code_file, sum_file) = (temporary(""), temporary(SUM));
        let written = self.write(&code_file, code).and_then(|sum| {
            self.write(&sum_file, &mut sum.as_slice())?;
            self.rename(&code_file, &name)?;
            self.rename(&sum_file, &format!("{name}{SUM}"))
        });
        if written.is_err() {
            for file in [&code_file, &sum_file] {
                // It may be gone already; otherwise a later clean-up removes it.
                let _left = rustix::fs::unlinkat(&self.0, file.as_str(), AtFlags::empty());
            }
        }
        written
    }

    /// Notes that the compilation of a module begins. Returns how long ago one began that has not
    /// [`ended`](Self::ended), be it that it goes on or that it was interrupted.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn begun(&self, digest: &[u8; 32]) -> Result<Duration> {
        let name = format!("{}{BEGUN}", hex(digest));
        let what = || format!("cannot note {name} in the cache");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.0, name.as_str(), flags | OFlags::EXCL, Mode::RUSR | Mode::WUSR) {
            Ok(_) => Ok(Duration::ZERO),
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&self.0, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).context(what)?;
                Ok(Duration::from_secs(u64::try_from(now() - stat.st_mtime).unwrap_or_default()))
            }
            Err(error) => Err(error).context(what),
        }
    }

    /// Waits until no other process compiles a module whose compilation was noted
    /// ([`begun`](Self::begun)), for as long as `patience` says. It is this process's turn as long
    /// as it has what is returned, which is nothing if it did not become its turn.
    pub fn turn(&self, digest: &[u8; 32], patience: Duration) -> Option<File> {
        let name = format!("{}{BEGUN}", hex(digest));
        let note = File::from(rustix::fs::openat(&self.0, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()?);
        let until = Instant::now() + patience;
        // The kernel has no way to wait for a lock until a certain time.
        while let Err(error) = rustix::fs::flock(&note, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::AGAIN || Instant::now() >= until {
                return None;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Some(note)
    }

    /// Notes that the compilation of a module has ended, whatever came of it.
    pub fn ended(&self, digest: &[u8; 32]) {
        // Another one may have ended before.
        let _gone = rustix::fs::unlinkat(&self.0, format!("{}{BEGUN}", hex(digest)), AtFlags::empty());
    }

    /// Reads a file that [`put`](Self::put) made; `None` if there is none, or others could have
    /// written it.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(mut file) = self.existing(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).context(|| format!("cannot read {name} in the cache"))?;
        Ok(Some(bytes))
    }

    /// Makes or replaces a file as a whole.
    ///
    /// # Errors
    /// The kernel's error; an earlier file is then as it was.
    pub fn put(&self, name: &str, mut bytes: &[u8]) -> Result<()> {
        let temporary = format!(".{name}.{}", std::process::id());
        let written = self.write(&temporary, &mut bytes).and_then(|_| self.rename(&temporary, name));
        if written.is_err() {
            // A later clean-up removes it.
            let _left = rustix::fs::unlinkat(&self.0, temporary.as_str(), AtFlags::empty());
        }
        written
    }

    /// Removes the code that was used longest ago until at most `limit` bytes are left, abandoned
    /// half-written files, and what was noted of compilations a day ago.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn prune(&self, limit: u64) -> Result<()> {
        let mut entries = self.entries()?;
        let mut total: u64 = entries.iter().map(|entry| entry.size).sum();
        entries.sort_by_key(|entry| entry.used);
        let now = now();
        for entry in entries {
            let name = entry.name.as_encoded_bytes();
            let kept_for = match (name.starts_with(b"."), name.ends_with(BEGUN.as_bytes())) {
                (true, _) => Some(ABANDONED),
                (_, true) => Some(REMEMBERED),
                _ => None,
            };
            if kept_for.map_or(total > limit, |seconds| entry.used < now - seconds) {
                let mut sum = entry.name.clone();
                sum.push(SUM);
                for name in [&entry.name, &sum] {
                    // Another process may have removed it already, and a half-written file has no
                    // digest.
                    let _gone = rustix::fs::unlinkat(&entry.folder, name.as_os_str(), AtFlags::empty());
                }
                total = total.saturating_sub(entry.size);
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<Entry>> {
        let what = || "cannot list the cache".to_string();
        let mut entries = Vec::new();
        let root = rustix::fs::openat(&self.0, "..", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
        for folder in names(&root)? {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
            let Ok(folder) = rustix::fs::openat(&root, folder.as_os_str(), flags, Mode::empty()) else { continue };
            // A digest's file is removed with its code.
            for name in names(&folder)?.into_iter().filter(|name| name.as_encoded_bytes().starts_with(b".") || !is_sum(name)) {
                let Ok(stat) = rustix::fs::statat(&folder, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                entries.push(Entry { folder: folder.try_clone().context(what)?, name, size, used: stat.st_mtime });
            }
        }
        Ok(entries)
    }

    fn existing(&self, name: &str) -> Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.0, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            // A symbolic link, which we never make.
            Err(Errno::LOOP) => {
                self.remove(name);
                return Ok(None);
            }
            Err(error) => return Err(error).context(|| format!("cannot open the cached code {name}")),
        };
        let stat = rustix::fs::fstat(&file).context(|| format!("cannot look at the cached code {name}"))?;
        let ours = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o022 == 0;
        if !ours || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.remove(name);
            return Ok(None);
        }
        Ok(Some(file.into()))
    }

    fn write(&self, name: &str, from: &mut impl Read) -> Result<Vec<u8>> {
        let what = || format!("cannot write the cached code {name}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        // Nobody but root can enter the folder. Containers get the open file, and one engine opens
        // it once more, as the container's user.
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let mut file = File::from(rustix::fs::openat(&self.0, name, flags, mode).context(what)?);
        let mut hash = Sha256::new();
        let mut block = vec![0; 1 << 16];
        loop {
            let length = from.read(&mut block).context(what)?;
            let Some(part) = block.get(..length).filter(|part| !part.is_empty()) else { break };
            hash.update(part);
            file.write_all(part).context(what)?;
        }
        Ok(hash.finalize().to_vec())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        rustix::fs::renameat(&self.0, from, &self.0, to).context(|| format!("cannot keep the cached code {to}"))
    }

    fn remove(&self, name: &str) {
        for end in ["", SUM] {
            // A file that cannot be removed is not used either.
            let _left = rustix::fs::unlinkat(&self.0, format!("{name}{end}"), AtFlags::empty());
        }
    }
}

/// Opens a folder to which only root can write.
fn private(parent: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let what = || format!("cannot use {} as a cache", path.display());
    match rustix::fs::mkdirat(&parent, path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).context(what),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(&parent, path, flags, Mode::empty()).context(what)?;
    let stat = rustix::fs::fstat(&folder).context(what)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
        let message = format!("{}: others can write to it; only root may", what());
        return Err(Error::new(magnetar_core::error::Code::PermissionDenied, message));
    }
    Ok(folder)
}

fn names(folder: &OwnedFd) -> Result<Vec<OsString>> {
    let what = || "cannot list the cache".to_string();
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder).context(what)? {
        let name = entry.context(what)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

fn is_sum(name: &OsStr) -> bool {
    name.as_encoded_bytes().ends_with(SUM.as_bytes())
}

/// The seconds since 1970, as of a file's times.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn folder() -> (tempfile::TempDir, Folder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(&temporary.path().join("cache"), "engine-1").unwrap();
        (temporary, folder)
    }

    fn file(temporary: &tempfile::TempDir, digest: u8, end: &str) -> std::path::PathBuf {
        temporary.path().join("cache/engine-1").join(hex(&[digest; 32]) + end)
    }

    fn content(folder: &Folder, digest: u8) -> Option<String> {
        folder.find(&[digest; 32]).unwrap().map(|file| std::io::read_to_string(file).unwrap())
    }

    #[test]
    fn stored_code_is_found() {
        let (temporary, folder) = folder();
        assert_eq!(content(&folder, 1), None);
        for _ in 0..2 {
            folder.store(&[1; 32], &mut &b"code"[..]).unwrap();
        }
        assert_eq!(content(&folder, 1).as_deref(), Some("code"));
        let other = Folder::open(&temporary.path().join("cache"), "engine-2").unwrap();
        assert_eq!(content(&other, 1), None);
    }

    #[test]
    fn damaged_or_foreign_code_is_not_used() {
        let (temporary, folder) = folder();
        let keep = || folder.store(&[1; 32], &mut &b"code"[..]).unwrap();
        keep();
        std::fs::write(file(&temporary, 1, ""), "c0de").unwrap();
        assert_eq!(content(&folder, 1), None);
        keep();
        std::fs::write(file(&temporary, 1, SUM), "short").unwrap();
        assert_eq!(content(&folder, 1), None);
        keep();
        std::fs::set_permissions(file(&temporary, 1, ""), std::fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(content(&folder, 1), None);
        keep();
        std::fs::remove_file(file(&temporary, 1, "")).unwrap();
        symlink("/etc/passwd", file(&temporary, 1, "")).unwrap();
        assert_eq!(content(&folder, 1), None);
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("cache");
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Folder::open(&root, "engine-1").is_err());
    }

    #[test]
    fn the_code_that_was_used_longest_ago_is_removed_first() {
        let (temporary, folder) = folder();
        for digest in 1..=4 {
            folder.store(&[digest; 32], &mut vec![digest; 1000].as_slice()).unwrap();
            let age = std::time::SystemTime::now() - std::time::Duration::from_secs(100 - u64::from(digest));
            for end in ["", SUM] {
                File::open(file(&temporary, digest, end)).unwrap().set_modified(age).unwrap();
            }
        }
        // Used again.
        assert!(content(&folder, 1).is_some());
        folder.prune(2 * 1000 + 500).unwrap();
        assert_eq!([1, 2, 3, 4].map(|digest| content(&folder, digest).is_some()), [true, false, false, true]);
    }

    #[test]
    fn what_is_noted_of_a_compilation_is_forgotten_after_a_day() {
        let (temporary, folder) = folder();
        assert_eq!(folder.begun(&[1; 32]).unwrap(), Duration::ZERO);
        let note = file(&temporary, 1, BEGUN);
        folder.prune(0).unwrap();
        assert!(note.exists());
        let before = SystemTime::now() - Duration::from_secs(2 * REMEMBERED as u64);
        File::options().write(true).open(&note).unwrap().set_modified(before).unwrap();
        assert!(folder.begun(&[1; 32]).unwrap() >= Duration::from_secs(REMEMBERED as u64));
        folder.prune(0).unwrap();
        assert!(!note.exists());
    }
}
