// SPDX-License-Identifier: Apache-2.0
//! The host's files that the guest sees: one directory, with the root filesystems and volumes of
//! the containers.
//!
//! ```text
//! <pod>/places/                  a tmpfs with the mount points
//! <pod>/share/                   the same tmpfs, read-only, with the mounts; virtiofsd serves it
//!     .secret, .seed             authenticates us to the guest's agent; randomness for a copy of a template;
//!                                both are removed once the agent has them
//!     <container>/rootfs         its root filesystem, mounted only here
//!     <container>/<number>       a volume as a bind mount, read-only if the container has it read-only
//! ```
//!
//! The guest can write only into the mounts. So it cannot put a link where the next mount point
//! will be made.
//!
//! The mounts are in this process's own mount namespace, which ends with the process. So nothing
//! must be cleaned up after a crash, and nothing on the host can be removed through the share.
//! Mounts made on the host appear here too.

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

/// The name of the root filesystem in a container's folder.
pub const ROOTFS: &str = "rootfs";

/// The most submounts that are reported to a guest for a container.
const MAX_SUBMOUNTS: usize = 1024;

/// A pod's share.
#[derive(Debug, Clone)]
pub struct Share {
    dir: PathBuf,
    places: PathBuf,
}

/// A file or directory of the host for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name in the container's folder: a number.
    pub name: String,
    /// Its path on the host.
    pub source: PathBuf,
    /// Whether the guest cannot write to it.
    pub read_only: bool,
    /// Whether mounts below it are included.
    pub recursive: bool,
    /// Whether later mounts of the host below it appear too: the propagation HostToContainer.
    pub follows_host: bool,
}

impl Share {
    /// Moves this process to its own mount namespace, and makes an empty share in the pod's
    /// directory.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn make(pod: &Path) -> Result<Self> {
        let (dir, places) = (pod.join("share"), pod.join("places"));
        unshare(CloneFlags::CLONE_NEWNS).context(|| "cannot make a mount namespace".into())?;
        let what = || "cannot change the propagation of mounts".to_string();
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).context(what)?;
        for dir in [&dir, &places] {
            fs::DirBuilder::new().mode(0o700).create(dir).context(|| format!("cannot make {}", dir.display()))?;
        }
        // It holds only mount points: a few directories and empty files.
        let options = ["nosuid", "nodev", "mode=0755", "size=4m"].map(String::from);
        Mount::parse("tmpfs", "share", &options)?.mount_at(&places)?;
        bind(&places, &dir, true, false)?;
        mount_change(&dir, MountPropagationFlags::SHARED).context(what)?;
        Ok(Self { dir, places })
    }

    /// Makes a secret, and puts it where the guest's agent finds it.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn write_secret(&self) -> Result<Secret> {
        self.write_random(secret::FILE).map(Secret::new)
    }

    /// Makes randomness for the kernel of a guest that begins as a copy of a template, and puts it
    /// where the agent finds it.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn write_seed(&self) -> Result<()> {
        self.write_random::<{ secret::SEED_LENGTH }>(secret::SEED).map(drop)
    }

    fn write_random<const LENGTH: usize>(&self, name: &str) -> Result<[u8; LENGTH]> {
        let mut bytes = [0; LENGTH];
        getrandom(&mut bytes, GetRandomFlags::empty()).context(|| "cannot get random bytes for the pod's secret".into())?;
        let file = fs::File::options().write(true).create_new(true).mode(0o400).open(self.places.join(name));
        file.and_then(|mut file| file.write_all(&bytes)).context(|| "cannot write the pod's secret for the guest".into())?;
        Ok(bytes)
    }

    /// Removes the secret and the seed, once the agent has them.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn remove_secret(&self) -> Result<()> {
        for name in [secret::FILE, secret::SEED] {
            let file = self.places.join(name);
            ignore_missing(fs::remove_file(&file), &file)?;
        }
        Ok(())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of a container's root filesystem.
    pub fn rootfs(&self, container: &ContainerId) -> PathBuf {
        self.dir.join(container.as_str()).join(ROOTFS)
    }

    /// Mounts a container into the share: its root filesystem, from `mounts` or else from its
    /// bundle, and its volumes. [`hide`](Self::hide) removes what a failed call has made.
    ///
    /// # Errors
    /// `Unimplemented` for a volume that cannot be shared; errors of the kernel.
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
            make_mount_point(&volume.source, &place)?;
            bind(&volume.source, &place, volume.read_only, volume.recursive)?;
            if !volume.follows_host {
                // Before others can see it: a copy of this mount would follow the host forever.
                let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                mount_change(&place, alone).context(|| format!("cannot keep later mounts of the host out of {}", place.display()))?;
            }
            let shown = self.dir.join(container.as_str()).join(&volume.name);
            mount_move(&place, &shown).context(|| format!("cannot show the volume {}", volume.source.display()))?;
        }
        Ok(())
    }

    /// The mounts below a container's volumes that are directories, as paths relative to the share.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn submounts(&self, container: &ContainerId) -> Result<Vec<String>> {
        let dir = self.dir.join(container.as_str());
        let mounted = mount::mounts_below(&dir)?;
        // Only mounts below a volume: the guest finds volumes and root filesystem by itself.
        let below = mounted.iter().rev().filter(|at| at.components().count() > dir.components().count() + 1 && at.is_dir());
        Ok(below.filter_map(|at| at.strip_prefix(&self.dir).ok()?.to_str().map(String::from)).take(MAX_SUBMOUNTS).collect())
    }

    /// Removes a container from the share. Idempotent.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn hide(&self, container: &ContainerId) -> Result<()> {
        let dir = self.dir.join(container.as_str());
        let places = self.places.join(container.as_str());
        for dir in [&dir, &places] {
            for mounted in mount::mounts_below(dir)? {
                mount::unmount(&mounted)?;
            }
        }
        ignore_missing(fs::remove_dir_all(&places), &places)
    }

    /// Removes the share. Idempotent.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn remove(&self) -> Result<()> {
        for dir in [&self.dir, &self.places] {
            for mounted in mount::mounts_below(dir)? {
                mount::unmount(&mounted)?;
            }
            ignore_missing(fs::remove_dir(dir), dir)?;
        }
        Ok(())
    }
}

fn ignore_missing(removed: std::io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(|| format!("cannot remove {}", path.display())),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn bind(source: &Path, place: &Path, read_only: bool, recursive: bool) -> Result<()> {
    let options = [if recursive { "rbind" } else { "bind" }, if read_only { "ro" } else { "rw" }].map(String::from);
    Mount::parse("bind", &source.to_string_lossy(), &options)?.mount_at(place)
}

/// Makes a mount point for `source`: a directory or an empty file.
fn make_mount_point(source: &Path, place: &Path) -> Result<()> {
    let stat = rustix::fs::statat(CWD, source, AtFlags::empty()).context(|| format!("cannot inspect the volume {}", source.display()))?;
    let refuse = |what: &str| Err(Error::new(Code::Unimplemented, format!("the volume {} is {what}", source.display())));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => fs::create_dir(place).context(|| format!("cannot make {}", place.display())),
        FileType::RegularFile => fs::write(place, "").context(|| format!("cannot make {}", place.display())),
        FileType::Socket => refuse("a socket: its server runs outside the virtual machine and cannot be reached from inside"),
        FileType::Fifo => refuse("a FIFO: a process outside the virtual machine has its other end"),
        FileType::CharacterDevice | FileType::BlockDevice => refuse("a device of the host, which a virtual machine does not have"),
        FileType::Symlink | FileType::Unknown => refuse("neither a directory nor a file"),
    }
}
