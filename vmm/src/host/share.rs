// SPDX-License-Identifier: Apache-2.0
//! What the guest gets to see of the host's files: one directory, with a container's root filesystem and volumes in it.
//!
//! ```text
//! <pod>/places/                  a tmpfs, in which the places to mount upon are made
//! <pod>/share/                   the same, read-only, with what is mounted: what virtiofsd serves
//!     .secret                    what the guest's agent will know us by; only until it does
//!     <container>/rootfs         its root filesystem, mounted here and nowhere else
//!     <container>/<number>       a volume, by a bind mount: read-only where the container has it read-only
//! ```
//!
//! The guest can write into what is mounted, and nowhere else: it cannot put a link where the next place is to be made.
//!
//! All of it is in a mount namespace of this process, which is gone with the process: there is nothing to clean up after a
//! crash, and nothing on the host that could be removed through it. Mounts that are made on the host appear in here as well.

use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::ids::ContainerId;
use magnetar_core::mount::{self, Mount};
use magnetar_vm_agent_api::secret::{self, Secret};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, CWD, FileType};
use rustix::mount::{MountPropagationFlags, mount_change, mount_move};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The root filesystem of a container, in its folder.
pub const ROOTFS: &str = "rootfs";

/// The most directories that a guest is told to enter for a container.
const MOST_SUBMOUNTS: usize = 1024;

/// A pod's share.
#[derive(Debug, Clone)]
pub struct Share {
    dir: PathBuf,
    places: PathBuf,
}

/// Something of the host for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name in the container's folder: a number.
    pub name: String,
    /// Where it is on the host.
    pub source: PathBuf,
    /// Whether the guest may not write to it.
    pub read_only: bool,
    /// Whether what is mounted below it comes along.
    pub recursive: bool,
    /// Whether what the host mounts below it later does, too: the propagation HostToContainer.
    pub follows_host: bool,
}

impl Share {
    /// Takes this process to a mount namespace of its own, and makes an empty share in it, in the pod's directory.
    /// To be called once, by the thread that does everything.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make(pod: &Path) -> Result<Self> {
        let (dir, places) = (pod.join("share"), pod.join("places"));
        unshare(CloneFlags::CLONE_NEWNS).context(|| "cannot make a mount namespace".into())?;
        let what = || "cannot keep mounts to this process".to_string();
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).context(what)?;
        for dir in [&dir, &places] {
            fs::DirBuilder::new().mode(0o700).create(dir).context(|| format!("cannot make {}", dir.display()))?;
        }
        // It holds only what is mounted upon: a few directories and empty files.
        let options = ["nosuid", "nodev", "mode=0755", "size=4m"].map(String::from);
        Mount::parse("tmpfs", "share", &options)?.mount_at(&places)?;
        bind(&places, &dir, true, false)?;
        mount_change(&dir, MountPropagationFlags::SHARED).context(what)?;
        Ok(Self { dir, places })
    }

    /// Makes a secret, and leaves it where the guest's agent finds it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn tell_secret(&self) -> Result<Secret> {
        let mut bytes = [0; secret::LENGTH];
        getrandom(&mut bytes, GetRandomFlags::empty()).context(|| "cannot get random bytes for the pod's secret".into())?;
        let secret = Secret::new(bytes);
        let file = fs::File::options().write(true).create_new(true).mode(0o400).open(self.places.join(secret::FILE));
        file.and_then(|mut file| file.write_all(secret.bytes())).context(|| "cannot leave the pod's secret for the guest".into())?;
        Ok(secret)
    }

    /// Takes it away again, when the agent has it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forget_secret(&self) -> Result<()> {
        let file = self.places.join(secret::FILE);
        gone(fs::remove_file(&file), &file)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a container's root filesystem is.
    pub fn rootfs(&self, container: &ContainerId) -> PathBuf {
        self.dir.join(container.as_str()).join(ROOTFS)
    }

    /// Shows the guest a container: its root filesystem, from `mounts` or else from its bundle, and its volumes. What a
    /// failed call has made, [`hide`](Self::hide) takes away.
    ///
    /// # Errors
    /// `Unimplemented` for what cannot be shared, and what the kernel says.
    pub fn show(&self, container: &ContainerId, bundle_rootfs: &Path, mounts: &[Mount], volumes: &[Volume]) -> Result<()> {
        let rootfs = self.rootfs(container);
        let places = self.places.join(container.as_str());
        fs::create_dir_all(places.join(ROOTFS)).context(|| format!("cannot make {}", places.display()))?;
        for mount in mounts {
            mount.mount_at(&rootfs)?;
        }
        if mounts.is_empty() {
            bind(bundle_rootfs, &rootfs, false, true)?;
        }
        for volume in volumes {
            let place = places.join(&volume.name);
            make_place(&volume.source, &place)?;
            bind(&volume.source, &place, volume.read_only, volume.recursive)?;
            if !volume.follows_host {
                // Before it is where others see it, whose copies would follow the host for good.
                let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                mount_change(&place, alone).context(|| format!("cannot keep later mounts of the host out of {}", place.display()))?;
            }
            let shown = self.dir.join(container.as_str()).join(&volume.name);
            mount_move(&place, &shown).context(|| format!("cannot show the volume {}", volume.source.display()))?;
        }
        Ok(())
    }

    /// The directories of a container's volumes on which something of its own is mounted, as paths below the share.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn submounts(&self, container: &ContainerId) -> Result<Vec<String>> {
        let dir = self.dir.join(container.as_str());
        let mounted = mount::mounts_below(&dir)?;
        // Below a volume: it and the root filesystem are found by the guest on its way.
        let below = mounted.iter().rev().filter(|at| at.components().count() > dir.components().count() + 1 && at.is_dir());
        Ok(below.filter_map(|at| at.strip_prefix(&self.dir).ok()?.to_str().map(String::from)).take(MOST_SUBMOUNTS).collect())
    }

    /// Takes away what a container was shown. Idempotent.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn hide(&self, container: &ContainerId) -> Result<()> {
        let dir = self.dir.join(container.as_str());
        let places = self.places.join(container.as_str());
        for dir in [&dir, &places] {
            for mounted in mount::mounts_below(dir)? {
                mount::unmount(&mounted)?;
            }
        }
        gone(fs::remove_dir_all(&places), &places)
    }

    /// Takes all of it away. Idempotent.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self) -> Result<()> {
        for dir in [&self.dir, &self.places] {
            for mounted in mount::mounts_below(dir)? {
                mount::unmount(&mounted)?;
            }
            gone(fs::remove_dir(dir), dir)?;
        }
        Ok(())
    }
}

fn gone(removed: std::io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(|| format!("cannot remove {}", path.display())),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn bind(source: &Path, place: &Path, read_only: bool, recursive: bool) -> Result<()> {
    let options = [if recursive { "rbind" } else { "bind" }, if read_only { "ro" } else { "rw" }].map(String::from);
    Mount::parse("bind", &source.to_string_lossy(), &options)?.mount_at(place)
}

/// A directory or an empty file to mount upon.
fn make_place(source: &Path, place: &Path) -> Result<()> {
    let stat = rustix::fs::statat(CWD, source, AtFlags::empty()).context(|| format!("cannot look at the volume {}", source.display()))?;
    let refuse = |what: &str| Err(Error::new(Code::Unimplemented, format!("the volume {} is {what}", source.display())));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => fs::create_dir(place).context(|| format!("cannot make {}", place.display())),
        FileType::RegularFile => fs::write(place, "").context(|| format!("cannot make {}", place.display())),
        FileType::Socket => refuse("a socket: who listens there is outside of the virtual machine, and cannot be reached by a file"),
        FileType::Fifo => refuse("a FIFO: whoever has its other end is outside of the virtual machine"),
        FileType::CharacterDevice | FileType::BlockDevice => refuse("a device of the host, which a virtual machine does not have"),
        FileType::Symlink | FileType::Unknown => refuse("neither a directory nor a file"),
    }
}
