// SPDX-License-Identifier: Apache-2.0
//! The root of a container that is being made, as a descriptor. What is in it is the image's and the volumes', hostile, and may change
//! at any moment: another container of the pod may write to a volume that this one has mounted already.
//!
//! So nothing here goes by a path of the host. A path of the container is [resolved](Root::resolve) beneath the root, which gives one
//! without links; and it is [walked](Root::open) without following any, so that whatever is swapped in between is an error and not
//! a way out. Where the last parts do not exist, links that lead there are followed all the same, as runc follows them: an image may
//! have `/etc/resolv.conf` point to a file that only a running system has.

use crate::error::{Context, Error, Result};
use rustix::fs::{AtFlags, Dev, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Uid};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// How many links may be followed on one path: the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What directories that are made for a mount have: as with runc.
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);

/// A container's root.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// A path of the container without links, `.` and `..`, relative to its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inner(PathBuf);

impl Inner {
    /// The path as the container has it.
    pub fn path(&self) -> PathBuf {
        Path::new("/").join(&self.0)
    }

    /// The same with one more name, which may be that of a link.
    pub fn join(&self, name: &OsStr) -> Self {
        Self(self.0.join(name))
    }

    /// Its parent and its last name; none for the root itself.
    pub fn split(&self) -> Option<(Inner, &OsStr)> {
        Some((Inner(self.0.parent()?.into()), self.0.file_name()?))
    }
}

impl Root {
    /// The root that is open as `fd`.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Where a path of the container leads. It need not exist.
    ///
    /// # Errors
    /// `InvalidArgument` for a path with too many links, else what the kernel says.
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

    /// Where a link leads to; none for what is no link, or does not exist.
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

    /// Opens what a path without links leads to.
    ///
    /// # Errors
    /// `ELOOP` where somebody has put a link there meanwhile, else what the kernel says.
    pub fn open(&self, inner: &Inner, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.walk(&inner.0, flags)
    }

    fn walk(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        // The last name itself may be a link where it is opened with NOFOLLOW, and then it is what is opened.
        let links = if flags.contains(OFlags::PATH | OFlags::NOFOLLOW) { ResolveFlags::NO_MAGICLINKS } else { ResolveFlags::NO_SYMLINKS };
        rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | links)
    }

    /// Makes a directory with all that is above it, unless it is there. The answer is that directory.
    ///
    /// # Errors
    /// Where something else is in the way, and what the kernel says.
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

    /// Makes an empty file with all directories above it, unless something is there. The answer is what is there.
    ///
    /// # Errors
    /// As [`make_dir`](Self::make_dir).
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

    /// Makes a device node, or a FIFO, with this owner, unless the same is there already.
    ///
    /// # Errors
    /// `EEXIST` where something else is there, and what the kernel says.
    pub fn make_node(&self, inner: &Inner, node: Node) -> Result<()> {
        let what = || format!("cannot make the device {} in the container's root", inner.path().display());
        let (parent, name) = inner.split().ok_or(Errno::ISDIR).context(what)?;
        let parent = self.make_dir(&parent)?;
        let made = rustix::fs::mknodat(&parent, name, node.kind, Mode::from_raw_mode(node.mode), node.device);
        if !matches!(made, Ok(()) | Err(Errno::EXIST)) {
            return made.context(what);
        }
        // From here on it is what is open, whatever becomes of the name.
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

    /// Makes a symbolic link, unless something is there. The directory above must be there.
    ///
    /// # Errors
    /// What the kernel says.
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

/// Opens a name in a directory, and nothing that the name may lead to.
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
    fn links_lead_nowhere_but_into_the_root() {
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
    fn what_is_missing_is_made_and_what_is_there_stays() {
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
    fn a_node_has_its_owner_and_nothing_else_is_taken_for_it() {
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
