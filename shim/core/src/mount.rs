// SPDX-License-Identifier: Apache-2.0
//! Mounts as containerd sends them: a type, a source, and options that mix flags with filesystem data.
//!
//! ```text
//! Mount::parse   "overlay", "overlay", ["ro", "lowerdir=..."]  ->  flags, propagation, data
//! mount_at       one mount; bind mounts get their flags by a remount, as the kernel wants it
//! unmount        everything stacked on one path, lazily; nothing there is success
//! mounts_below   what is mounted at and under a path, in the order to unmount it
//! mounted_in     whether a directory can be removed without emptying what is mounted in it
//! ```
//!
//! A target's last component is never followed if it is a symbolic link: it is opened first, and
//! the mount goes to what was opened. Deliberately absent: loop devices (`loop`), which are refused by name rather than mounted
//! as something else.

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

/// How many mounts stacked on one path [`unmount`] takes away before it gives up.
const STACK_MAX: usize = 128;

/// One mount, understood and ready to be made anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    kind: Kind,
    source: String,
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    data: Vec<String>,
    ids: Option<IdMaps>,
}

/// What mount(2) is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A directory or file that already exists elsewhere.
    Bind,
    /// An instance of the named filesystem.
    Filesystem(String),
}

impl Mount {
    /// Reads a mount in containerd's form (`api/types/mount.proto`), whose options are those of fstab(5).
    ///
    /// What is not a flag is data for the filesystem, in the order given. Of contradicting flags
    /// the last one counts.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for NUL bytes, an empty type or a bind mount without source; `Unimplemented`
    /// for `loop` and `remount`.
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

    /// Whether the mount shows something that exists elsewhere on the host.
    pub fn is_bind(&self) -> bool {
        self.kind == Kind::Bind
    }

    /// Whether nothing can be written through the mount.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MountFlags::RDONLY)
    }

    /// The source as containerd gave it: a path for a bind mount, else what the filesystem makes of it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Makes the mount at `target`, which exists: a directory, or a file for a bind mount of a file.
    ///
    /// If a later step fails (read-only remount, propagation), the mount is taken away again.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` if the target is a symbolic link, else what the kernel says.
    pub fn mount_at(&self, target: &Path) -> Result<()> {
        if let Some(ids) = &self.ids {
            return ids.mount_at(self, target);
        }
        self.attach(&open_target(target)?).context(|| format!("mount {self} at {}", target.display()))?;
        let finished = self.finish(target);
        if finished.is_err() {
            // The first error is the one to tell; what cannot be undone now is in the caller's record.
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

    /// The steps that need the mount to be there: a bind mount's own flags, and propagation.
    fn finish(&self, target: &Path) -> Result<()> {
        let own_flags = self.flags - MountFlags::REC;
        let remount = self.is_bind() && !own_flags.is_empty();
        if !remount && self.propagation.is_none() {
            return Ok(());
        }
        // Opened again, because what was opened before the mount lies underneath it now.
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

/// Takes away everything that is mounted on `path` itself, lazily: busy mounts disappear from sight now
/// and from memory with their last user. Symbolic links are not followed.
///
/// A path that does not exist or is not a mount point is success.
///
/// # Errors
///
/// What the kernel says, or `Internal` if mounts keep appearing.
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

/// Everything mounted at `path` and below it in our mount namespace, newest first: unmounting in this order works.
///
/// `path` is compared as it is: absolute and without symbolic links.
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

/// The first directory found on which something is mounted: `dir`, or one below it. For directories that hold little, each of
/// which it looks at: on a node with thousands of mounts their list takes longer to read. A file that is mounted upon is not
/// looked for, since the kernel does not remove it.
///
/// # Errors
///
/// What the kernel says. A directory that is not there is no error.
pub fn mounted_in(dir: &Path) -> Result<Option<PathBuf>> {
    let what = || format!("look for mounts in {}", dir.display());
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = match rustix::fs::statx(CWD, dir, flags, StatxFlags::TYPE) {
        Err(Errno::NOENT) => return Ok(None),
        stat => stat.context(what)?,
    };
    // Since Linux 5.8.
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

/// Opens what is to be mounted upon, unless it is a symbolic link.
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

/// A name for what an `O_PATH` descriptor refers to, whatever has been renamed meanwhile.
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

/// What one option asks for.
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
