// SPDX-License-Identifier: Apache-2.0
//! The root of a container that is being made, as a descriptor. Its content comes from the image
//! and the volumes. It may be hostile, and may change at any moment: another container of the pod
//! may write to a volume that this one has mounted already.
//!
//! So no path of the host is used here. A path of the container is [resolved](Root::resolve)
//! beneath the root, which gives a path without links. That path is then [opened](Root::open)
//! without following links. So a link that is swapped in meanwhile is an error and not a way out of
//! the root. Links to paths that do not exist are followed as well, as runc does: an image's
//! `/etc/resolv.conf` may point to a file that only a running system has.

use crate::error::{Context, Error, Result};
use rustix::fs::{AtFlags, Dev, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Uid};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The most links that are followed on one path: the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The mode of directories that are made for a mount, as with runc.
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);

/// A container's root.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// A path of the container without links, `.` and `..`, relative to its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inner(PathBuf);

impl Inner {
    /// The absolute path in the container.
    pub fn path(&self) -> PathBuf {
        Path::new("/").join(&self.0)
    }

    /// The path with one more name, which may be a link.
    pub fn join(&self, name: &OsStr) -> Self {
        Self(self.0.join(name))
    }

    /// The parent and the last name; `None` for the root itself.
    pub fn split(&self) -> Option<(Inner, &OsStr)> {
        Some((Inner(self.0.parent()?.into()), self.0.file_name()?))
    }
}

impl Root {
    /// The root that is open as `fd`.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Resolves a path of the container. It need not exist.
    ///
    /// # Errors
    /// `InvalidArgument` for a path with too many links, or the kernel's error.
    pub fn resolve(&self, path: &Path) -> Result<Inner> {
        let what = || format!("cannot follow {} in the container's root", path.display());
        let (mut resolved, mut links) = (PathBuf::new(), 0);
        let mut left: VecDeque<OsString> = names(path);
        while let Some(name) = left.pop_front() {
            if name == ".." {
                resolved.pop();
                continue;
            }
            let next = resolved.join(&name);
            match self.link(&next) {
                Ok(None) => resolved = next,
                Ok(Some(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Error::invalid(format!("{}: too many links", what())));
                    }
                    if target.is_absolute() {
                        resolved = PathBuf::new();
                    }
                    names(&target).into_iter().rev().for_each(|name| left.push_front(name));
                }
                Err(error) => return Err(error).context(what),
            }
        }
        Ok(Inner(resolved))
    }

    /// The target of a link; `None` if the path is not a link or does not exist.
    fn link(&self, path: &Path) -> rustix::io::Result<Option<PathBuf>> {
        let opened = match self.walk(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error),
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        let target = rustix::fs::readlinkat(&opened, "", Vec::new())?;
        Ok(Some(PathBuf::from(OsStr::from_bytes(target.as_bytes()))))
    }

    /// Opens a path without links.
    ///
    /// # Errors
    /// `ELOOP` if a link was put there meanwhile, or the kernel's error.
    pub fn open(&self, inner: &Inner, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.walk(&inner.0, flags)
    }

    fn walk(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        // With PATH and NOFOLLOW the last name may be a link, which itself is opened then.
        let links = if flags.contains(OFlags::PATH | OFlags::NOFOLLOW) { ResolveFlags::NO_MAGICLINKS } else { ResolveFlags::NO_SYMLINKS };
        rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | links)
    }

    /// Makes a directory and its parents, unless they exist, and opens it.
    ///
    /// # Errors
    /// When something else has the name, or the kernel's error.
    pub fn make_dir(&self, inner: &Inner) -> Result<OwnedFd> {
        let what = || format!("cannot make the directory {} in the container's root", inner.path().display());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match self.walk(&inner.0, flags) {
            Err(Errno::NOENT) => {}
            opened => return opened.context(what),
        }
        let mut at = self.0.try_clone().context(what)?;
        for name in inner.0.components() {
            match rustix::fs::mkdirat(&at, name.as_os_str(), DIRECTORY) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).context(what),
            }
            at = beneath(&at, name.as_os_str(), flags).context(what)?;
        }
        Ok(at)
    }

    /// Makes an empty file and its parents, unless the path exists, and opens it.
    ///
    /// # Errors
    /// Those of [`make_dir`](Self::make_dir).
    pub fn make_file(&self, inner: &Inner) -> Result<OwnedFd> {
        let what = || format!("cannot make the file {} in the container's root", inner.path().display());
        match self.walk(&inner.0, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT) => {}
            opened => return opened.context(what),
        }
        let (parent, name) = inner.split().ok_or(Errno::ISDIR).context(what)?;
        let parent = self.make_dir(&parent)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
        match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context(what),
        }
        beneath(&parent, name, OFlags::PATH | OFlags::NOFOLLOW).context(what)
    }

    /// Makes a device node, or a FIFO, with this owner, unless the same one exists.
    ///
    /// # Errors
    /// `EEXIST` if something else has the name, or the kernel's error.
    pub fn make_node(&self, inner: &Inner, node: Node) -> Result<()> {
        let what = || format!("cannot make the device {} in the container's root", inner.path().display());
        let (parent, name) = inner.split().ok_or(Errno::ISDIR).context(what)?;
        let parent = self.make_dir(&parent)?;
        let made = rustix::fs::mknodat(&parent, name, node.kind, Mode::from_raw_mode(node.mode), node.device);
        if !matches!(made, Ok(()) | Err(Errno::EXIST)) {
            return made.context(what);
        }
        // From here on the descriptor is used, in case the name is exchanged.
        let opened = beneath(&parent, name, OFlags::PATH | OFlags::NOFOLLOW).context(what)?;
        let stat = rustix::fs::fstat(&opened).context(what)?;
        if FileType::from_raw_mode(stat.st_mode) != node.kind || (node.kind != FileType::Fifo && stat.st_rdev != node.device) {
            return Err(Errno::EXIST).context(what);
        }
        if made.is_ok() && node.owner != (0, 0) {
            let (uid, gid) = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
            rustix::fs::chownat(&opened, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).context(what)?;
        }
        Ok(())
    }

    /// Makes a symbolic link, unless the path exists. Its parent directory must exist.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn make_link(&self, inner: &Inner, target: &str) -> Result<()> {
        let what = || format!("cannot make the link {} in the container's root", inner.path().display());
        let (parent, name) = inner.split().ok_or(Errno::ISDIR).context(what)?;
        let parent = self.walk(&parent.0, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW).context(what)?;
        match rustix::fs::symlinkat(target, &parent, name) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error).context(what),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A node to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// A character or block device, or a FIFO.
    pub kind: FileType,
    /// Its permissions.
    pub mode: RawMode,
    /// Its numbers.
    pub device: Dev,
    /// Its user and group.
    pub owner: (u32, u32),
}

/// Opens a name in a directory, without following a link.
fn beneath(dir: impl AsFd, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(dir, name, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
}

fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let root = Root::new(fs::File::open(dir.path().join("root")).unwrap().into());
        (dir, root)
    }

    fn follow(root: &Root, path: &str) -> String {
        root.resolve(Path::new(path)).unwrap().path().display().to_string()
    }

    #[test]
    fn links_cannot_lead_out_of_the_root() {
        let (dir, root) = root();
        let inside = dir.path().join("root");
        fs::create_dir_all(inside.join("etc/static")).unwrap();
        symlink("/run/systemd/resolve/stub", inside.join("etc/resolv.conf")).unwrap();
        symlink("../../../../../etc/static/hn", inside.join("etc/hostname")).unwrap();
        symlink("/etc", inside.join("conf")).unwrap();
        symlink("self", inside.join("self")).unwrap();
        for (path, leads) in [
            ("/etc/resolv.conf", "/run/systemd/resolve/stub"),
            ("/etc/hostname", "/etc/static/hn"),
            ("/conf/resolv.conf", "/run/systemd/resolve/stub"),
            ("/conf/../x", "/x"),
            ("/a/..//mnt/", "/mnt"),
            ("/../../etc/passwd", "/etc/passwd"),
            ("/no/such/thing", "/no/such/thing"),
            ("/", "/"),
        ] {
            assert_eq!(follow(&root, path), leads, "{path}");
        }
        assert!(root.resolve(Path::new("/self")).unwrap_err().to_string().contains("too many links"));
    }

    #[test]
    fn missing_paths_are_made_and_existing_ones_kept() {
        let (dir, root) = root();
        let inside = dir.path().join("root");
        symlink("/var/lib/app", inside.join("data")).unwrap();
        root.make_dir(&root.resolve(Path::new("/data/deep")).unwrap()).unwrap();
        assert!(inside.join("var/lib/app/deep").is_dir());
        fs::write(inside.join("var/text"), "kept").unwrap();
        for path in ["/var/text", "/new/file"] {
            root.make_file(&root.resolve(Path::new(path)).unwrap()).unwrap();
        }
        assert_eq!(fs::read_to_string(inside.join("var/text")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(inside.join("new/file")).unwrap(), "");
        let below_a_file = root.resolve(Path::new("/var/text/below")).unwrap();
        assert!(root.make_dir(&below_a_file).is_err());
        root.make_link(&root.resolve(Path::new("/new/link")).unwrap(), "/proc/self/fd").unwrap();
        assert_eq!(fs::read_link(inside.join("new/link")).unwrap(), Path::new("/proc/self/fd"));
    }

    #[test]
    fn a_link_that_is_swapped_in_is_not_followed() {
        let (dir, root) = root();
        let (inside, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir(inside.join("volume")).unwrap();
        fs::create_dir(&outside).unwrap();
        let inner = root.resolve(Path::new("/volume/below/file")).unwrap();
        fs::remove_dir(inside.join("volume")).unwrap();
        symlink(&outside, inside.join("volume")).unwrap();
        assert!(root.make_file(&inner).is_err());
        assert!(root.make_dir(&inner).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_node_gets_its_owner_and_another_file_is_refused() {
        let (dir, root) = root();
        let inner = root.resolve(Path::new("/dev/fifo")).unwrap();
        let own = fs::metadata(dir.path()).unwrap();
        let node = Node { kind: FileType::Fifo, mode: 0o600, device: 0, owner: (own.uid(), own.gid()) };
        root.make_node(&inner, node).unwrap();
        root.make_node(&inner, node).unwrap();
        fs::write(dir.path().join("root/dev/file"), "").unwrap();
        let error = root.make_node(&root.resolve(Path::new("/dev/file")).unwrap(), node).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST));
    }
}
