// SPDX-License-Identifier: Apache-2.0
//! The content of a container's root: mounts, devices, links, and hidden and read-only paths. The
//! maker opens what is needed on the host. The container's first process makes them, after it has
//! left the host's root.

use super::exec::set_console;
use super::label;
use super::mounts::{self, Prepared};
use super::nodes::{self, Device};
use super::root::Root;
use crate::error::{Context, Error, Result};
use libcontainer::oci_spec::runtime::Spec;
use magnetar_sys::namespace::{self, Attributes};
use rustix::fs::{FileType, Mode, OFlags};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Everything that will be made in the container's root.
#[derive(Debug)]
pub struct Inside {
    mounts: Vec<Prepared>,
    devices: Vec<Device>,
    is_read_only: bool,
    label: Option<String>,
    console: Option<UnixStream>,
}

impl Inside {
    /// Opens what is needed on the host. With `bind_devices`, the host's device nodes are bound,
    /// because the container cannot make nodes. A new terminal's master is sent to `console`.
    ///
    /// # Errors
    /// `NotFound` for a missing file, `InvalidArgument` for invalid settings.
    pub fn prepare(spec: &Spec, json: &Value, bind_devices: bool, console: Option<UnixStream>) -> Result<Self> {
        let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
        let label = label.filter(|label| !label.is_empty() && label::is_enabled());
        let maps = json["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut prepared = Vec::new();
        for (index, mount) in spec.mounts().as_deref().unwrap_or_default().iter().enumerate() {
            prepared.push(Prepared::new(mount, maps.get(index).unwrap_or(&Value::Null), label.as_deref())?);
        }
        Ok(Self {
            mounts: prepared,
            devices: nodes::of(spec, bind_devices)?,
            is_read_only: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or_default(),
            label,
            console,
        })
    }

    /// Makes all of it. `old` is the host's root, if it has not been unmounted yet.
    ///
    /// # Errors
    /// The first failure.
    pub fn set_up(mut self, spec: &Spec, old: Option<OwnedFd>) -> Result<()> {
        let process = spec.process().as_ref().ok_or_else(|| Error::internal("no process"))?;
        let linux = spec.linux().as_ref().ok_or_else(|| Error::internal("no linux"))?;
        let root = Root::new(open_root()?);
        let umask = rustix::process::umask(Mode::empty());
        let is_bound = self.mounts.iter().any(|mount| mount.is_bind() && is_dev(mount.destination()));
        let read_only_dev = self.mounts.iter().any(|mount| !mount.is_bind() && is_dev(mount.destination()) && mount.is_read_only());
        for mount in self.mounts.drain(..) {
            mount.mount(&root)?;
        }
        // A /dev that is bound from the host stays as it is.
        if !is_bound {
            nodes::make(&root, &self.devices)?;
        }
        rustix::process::umask(umask);
        if let Some(old) = old {
            mounts::forget(old)?;
        }
        if read_only_dev {
            mounts::close(&root, Path::new("/dev"))?;
        }
        let null = match nodes::null(&root) {
            // A container with a /dev of its own may have no /dev/null.
            Err(error) if is_bound && error.errno() == Some(libc::ENOENT) => None,
            null => Some(null?),
        };
        if let Some(null) = &null {
            replace_null(null)?;
        }
        set_propagation(&root, linux.rootfs_propagation().as_deref())?;
        set_sysctls(&root, linux.sysctl().iter().flatten())?;
        if let Some(console) = self.console.take() {
            set_console(console, true, Some(process))?;
        }
        make_working_directory(&root, process.cwd())?;
        if self.is_read_only {
            mounts::close(&root, Path::new("/"))?;
        }
        for path in linux.readonly_paths().iter().flatten() {
            mounts::read_only(&root, Path::new(path))?;
        }
        for path in linux.masked_paths().iter().flatten() {
            mounts::mask(&root, Path::new(path), null.as_ref(), self.label.as_deref())?;
        }
        Ok(())
    }
}

fn open_root() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/", flags, Mode::empty()).context(|| "cannot open the container's root".into())
}

fn is_dev(destination: &Path) -> bool {
    destination.components().eq(Path::new("/dev").components())
}

/// Replaces streams that are the host's /dev/null by the container's.
fn replace_null(null: &OwnedFd) -> Result<()> {
    let what = || "cannot set the process's streams".to_string();
    let number = rustix::fs::fstat(null).context(what)?.st_rdev;
    let is_null = |stream: rustix::io::Result<rustix::fs::Stat>| {
        stream.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == number)
    };
    if is_null(rustix::fs::fstat(std::io::stdin())) {
        rustix::stdio::dup2_stdin(null).context(what)?;
    }
    if is_null(rustix::fs::fstat(std::io::stdout())) {
        rustix::stdio::dup2_stdout(null).context(what)?;
    }
    if is_null(rustix::fs::fstat(std::io::stderr())) {
        rustix::stdio::dup2_stderr(null).context(what)?;
    }
    Ok(())
}

/// Sets the propagation of the container's root. The values have no leading `r`, which `adapt` has
/// removed.
fn set_propagation(root: &Root, propagation: Option<&str>) -> Result<()> {
    let propagation = match propagation {
        Some("shared") => libc::MS_SHARED,
        Some("unbindable") => libc::MS_UNBINDABLE,
        Some("private" | "slave") | None => return Ok(()),
        Some(other) => return Err(Error::invalid(format!("{other:?} is not a propagation of a root filesystem"))),
    };
    let attributes = Attributes { propagation, ..Attributes::default() };
    namespace::set_attributes(root, attributes, false).context(|| "cannot set the propagation of the container's root".into())
}

/// Sets sysctls of the container's own namespaces, through the kernel's /proc and not through a
/// file that the image has put there.
fn set_sysctls<'a>(root: &Root, sysctls: impl Iterator<Item = (&'a String, &'a String)>) -> Result<()> {
    for (name, value) in sysctls {
        let what = || format!("cannot set the sysctl {name} = {value:?}");
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        let file = root.open(&root.resolve(&path)?, OFlags::WRONLY | OFlags::NOCTTY).context(what)?;
        if rustix::fs::fstatfs(&file).context(what)?.f_type != libc::PROC_SUPER_MAGIC {
            return Err(Error::precondition(format!("{}: the container has no /proc of its own", what())));
        }
        File::from(file).write_all(value.as_bytes()).context(what)?;
    }
    Ok(())
}

/// Makes a missing working directory, as runc does, because the program runs in it.
fn make_working_directory(root: &Root, cwd: &Path) -> Result<()> {
    if cwd.as_os_str().is_empty() {
        return Ok(());
    }
    match root.make_dir(&root.resolve(cwd)?) {
        // The process itself reports what is wrong when it changes to the directory. On NFS, for
        // example, root may not be allowed where the user is.
        Err(error) if matches!(error.errno(), Some(libc::EPERM | libc::EACCES | libc::EROFS | libc::EEXIST | libc::ENOTDIR)) => Ok(()),
        made => made.map(drop),
    }
}
