// SPDX-License-Identifier: Apache-2.0
//! Makes the mounts of a container. Sources of bind mounts are opened on the host, before any
//! process of the container exists. All mounts are made beneath the container's root, on an open
//! descriptor and not on a path (see [`root`](super::root)).
//!
//! As with runc, a missing mount point is made, and only `proc` itself can be mounted on `/proc`.

use super::binds;
use super::root::{Inner, Root};
use crate::error::{Code, Context, Error, Result};
use libcontainer::oci_spec::runtime::Mount;
use libcontainer::rootfs::utils::{is_bind, parse_mount};
use magnetar_sys::namespace::{self, Attributes};
use nix::mount::MsFlags;
use rustix::fs::{CWD, FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde_json::Value;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The files in `/proc` that may be mounted over, because they only show data. runc allows the
/// same.
const IN_PROC: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// One mount, ready to be made.
#[derive(Debug)]
pub struct Prepared {
    destination: PathBuf,
    what: What,
    own: Attributes,
    all: Option<Attributes>,
    propagation: u64,
    recursively: bool,
}

#[derive(Debug)]
enum What {
    /// A detached copy of a tree of the host.
    Bind { tree: OwnedFd, is_dir: bool },
    /// A new filesystem.
    New { kind: String, source: String, data: Vec<String> },
}

impl Prepared {
    /// Opens what a mount needs on the host. `maps` has the mount's id maps from the specification;
    /// `label` is for filesystems without labels of their own.
    ///
    /// # Errors
    /// `NotFound` for a missing source, `InvalidArgument` for invalid options.
    pub fn new(mount: &Mount, maps: &Value, label: Option<&str>) -> Result<Self> {
        let destination = mount.destination().clone();
        let options = parse_mount(mount).map_err(|e| Error::invalid(format!("the mount at {}: {e}", destination.display())))?;
        let kind = mount.typ().clone().unwrap_or_default();
        let what = if is_bind(mount) {
            bind(mount, maps)?
        } else if kind == "cgroup" || kind == "cgroup2" {
            // `adapt` has replaced those of v1 by bind mounts.
            What::New { kind: "cgroup2".into(), source: "cgroup".into(), data: Vec::new() }
        } else {
            let mut data = options.data.clone();
            // proc and sysfs get their labels from the policy.
            data.extend(label.filter(|_| kind != "proc" && kind != "sysfs").map(|label| format!("context={label}")));
            let source = mount.source().as_ref().map(|source| source.display().to_string()).unwrap_or_else(|| kind.clone());
            What::New { kind, source, data }
        };
        let all = options.rec_attr.map(|all| Attributes { set: all.attr_set, clear: all.attr_clr, propagation: 0 });
        // The flags' type is of another version of the crate.
        let own = attributes(MsFlags::from_bits_retain(options.flags.bits()));
        let own = if is_bind(mount) { as_asked(own, mount.options().as_deref().unwrap_or_default()) } else { own };
        let (propagation, recursively) = propagation(mount.options().as_deref().unwrap_or_default());
        Ok(Self { destination, what, own, all, propagation, recursively })
    }

    /// Its destination, from the specification.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Whether it is a bind mount.
    pub fn is_bind(&self) -> bool {
        matches!(self.what, What::Bind { .. })
    }

    /// Makes the mount.
    ///
    /// # Errors
    /// `InvalidArgument` if it may not be mounted there, or the kernel's error.
    pub fn mount(self, root: &Root) -> Result<()> {
        let what = format!("cannot mount {}", self.destination.display());
        let inner = root.resolve(&self.destination)?;
        self.check(&inner)?;
        // /dev is made read-only later, when the devices are in it.
        let on_dev = inner.path() == Path::new("/dev") && !self.is_bind();
        let own = if on_dev { Attributes { set: self.own.set & !libc::MOUNT_ATTR_RDONLY, ..self.own } } else { self.own };
        let (tree, place) = match &self.what {
            What::Bind { tree, is_dir: true } => (tree.try_clone().context(|| what.clone())?, root.make_dir(&inner)?),
            What::Bind { tree, is_dir: false } => (tree.try_clone().context(|| what.clone())?, root.make_file(&inner)?),
            What::New { kind, source, data } => {
                let place = root.make_dir(&inner)?;
                let data = with_mode(kind, data, &place).context(|| what.clone())?;
                (filesystem(kind, source, &data).map_err(|error| named(error, &what))?, place)
            }
        };
        match namespace::set_attributes(&tree, own, false) {
            // In a user namespace some of the node's restrictions are locked, and stay.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && own.clear & RESTRICTIONS != 0 => {
                namespace::set_attributes(&tree, Attributes { clear: own.clear & !RESTRICTIONS, ..own }, false)
            }
            set => set,
        }
        .context(|| what.clone())?;
        if let Some(all) = self.all {
            namespace::set_attributes(&tree, all, true).context(|| what.clone())?;
        }
        let propagation = Attributes { propagation: self.propagation, ..Attributes::default() };
        namespace::set_attributes(&tree, propagation, self.recursively).context(|| what.clone())?;
        match attach(&tree, &place) {
            Err(Errno::NOTDIR) => {
                Err(Error::invalid(format!("{what}: one of its source and its destination is a directory, and the other is not")))
            }
            attached => attached.context(|| what),
        }
    }

    /// Whether it has to be made read-only after everything was made in it.
    pub fn is_read_only(&self) -> bool {
        self.own.set & libc::MOUNT_ATTR_RDONLY != 0
    }

    fn check(&self, inner: &Inner) -> Result<()> {
        let path = inner.path();
        if path == Path::new("/") {
            // A mount on the root would have no effect: processes keep the root that they have.
            return Err(Error::invalid(format!("{:?} cannot be mounted on: it is the container's root", self.destination.display())));
        }
        if let What::New { kind, .. } = &self.what
            && (kind == "proc" || kind == "sysfs")
        {
            // With a link of the image, the masked paths would be elsewhere.
            let asked: PathBuf = Path::new("/").join(self.destination.strip_prefix("/").unwrap_or(&self.destination));
            return match path == asked {
                true => Ok(()),
                false => Err(Error::invalid(format!(
                    "filesystem {kind} must be mounted on ordinary directory, and {} is a link",
                    asked.display()
                ))),
            };
        }
        let Ok(below) = path.strip_prefix("/proc") else { return Ok(()) };
        let is_proc = |tree: &OwnedFd| rustix::fs::fstatfs(tree).is_ok_and(|fs| fs.f_type == libc::PROC_SUPER_MAGIC);
        let allowed = match &self.what {
            What::Bind { tree, .. } if below.as_os_str().is_empty() => is_proc(tree),
            What::Bind { .. } => IN_PROC.iter().any(|name| below == Path::new(name)),
            What::New { .. } => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(Error::invalid(format!("{} cannot be mounted because it is inside /proc", self.destination.display())))
        }
    }
}

/// Makes a mount read-only, after everything was made in it.
///
/// # Errors
/// The kernel's error.
pub fn close(root: &Root, path: &Path) -> Result<()> {
    let what = || format!("cannot make {} read-only", path.display());
    let mounted = root.open(&root.resolve(path)?, OFlags::PATH | OFlags::DIRECTORY).context(what)?;
    let ro = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    namespace::set_attributes(mounted, ro, false).context(what)
}

/// Makes a path read-only, by mounting it over itself.
///
/// # Errors
/// The kernel's error. It is no error if the path does not exist.
pub fn read_only(root: &Root, path: &Path) -> Result<()> {
    let what = || format!("cannot make {} read-only", path.display());
    let place = match root.open(&root.resolve(path)?, OFlags::PATH | OFlags::NOFOLLOW) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        place => place.context(what)?,
    };
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&place, "", flags).context(what)?;
    let ro = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    namespace::set_attributes(&tree, ro, false).context(what)?;
    attach(&tree, &place).context(what)
}

/// Hides a path: a directory by an empty one, anything else by the container's `/dev/null`.
///
/// # Errors
/// The kernel's error. It is no error if the path does not exist.
pub fn mask(root: &Root, path: &Path, null: Option<&OwnedFd>, label: Option<&str>) -> Result<()> {
    let what = || format!("cannot hide {}", path.display());
    let place = match root.open(&root.resolve(path)?, OFlags::PATH | OFlags::NOFOLLOW) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        place => place.context(what)?,
    };
    let is_dir = FileType::from_raw_mode(rustix::fs::fstat(&place).context(what)?.st_mode).is_dir();
    let tree = if is_dir {
        let data: Vec<String> = label.map(|label| format!("context={label}")).into_iter().collect();
        let tree = filesystem("tmpfs", "tmpfs", &data)?;
        namespace::set_attributes(&tree, Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() }, false).context(what)?;
        tree
    } else {
        let null = null.ok_or_else(|| Error::precondition(format!("{}: the container has no /dev/null", what())))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        rustix::mount::open_tree(null, "", flags).context(what)?
    };
    attach(&tree, &place).context(what)
}

/// Makes a detached copy of the tree at a path of the host.
///
/// # Errors
/// `NotFound` if the path does not exist, or the kernel's error.
pub fn copy(source: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, source, flags).context(|| format!("cannot open {} for a mount", source.display()))
}

/// Mounts a detached tree on the open file or directory `place`.
///
/// # Errors
/// The kernel's error.
pub fn attach(tree: impl AsFd, place: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", place, "", flags)
}

/// Makes the tree the root of this process, which must have its own mount namespace. Returns the
/// old root, which stays mounted until [`forget`] is called.
///
/// # Errors
/// The kernel's error.
pub fn enter(tree: impl AsFd) -> Result<OwnedFd> {
    let what = || "cannot enter the container's root".to_string();
    let old = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty()).context(what)?;
    // Any existing directory will do: nothing needs what the mount covers.
    let place = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty()).context(what)?;
    attach(&tree, &place).context(what)?;
    rustix::process::fchdir(&tree).context(what)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root is mounted over the new one, but `/` is
    // the new one.
    rustix::process::pivot_root(".", ".").context(what)?;
    rustix::process::chdir("/").context(what)?;
    Ok(old)
}

/// Unmounts the root from before [`enter`].
///
/// # Errors
/// The kernel's error.
pub fn forget(old: OwnedFd) -> Result<()> {
    let what = || "cannot leave the host's root".to_string();
    rustix::process::fchdir(&old).context(what)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context(what)?;
    rustix::process::chdir("/").context(what)
}

fn bind(mount: &Mount, maps: &Value) -> Result<What> {
    let source =
        mount.source().clone().ok_or_else(|| Error::invalid(format!("the mount at {} has no source", mount.destination().display())))?;
    let options = mount.options().as_deref().unwrap_or_default();
    if options.iter().any(|option| option == "ridmap") {
        return Err(Error::unimplemented(format!("the mount of {} with ridmap: only idmap is supported here", source.display())));
    }
    let tree = copy(&source, options.iter().any(|option| option == "rbind"))?;
    let what = || format!("cannot open {} for a mount", source.display());
    if let Some((uids, gids)) = binds::id_maps(maps)? {
        let user_namespace = namespace::user_namespace(&uids, &gids).context(what)?;
        namespace::map_ids(&tree, &user_namespace).context(what)?;
    }
    let is_dir = FileType::from_raw_mode(rustix::fs::fstat(&tree).context(what)?.st_mode).is_dir();
    Ok(What::Bind { tree, is_dir })
}

/// Makes a new, detached filesystem (fsopen(2)).
fn filesystem(kind: &str, source: &str, data: &[String]) -> Result<OwnedFd> {
    let what = || format!("cannot make a filesystem {kind}");
    let config = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).context(what)?;
    rustix::mount::fsconfig_set_string(&config, "source", source).context(what)?;
    for option in data.iter().filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => rustix::mount::fsconfig_set_string(&config, key, value),
            None => rustix::mount::fsconfig_set_flag(&config, option.as_str()),
        }
        .context(|| format!("{} with the option {option:?}", what()))?;
    }
    rustix::mount::fsconfig_create(&config).context(what)?;
    rustix::mount::fsmount(&config, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).context(what)
}

/// Gives a tmpfs without a mode the mode of the directory that it covers, as runc does.
fn with_mode(kind: &str, data: &[String], place: impl AsFd) -> rustix::io::Result<Vec<String>> {
    let mut data = data.to_vec();
    if kind == "tmpfs" && !data.iter().any(|option| option.starts_with("mode=")) {
        data.push(format!("mode={:o}", rustix::fs::fstat(place)?.st_mode & 0o7777));
    }
    Ok(data)
}

fn named(error: Error, what: &str) -> Error {
    match error.code() {
        Code::Internal if error.errno() == Some(libc::EINVAL) => Error::invalid(format!("{what}: {error}")),
        code => Error::new(code, format!("{what}: {error}")),
    }
}

/// The propagation type in the options, and whether it applies to the existing mounts below as
/// well. The default is that of runc: the container gets the host's later mounts, and the host gets
/// none of the container's. libcontainer ignores these options.
fn propagation(options: &[String]) -> (u64, bool) {
    let asked = options.iter().rev().find_map(|option| {
        let (kind, recursively) = option.strip_prefix('r').map_or((option.as_str(), false), |kind| (kind, true));
        match kind {
            "shared" => Some((libc::MS_SHARED, recursively)),
            "slave" => Some((libc::MS_SLAVE, recursively)),
            "private" => Some((libc::MS_PRIVATE, recursively)),
            "unbindable" => Some((libc::MS_UNBINDABLE, recursively)),
            _ => None,
        }
    });
    asked.unwrap_or((libc::MS_SLAVE, true))
}

/// The attributes by which a mount restricts its use.
const RESTRICTIONS: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// If the options of a bind mount say what it may do, clears all other restrictions, even those of
/// the node's own mount. runc does the same, because it remounts with the given options. Pods run
/// programs from volumes on such mounts.
fn as_asked(own: Attributes, options: &[String]) -> Attributes {
    const SAYS: [&str; 8] = ["ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec"];
    let says = options.iter().any(|option| SAYS.contains(&option.as_str()));
    Attributes { clear: own.clear | if says { RESTRICTIONS & !own.set } else { 0 }, ..own }
}

fn attributes(flags: MsFlags) -> Attributes {
    const PLAIN: [(MsFlags, u64); 5] = [
        (MsFlags::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (MsFlags::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (MsFlags::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (MsFlags::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (MsFlags::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
    ];
    let mut set = PLAIN.iter().filter(|(flag, _)| flags.contains(*flag)).fold(0, |set, (_, attribute)| set | attribute);
    let times = [
        (MsFlags::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
        (MsFlags::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
        (MsFlags::MS_RELATIME, libc::MOUNT_ATTR_RELATIME),
    ];
    let time = times.iter().find(|(flag, _)| flags.contains(*flag));
    set |= time.map_or(0, |(_, attribute)| *attribute);
    Attributes { set, clear: if time.is_some() { libc::MOUNT_ATTR__ATIME } else { 0 }, propagation: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_last_propagation_option_counts() {
        assert_eq!(propagation(&options(&["rbind", "rprivate", "ro"])), (libc::MS_PRIVATE, true));
        assert_eq!(propagation(&options(&["shared"])), (libc::MS_SHARED, false));
        assert_eq!(propagation(&options(&["rslave", "rshared"])), (libc::MS_SHARED, true));
        assert_eq!(propagation(&options(&["rbind", "ro", "relatime"])), (libc::MS_SLAVE, true));
    }

    #[test]
    fn flags_become_attributes_and_one_access_time_flag_clears_the_others() {
        let ro = attributes(MsFlags::MS_RDONLY | MsFlags::MS_NOSUID);
        assert_eq!((ro.set, ro.clear), (libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID, 0));
        let strict = attributes(MsFlags::MS_STRICTATIME);
        assert_eq!((strict.set, strict.clear), (libc::MOUNT_ATTR_STRICTATIME, libc::MOUNT_ATTR__ATIME));
    }

    #[test]
    fn a_bind_with_options_has_no_other_restrictions() {
        let own = attributes(MsFlags::MS_RDONLY);
        let said = as_asked(own, &options(&["rbind", "ro"]));
        assert_eq!((said.set, said.clear), (libc::MOUNT_ATTR_RDONLY, RESTRICTIONS & !libc::MOUNT_ATTR_RDONLY));
        assert_eq!(as_asked(Attributes::default(), &options(&["rbind", "rprivate"])).clear, 0);
        assert_eq!(as_asked(Attributes::default(), &options(&["rbind", "rw"])).clear, RESTRICTIONS);
    }

    #[test]
    fn only_proc_itself_is_mounted_on_proc() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/proc/sys")).unwrap();
        std::os::unix::fs::symlink("/proc", dir.path().join("root/link")).unwrap();
        let root = Root::new(std::fs::File::open(dir.path().join("root")).unwrap().into());
        let check = |kind: &str, destination: &str| {
            let what = What::New { kind: kind.into(), source: kind.into(), data: Vec::new() };
            let own = Attributes::default();
            let mount = Prepared { destination: destination.into(), what, own, all: None, propagation: 0, recursively: false };
            mount.check(&root.resolve(Path::new(destination)).unwrap())
        };
        assert!(check("proc", "/proc").is_ok());
        assert!(check("tmpfs", "/run").is_ok());
        for (kind, destination) in
            [("tmpfs", "/proc"), ("tmpfs", "/proc/sys"), ("tmpfs", "/link/sys"), ("proc", "/link"), ("sysfs", "/link")]
        {
            assert_eq!(check(kind, destination).unwrap_err().code(), Code::InvalidArgument, "{kind} {destination}");
        }
    }
}
