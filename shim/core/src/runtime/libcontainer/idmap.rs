// SPDX-License-Identifier: Apache-2.0
//! Mounts with ids of their own, which libcontainer 0.7 checks but does not make.
//!
//! The maker makes them in a mount namespace of its own, where only the container's init will find
//! them: whatever happens to either, nothing is left mounted on the host.

use crate::error::{Context, Error, Result};
use magnetar_sys::namespace;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A mount with ids of its own.
#[derive(Debug, PartialEq, Eq)]
struct Mapped {
    source: PathBuf,
    recursive: bool,
    uids: String,
    gids: String,
}

/// Makes what `spec` wants mapped below `dir`, and lets it bind that.
///
/// # Errors
/// `InvalidArgument` for maps that are none, and what the kernel says.
pub fn prepare(spec: &mut Value, dir: &Path) -> Result<()> {
    let mut alone = false;
    for (index, mount) in spec.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        let Some(mapped) = take(mount)? else { continue };
        if !alone {
            unshare(CloneFlags::CLONE_NEWNS).context(|| "cannot make a mount namespace".into())?;
            let downstream = MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM;
            rustix::mount::mount_change("/", downstream).context(|| "cannot keep mounts to this process".into())?;
            std::fs::create_dir_all(dir).context(|| format!("cannot make {}", dir.display()))?;
            alone = true;
        }
        let place = dir.join(index.to_string());
        mapped.show_at(&place)?;
        mount["source"] = Value::from(place.to_string_lossy());
    }
    Ok(())
}

/// What is to be mapped of a mount, which is then an ordinary one.
fn take(mount: &mut Value) -> Result<Option<Mapped>> {
    let (uids, gids) = (lines(&mount["uidMappings"])?, lines(&mount["gidMappings"])?);
    let (Some(uids), Some(gids)) = (uids, gids) else { return Ok(None) };
    let source = mount["source"].as_str().map(PathBuf::from).ok_or_else(|| Error::invalid("a mount with mapped ids has no source"))?;
    let options = mount["options"].as_array();
    let has = |name: &str| options.is_some_and(|options| options.iter().any(|option| option == name));
    if has("ridmap") {
        return Err(Error::unimplemented(format!("the mount of {} with ridmap: only idmap is supported here", source.display())));
    }
    let recursive = has("rbind");
    if let Some(options) = mount["options"].as_array_mut() {
        options.retain(|option| option != "idmap");
    }
    if let Some(mount) = mount.as_object_mut() {
        mount.remove("uidMappings");
        mount.remove("gidMappings");
    }
    Ok(Some(Mapped { source, recursive, uids, gids }))
}

/// Maps of the OCI specification as the lines of a `uid_map`; `None` if there are none.
fn lines(maps: &Value) -> Result<Option<String>> {
    let Some(maps) = maps.as_array().filter(|maps| !maps.is_empty()) else { return Ok(None) };
    let line = |map: &Value| {
        let number = |key: &str| map.get(key).and_then(Value::as_u64);
        match (number("containerID"), number("hostID"), number("size")) {
            (Some(inside), Some(outside), Some(size)) => Ok(format!("{inside} {outside} {size}\n")),
            _ => Err(Error::invalid(format!("{map} is no id map"))),
        }
    };
    maps.iter().map(line).collect::<Result<String>>().map(Some)
}

impl Mapped {
    fn show_at(&self, place: &Path) -> Result<()> {
        let what = || format!("cannot map the ids of {}", self.source.display());
        if self.source.is_dir() {
            std::fs::create_dir_all(place).context(what)?;
        } else {
            std::fs::write(place, "").context(what)?;
        }
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if self.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let copy = rustix::mount::open_tree(CWD, &self.source, flags).context(what)?;
        let user_namespace = namespace::user_namespace(&self.uids, &self.gids).context(what)?;
        namespace::map_ids(&copy, &user_namespace).context(what)?;
        rustix::mount::move_mount(&copy, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_taken_is_an_ordinary_mount() {
        let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
        let mut mount = json!({"source": "/v", "options": ["rbind", "idmap", "ro"], "uidMappings": map, "gidMappings": map});
        let mapped = take(&mut mount).unwrap().unwrap();
        let maps = "0 100000 65536\n".to_owned();
        assert_eq!(mapped, Mapped { source: "/v".into(), recursive: true, uids: maps.clone(), gids: maps });
        assert_eq!(mount, json!({"source": "/v", "options": ["rbind", "ro"]}));
        assert_eq!(take(&mut mount).unwrap(), None);
        assert!(take(&mut json!({"source": "/v", "uidMappings": [{}], "gidMappings": [{}]})).is_err());
    }
}
