// SPDX-License-Identifier: Apache-2.0
//! The few fields of a bundle's `config.json` that the Task API itself needs.
//!
//! The OCI runtime reads all of it. We read what decides the ownership of streams, the path of the
//! container's cgroup, and whether its processes end with its init. Paths in it are not followed.

use crate::error::{Context, Error, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use std::io::Read;
use std::path::{Path, PathBuf};

/// At most this much of a `config.json` is read. containerd's are about 20 KiB. Seccomp profiles
/// and thousands of mounts make the largest known ones less than 4 MiB.
const MAX_SIZE: u64 = 16 << 20;

/// The fields of an OCI runtime specification that we use.
#[derive(Debug, Deserialize)]
pub struct Spec {
    #[serde(default)]
    linux: Linux,
    #[serde(default)]
    process: Process,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    cgroups_path: Option<String>,
    #[serde(default)]
    namespaces: Vec<Namespace>,
    #[serde(default)]
    uid_mappings: Vec<Mapping>,
    #[serde(default)]
    gid_mappings: Vec<Mapping>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Mapping {
    #[serde(rename = "containerID")]
    container: u32,
    #[serde(rename = "hostID")]
    host: u32,
    size: u32,
}

#[derive(Debug, Default, Deserialize)]
struct Process {
    #[serde(default)]
    user: User,
}

#[derive(Debug, Default, Deserialize)]
struct User {
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
}

impl Spec {
    /// Reads `config.json` of a bundle, which must be a real directory with a real file in it.
    ///
    /// # Errors
    /// `InvalidArgument` for a bundle that is a symbolic link or not absolute, or whose file does
    /// not parse; `NotFound` if there is no file.
    pub fn read(bundle: &Path) -> Result<Self> {
        parse(&read_bundle(bundle)?).map_err(|e| Error::invalid(format!("{}/config.json is no OCI specification: {e}", bundle.display())))
    }

    /// The path of the container's cgroup.
    pub fn cgroups_path(&self) -> Option<&str> {
        self.linux.cgroups_path.as_deref().filter(|path| !path.is_empty())
    }

    /// Whether the kernel ends all of the container's processes with its init. It does so only if
    /// init is process 1 of its own PID namespace.
    pub fn ends_with_init(&self) -> bool {
        self.linux.namespaces.iter().any(|namespace| namespace.kind == "pid" && namespace.path.is_empty())
    }

    /// The host's user and group ids of the container's program, if it has a user namespace. Its
    /// streams must belong to them.
    pub fn mapped_owner(&self) -> Option<(u32, u32)> {
        if self.linux.uid_mappings.is_empty() {
            return None;
        }
        let host = |mappings: &[Mapping], id: u32| {
            mappings.iter().find(|m| id >= m.container && id - m.container < m.size).and_then(|m| m.host.checked_add(id - m.container))
        };
        Some((host(&self.linux.uid_mappings, self.process.user.uid)?, host(&self.linux.gid_mappings, self.process.user.gid)?))
    }
}

/// Reads the text of a bundle's `config.json`.
///
/// # Errors
/// As [`Spec::read`], without those of parsing.
pub fn read_bundle(bundle: &Path) -> Result<Vec<u8>> {
    check_bundle(bundle)?;
    let path = bundle.join("config.json");
    let dir = rustix::fs::open(bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("cannot open the bundle {}", bundle.display()))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::openat2(&dir, "config.json", flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
        .context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(MAX_SIZE).read_to_end(&mut bytes).context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

/// Parses a specification. Requires an object, because serde would also accept a list of the
/// fields.
fn parse(bytes: &[u8]) -> serde_json::Result<Spec> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(serde::de::Error::custom("it is not a JSON object"));
    }
    serde_json::from_slice(bytes)
}

fn check_bundle(bundle: &Path) -> Result<()> {
    if !bundle.is_absolute() {
        return Err(Error::invalid(format!("the bundle {} is not an absolute path", bundle.display())));
    }
    let stat =
        rustix::fs::statat(CWD, bundle, AtFlags::SYMLINK_NOFOLLOW).context(|| format!("cannot inspect the bundle {}", bundle.display()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Ok(()),
        FileType::Symlink => Err(Error::invalid(format!("the bundle {} is a symbolic link", bundle.display()))),
        _ => Err(Error::invalid(format!("the bundle {} is not a directory", bundle.display()))),
    }
}

/// The directory `rootfs` of a bundle. Makes it if it is missing, and refuses a link.
///
/// # Errors
/// `InvalidArgument` if it is something other than a directory.
pub fn rootfs_dir(bundle: &Path) -> Result<PathBuf> {
    let path = bundle.join("rootfs");
    match rustix::fs::mkdir(&path, Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e).context(|| format!("cannot make {}", path.display())),
    }
    check_bundle(&path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn only_an_object_is_a_specification() {
        for json in ["[]", "null", "\"\"", "", "{", "[{}]"] {
            assert!(parse(json.as_bytes()).is_err(), "{json}");
        }
        assert!(parse(b" {}").is_ok());
    }

    #[test]
    fn only_processes_of_an_own_pid_namespace_end_with_init() {
        assert!(spec(r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#).ends_with_init());
        assert!(!spec(r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#).ends_with_init());
        assert!(!spec(r#"{"linux":{"namespaces":[{"type":"mount"}]}}"#).ends_with_init());
    }

    #[test]
    fn streams_belong_to_the_mapped_user() {
        let maps = r#""uidMappings":[{"containerID":0,"hostID":100000,"size":65536}],"gidMappings":[{"containerID":0,"hostID":200000,"size":65536}]"#;
        let mapped = spec(&format!(r#"{{"process":{{"user":{{"uid":5,"gid":6}}}},"linux":{{{maps}}}}}"#));
        assert_eq!(mapped.mapped_owner(), Some((100_005, 200_006)));
        assert_eq!(spec(r#"{"linux":{}}"#).mapped_owner(), None);
        let outside = spec(&format!(r#"{{"process":{{"user":{{"uid":70000,"gid":6}}}},"linux":{{{maps}}}}}"#));
        assert_eq!(outside.mapped_owner(), None);
    }

    #[test]
    fn a_bundle_that_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::fs::write(real.join("config.json"), "{}").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(Spec::read(&real).is_ok());
        assert_eq!(Spec::read(&link).unwrap_err().code(), crate::error::Code::InvalidArgument);
        assert_eq!(Spec::read(Path::new("real")).unwrap_err().code(), crate::error::Code::InvalidArgument);
        std::os::unix::fs::symlink("/etc", real.join("rootfs")).unwrap();
        assert!(rootfs_dir(&real).is_err());
    }
}
