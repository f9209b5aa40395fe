// SPDX-License-Identifier: Apache-2.0
//! Makes the device nodes of a container, and the usual links in /dev. They are made by descriptor
//! beneath the container's root, because a device may be below a volume in which another container
//! exchanges directories and links (see [`root`](super::root)).

use super::mounts;
use super::root::{Node, Root};
use crate::error::{Context, Error, Result};
use libcontainer::oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use libcontainer::rootfs::utils::default_devices;
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The links in every container, as runc makes them.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// One device to be made.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    node: Node,
    /// The host's node, if the container cannot make one because it has a user namespace.
    bound: Option<OwnedFd>,
}

/// The devices of a specification, and those that every container has. With `bind`, the host's
/// nodes are opened.
///
/// # Errors
/// `InvalidArgument` for invalid numbers, `NotFound` for a node that the host does not have.
pub fn of(spec: &Spec, bind: bool) -> Result<Vec<Device>> {
    let given = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    let mut all: BTreeMap<PathBuf, LinuxDevice> = default_devices().into_iter().map(|device| (device.path().clone(), device)).collect();
    all.extend(given.iter().map(|device| (device.path().clone(), device.clone())));
    all.into_values().map(|device| Device::new(&device, bind)).collect()
}

impl Device {
    fn new(device: &LinuxDevice, bind: bool) -> Result<Self> {
        let path = device.path().clone();
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => return Err(Error::invalid(format!("device {} must have a single type", path.display()))),
        };
        let number = |number: i64| {
            u32::try_from(number).map_err(|_| Error::invalid(format!("{number} is not a device number, for {}", path.display())))
        };
        let numbers = match kind {
            FileType::Fifo => 0,
            _ => rustix::fs::makedev(number(device.major())?, number(device.minor())?),
        };
        let owner = (device.uid().unwrap_or_default(), device.gid().unwrap_or_default());
        let node = Node { kind, mode: device.file_mode().unwrap_or(0o666) & 0o7777, device: numbers, owner };
        let bound = if bind && kind != FileType::Fifo { Some(mounts::copy(&path, false)?) } else { None };
        Ok(Self { path, node, bound })
    }

    fn make(&self, root: &Root) -> Result<()> {
        let inner = root.resolve(&self.path)?;
        match &self.bound {
            Some(tree) => {
                let place = root.make_file(&inner)?;
                mounts::attach(tree, &place).context(|| format!("cannot mount the device {}", self.path.display()))
            }
            None => root.make_node(&inner, self.node),
        }
    }
}

/// Makes all devices and links. The caller's umask must be 0.
///
/// # Errors
/// The first failure.
pub fn make(root: &Root, devices: &[Device]) -> Result<()> {
    for device in devices {
        device.make(root)?;
    }
    for (path, target) in LINKS {
        root.make_link(&root.resolve_parent(Path::new(path))?, target)?;
    }
    if root.open(&root.resolve(Path::new("/proc/kcore"))?, OFlags::PATH).is_ok() {
        root.make_link(&root.resolve_parent(Path::new("/dev/core"))?, "/proc/kcore")?;
    }
    // Replace whatever the image has there, so that the container uses its own terminals and not
    // the host's.
    let ptmx = root.resolve_parent(Path::new("/dev/ptmx"))?;
    root.remove_file(&ptmx)?;
    root.make_link(&ptmx, "pts/ptmx")
}

/// The container's own `/dev/null`, which must be the real one.
///
/// # Errors
/// `FailedPrecondition` for anything else of that name.
pub fn null(root: &Root) -> Result<OwnedFd> {
    let what = || "cannot open the container's /dev/null".to_string();
    let null = root.open(&root.resolve(Path::new("/dev/null"))?, OFlags::RDWR | OFlags::NOFOLLOW).context(what)?;
    let stat = rustix::fs::fstat(&null).context(what)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(Error::precondition("the container's /dev/null is another device"));
    }
    Ok(null)
}

impl Root {
    /// Resolves a path of the container without its last name, which may be a link itself.
    ///
    /// # Errors
    /// Those of [`resolve`](Self::resolve).
    fn resolve_parent(&self, path: &Path) -> Result<super::root::Inner> {
        let name = path.file_name().ok_or_else(|| Error::invalid(format!("{} has no name", path.display())))?;
        Ok(self.resolve(path.parent().unwrap_or(Path::new("/")))?.join(name))
    }

    /// Removes a file or link. It is no error if it does not exist.
    fn remove_file(&self, inner: &super::root::Inner) -> Result<()> {
        let what = || format!("cannot remove {} of the container", inner.path().display());
        let Some((parent, name)) = inner.split() else { return Err(Errno::ISDIR).context(what) };
        let parent = self.open(&parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW).context(what)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).context(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_device_replaces_a_default_one() {
        let text = r#"{"ociVersion":"1.1.0","root":{"path":"r"},"linux":{"devices":[
            {"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":384,"uid":5,"gid":6},
            {"path":"/blk","type":"b","major":7,"minor":0}]}}"#;
        let devices = of(&serde_json::from_str(text).unwrap(), false).unwrap();
        let paths: Vec<_> = devices.iter().map(|device| device.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/blk", "/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"]);
        assert_eq!((devices[2].node.mode, devices[2].node.owner), (0o600, (5, 6)));
        assert_eq!((devices[0].node.kind, devices[0].node.device), (FileType::BlockDevice, rustix::fs::makedev(7, 0)));
        let text = text.replace("\"major\":7", "\"major\":-7");
        assert!(of(&serde_json::from_str(&text).unwrap(), false).is_err());
    }
}
