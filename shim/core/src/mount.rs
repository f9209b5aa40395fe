// SPDX-License-Identifier: Apache-2.0
//! Mounts as containerd sends them: a type, a source, and options that mix flags with filesystem
//! data.
//!
//! ```text
//! Mount::parse   "overlay", "overlay", ["ro", "lowerdir=..."]  ->  flags, propagation, data
//! mount_at       one mount; bind mounts get their flags by a remount, as the kernel wants it
//! unmount        everything stacked on one path, lazily; nothing there is success
//! mounts_below   what is mounted at and under a path, in the order to unmount it
//! mounted_in     whether something is mounted in a directory, so that removing it would empty the mount
//! ```
//!
//! If a target's last component is a symbolic link, it is never followed: the target is opened
//! first, and mounted on by its descriptor. Deliberately absent: loop devices (`loop`). They are
//! refused by name rather than mounted as something else.

mod idmap;
mod info;
mod overlay;

pub use info::{MountEntry, for_each_mount};

use crate::error::{Code, Context, Error, Result};
use idmap::IdMaps;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The longest list of data options that mount(2) takes, in bytes with the final NUL: one page.
const DATA_MAX: usize = 4096;

/// How many mounts on one path [`unmount`] removes before it gives up.
const STACK_MAX: usize = 128;

/// One parsed mount, ready to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    kind: Kind,
    source: String,
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    data: Vec<String>,
    ids: Option<IdMaps>,
}

/// The kind of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A directory or file that already exists elsewhere.
    Bind,
    /// An instance of the named filesystem.
    Filesystem(String),
}

impl Mount {
    /// Parses a mount in containerd's form (`api/types/mount.proto`), whose options are those of
    /// fstab(5).
    ///
    /// Options that are not flags are data for the filesystem, in the given order. Of contradicting
    /// flags the last one counts.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for NUL bytes, an empty type or a bind mount without source;
    /// `Unimplemented` for `loop` and `remount`.
    pub fn parse(kind: &str, source: &str, options: &[String]) -> Result<Mount> {
        let mut flags = MountFlags::empty();
        let mut propagation = None;
        let mut data = Vec::new();
        let ids = IdMaps::parse(options)?;
        for option in options {
            match effect_of(option) {
                Effect::Set(flag) => flags |= flag,
                Effect::Clear(flag) => flags -= flag,
                Effect::Propagate(how) => propagation = Some(how),
                Effect::Nothing => {}
                Effect::Refuse => return Err(Error::unimplemented(format!("mount of {source:?}: option {option:?} is not supported"))),
                Effect::Data => data.push(option.clone()),
            }
        }
        let bind = flags.contains(MountFlags::BIND) || matches!(kind, "bind" | "rbind");
        if kind == "rbind" {
            flags |= MountFlags::REC;
        }
        if [kind, source].into_iter().chain(data.iter().map(String::as_str)).any(|text| text.contains('\0')) {
            return Err(Error::invalid(format!("mount of {source:?}: NUL byte in type, source or options")));
        }
        if bind && source.is_empty() {
            return Err(Error::invalid("bind mount without a source"));
        }
        if !bind && kind.is_empty() {
            return Err(Error::invalid(format!("mount of {source:?}: no filesystem type")));
        }
        let kind = if bind { Kind::Bind } else { Kind::Filesystem(kind.to_owned()) };
        Ok(Mount { kind, source: source.to_owned(), flags: flags - MountFlags::BIND, propagation, data, ids })
    }

    /// Whether it is a bind mount.
    pub fn is_bind(&self) -> bool {
        self.kind == Kind::Bind
    }

    /// Whether it is read-only.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MountFlags::RDONLY)
    }

    /// The source as containerd gave it: a path for a bind mount, otherwise filesystem-specific.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Makes the mount at `target`, which exists: a directory, or a file for a bind mount of a
    /// file.
    ///
    /// If a later step fails (read-only remount, propagation), the mount is removed again.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` if the target is a symbolic link, or the kernel's error.
    pub fn mount_at(&self, target: &Path) -> Result<()> {
        if let Some(ids) = &self.ids {
            return ids.mount_at(self, target);
        }
        self.attach(&open_target(target)?).context(|| format!("mount {self} at {}", target.display()))?;
        let finished = self.finish(target);
        if finished.is_err() {
            // Report the first error. If the mount cannot be removed now, it is in the caller's
            // record.
            let _ = rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        finished
    }

    fn attach(&self, target: &OwnedFd) -> rustix::io::Result<()> {
        match &self.kind {
            Kind::Bind if self.flags.contains(MountFlags::REC) => {
                rustix::mount::mount_bind_recursive(self.source.as_str(), fd_path(target))
            }
            Kind::Bind => rustix::mount::mount_bind(self.source.as_str(), fd_path(target)),
            Kind::Filesystem(kind) if kind == "overlay" && self.data_len() > DATA_MAX => {
                overlay::mount_many_layers(&self.source, self.flags, &self.data, target)
            }
            Kind::Filesystem(kind) => mount_filesystem(kind, &self.source, self.flags, &self.data, target),
        }
    }

    /// The steps after the mount is made: a bind mount's own flags, and propagation.
    fn finish(&self, target: &Path) -> Result<()> {
        let own_flags = self.flags - MountFlags::REC;
        let remount = self.is_bind() && !own_flags.is_empty();
        if !remount && self.propagation.is_none() {
            return Ok(());
        }
        // Open it again: the earlier descriptor refers to the directory underneath the mount.
        let mounted = open_target(target)?;
        if remount {
            // A remount replaces all flags: without the source's own, `ro` would drop its `nosuid`.
            let flags = own_flags | inherited_flags(&mounted).context(|| format!("flags of {}", target.display()))?;
            rustix::mount::mount_remount(fd_path(&mounted), MountFlags::BIND | flags, "")
                .context(|| format!("remount {self} at {}", target.display()))?;
        }
        if let Some(propagation) = self.propagation {
            rustix::mount::mount_change(fd_path(&mounted), propagation)
                .context(|| format!("propagation of {self} at {}", target.display()))?;
        }
        Ok(())
    }

    fn data_len(&self) -> usize {
        self.data.iter().map(|option| option.len() + 1).sum()
    }
}

impl std::fmt::Display for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.kind {
            Kind::Bind => "bind",
            Kind::Filesystem(kind) => kind,
        };
        write!(f, "{kind} of {:?}", self.source)
    }
}

/// Unmounts everything that is mounted on `path` itself, lazily: a busy mount is detached now and
/// freed with its last user. Symbolic links are not followed.
///
/// It is no error if the path does not exist or is not a mount point.
///
/// # Errors
///
/// The kernel's error, or `Internal` if mounts keep appearing.
pub fn unmount(path: &Path) -> Result<()> {
    for _ in 0..STACK_MAX {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error).context(|| format!("unmount {}", path.display())),
        }
    }
    Err(Error::internal(format!("unmount {}: still mounted after {STACK_MAX} times", path.display())))
}

/// Everything mounted at `path` and below it in our mount namespace, newest first: unmounting in
/// this order works.
///
/// `path` must be absolute and without symbolic links: it is compared as text.
///
/// # Errors
///
/// If mountinfo cannot be read.
pub fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for_each_mount(|entry| {
        if entry.target.starts_with(path) {
            found.push(entry.target);
        }
    })?;
    found.reverse();
    Ok(found)
}

/// A directory that is a mount point: `dir`, or the first one found below it. It checks each
/// directory, so use it for small trees; on a node with thousands of mounts the list of mounts
/// takes longer to read. Files that are mount points are not searched, because the kernel does not
/// remove them.
///
/// # Errors
///
/// The kernel's error. It is no error if `dir` does not exist.
pub fn mounted_in(dir: &Path) -> Result<Option<PathBuf>> {
    let what = || format!("look for mounts in {}", dir.display());
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = match rustix::fs::statx(CWD, dir, flags, StatxFlags::TYPE) {
        Err(Errno::NOENT) => return Ok(None),
        stat => stat.context(what)?,
    };
    // The attribute exists since Linux 5.8.
    if !stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(mounts_below(dir)?.into_iter().next());
    }
    if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(Some(dir.to_owned()));
    }
    for entry in std::fs::read_dir(dir).context(what)? {
        let entry = entry.context(what)?;
        if entry.file_type().context(what)?.is_dir()
            && let Some(mounted) = mounted_in(&entry.path())?
        {
            return Ok(Some(mounted));
        }
    }
    Ok(None)
}

fn mount_filesystem(kind: &str, source: &str, flags: MountFlags, data: &[String], target: &OwnedFd) -> rustix::io::Result<()> {
    let data = CString::new(data.join(",")).map_err(|_| Errno::INVAL)?;
    let data = (!data.is_empty()).then_some(data.as_c_str());
    rustix::mount::mount(source, fd_path(target), kind, flags, data)
}

/// Opens a mount target, and refuses a symbolic link.
fn open_target(target: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(target, flags, Mode::empty()).context(|| format!("mount target {}", target.display()))?;
    let stat = rustix::fs::statat(&opened, "", AtFlags::EMPTY_PATH).context(|| format!("mount target {}", target.display()))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        let message = format!("mount target {} is a symbolic link: it will not be followed", target.display());
        return Err(Error::new(Code::FailedPrecondition, message));
    }
    Ok(opened)
}

/// A path to the file of an `O_PATH` descriptor, even if the file was renamed meanwhile.
fn fd_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The flags that a bind mount got from its source.
fn inherited_flags(mounted: &OwnedFd) -> rustix::io::Result<MountFlags> {
    let present = rustix::fs::fstatvfs(mounted)?.f_flag;
    Ok([
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ]
    .into_iter()
    .filter(|(seen, _)| present.contains(*seen))
    .fold(MountFlags::empty(), |flags, (_, flag)| flags | flag))
}

/// The effect of an option.
enum Effect {
    Set(MountFlags),
    Clear(MountFlags),
    Propagate(MountPropagationFlags),
    Nothing,
    Refuse,
    Data,
}

fn effect_of(option: &str) -> Effect {
    use Effect::{Clear, Nothing, Propagate, Refuse, Set};
    use MountPropagationFlags as Propagation;
    match option {
        "" | "defaults" => Nothing,
        "ro" => Set(MountFlags::RDONLY),
        "rw" => Clear(MountFlags::RDONLY),
        "nosuid" => Set(MountFlags::NOSUID),
        "suid" => Clear(MountFlags::NOSUID),
        "nodev" => Set(MountFlags::NODEV),
        "dev" => Clear(MountFlags::NODEV),
        "noexec" => Set(MountFlags::NOEXEC),
        "exec" => Clear(MountFlags::NOEXEC),
        "sync" => Set(MountFlags::SYNCHRONOUS),
        "async" => Clear(MountFlags::SYNCHRONOUS),
        "dirsync" => Set(MountFlags::DIRSYNC),
        "mand" => Set(MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "nomand" => Clear(MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "noatime" => Set(MountFlags::NOATIME),
        "atime" => Clear(MountFlags::NOATIME),
        "nodiratime" => Set(MountFlags::NODIRATIME),
        "diratime" => Clear(MountFlags::NODIRATIME),
        "relatime" => Set(MountFlags::RELATIME),
        "norelatime" => Clear(MountFlags::RELATIME),
        "strictatime" => Set(MountFlags::STRICTATIME),
        "nostrictatime" => Clear(MountFlags::STRICTATIME),
        "lazytime" => Set(MountFlags::LAZYTIME),
        "nolazytime" => Clear(MountFlags::LAZYTIME),
        "nosymfollow" => Set(MountFlags::NOSYMFOLLOW),
        "symfollow" => Clear(MountFlags::NOSYMFOLLOW),
        "bind" => Set(MountFlags::BIND),
        "rbind" => Set(MountFlags::BIND.union(MountFlags::REC)),
        "private" => Propagate(Propagation::PRIVATE),
        "rprivate" => Propagate(Propagation::PRIVATE.union(Propagation::REC)),
        "shared" => Propagate(Propagation::SHARED),
        "rshared" => Propagate(Propagation::SHARED.union(Propagation::REC)),
        "slave" => Propagate(Propagation::DOWNSTREAM),
        "rslave" => Propagate(Propagation::DOWNSTREAM.union(Propagation::REC)),
        "unbindable" => Propagate(Propagation::UNBINDABLE),
        "runbindable" => Propagate(Propagation::UNBINDABLE.union(Propagation::REC)),
        "loop" | "remount" => Refuse,
        mapped if mapped.starts_with("uidmap=") || mapped.starts_with("gidmap=") => Nothing,
        _ => Effect::Data,
    }
}

#[cfg(test)]
pub(crate) mod tests;
