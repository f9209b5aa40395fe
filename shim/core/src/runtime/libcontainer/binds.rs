// SPDX-License-Identifier: Apache-2.0
//! Prepares bind mounts of a container with a user namespace, and mounts with mapped ids.
//!
//! libcontainer 0.7 makes bind mounts as the container's root, who may not be allowed to enter the
//! host's directories. It also checks mapped ids but does not apply them. So the maker mounts such
//! sources at a place that the container's root can reach. It does so in a mount namespace of its
//! own, which only the container's init shares. So nothing stays mounted on the host, whatever
//! happens to either process.

use crate::error::{Context, Error, Result};
use magnetar_sys::namespace;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A source to be mounted where the container's root can reach it.
#[derive(Debug, PartialEq, Eq)]
struct Bind {
    source: PathBuf,
    recursive: bool,
    /// Maps for users and groups.
    ids: Option<(String, String)>,
}

/// Mounts such sources of `spec` below `dir`, and makes `spec` bind them from there.
///
/// # Errors
/// `InvalidArgument` for invalid maps, or the kernel's error.
pub fn prepare(spec: &mut Value, dir: &Path) -> Result<()> {
    let mut alone = false;
    let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array);
    let has_users = namespaces.is_some_and(|namespaces| namespaces.iter().any(|namespace| namespace["type"] == "user"));
    for (index, mount) in spec.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        let Some(bind) = take(mount, has_users)? else { continue };
        if !alone {
            unshare(CloneFlags::CLONE_NEWNS).context(|| "cannot make a mount namespace".into())?;
            let downstream = MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM;
            rustix::mount::mount_change("/", downstream).context(|| "cannot keep this process's mounts from the host".into())?;
            std::fs::create_dir_all(dir).context(|| format!("cannot make {}", dir.display()))?;
            alone = true;
        }
        let place = dir.join(index.to_string());
        bind.show_at(&place)?;
        mount["source"] = Value::from(place.to_string_lossy());
    }
    Ok(())
}

/// Takes the source and the maps out of a mount that needs it, and leaves a plain bind mount.
/// `None` for other mounts.
fn take(mount: &mut Value, has_users: bool) -> Result<Option<Bind>> {
    let ids = id_maps(mount)?;
    let options = mount["options"].as_array();
    let has = |name: &str| options.is_some_and(|options| options.iter().any(|option| option == name));
    let is_bind = mount["type"] == "bind" || has("bind") || has("rbind");
    if ids.is_none() && !(is_bind && has_users) {
        return Ok(None);
    }
    let source = mount["source"].as_str().map(PathBuf::from).ok_or_else(|| Error::invalid("a mount with mapped ids has no source"))?;
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
    Ok(Some(Bind { source, recursive, ids }))
}

/// A mount's maps for users and groups, as the lines of a `uid_map`; `None` if it has none.
///
/// # Errors
/// `InvalidArgument` for invalid maps.
pub fn id_maps(mount: &Value) -> Result<Option<(String, String)>> {
    Ok(lines(&mount["uidMappings"])?.zip(lines(&mount["gidMappings"])?))
}

/// Converts maps of the OCI specification to the lines of a `uid_map`; `None` if there are none.
fn lines(maps: &Value) -> Result<Option<String>> {
    let Some(maps) = maps.as_array().filter(|maps| !maps.is_empty()) else { return Ok(None) };
    let line = |map: &Value| {
        let number = |key: &str| map.get(key).and_then(Value::as_u64);
        match (number("containerID"), number("hostID"), number("size")) {
            (Some(inside), Some(outside), Some(size)) => Ok(format!("{inside} {outside} {size}\n")),
            _ => Err(Error::invalid(format!("{map} is not an id map"))),
        }
    };
    maps.iter().map(line).collect::<Result<String>>().map(Some)
}

impl Bind {
    fn show_at(&self, place: &Path) -> Result<()> {
        let what = || format!("cannot mount {} where the container's root can reach it", self.source.display());
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
        if let Some((uids, gids)) = &self.ids {
            let user_namespace = namespace::user_namespace(uids, gids).context(what)?;
            namespace::map_ids(&copy, &user_namespace).context(what)?;
        }
        rustix::mount::move_mount(&copy, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_mount_with_mapped_ids_becomes_a_plain_bind() {
        let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
        let mut mount = json!({"source": "/v", "options": ["rbind", "idmap", "ro"], "uidMappings": map, "gidMappings": map});
        let bind = take(&mut mount, false).unwrap().unwrap();
        let maps = "0 100000 65536\n".to_owned();
        assert_eq!(bind, Bind { source: "/v".into(), recursive: true, ids: Some((maps.clone(), maps)) });
        assert_eq!(mount, json!({"source": "/v", "options": ["rbind", "ro"]}));
        assert!(take(&mut json!({"source": "/v", "uidMappings": [{}], "gidMappings": [{}]}), false).is_err());
    }

    #[test]
    fn with_a_user_namespace_all_bind_mounts_are_taken() {
        let mut mount = json!({"source": "/v", "options": ["bind"]});
        assert_eq!(take(&mut mount, false).unwrap(), None);
        assert_eq!(take(&mut mount, true).unwrap(), Some(Bind { source: "/v".into(), recursive: false, ids: None }));
        assert_eq!(take(&mut json!({"source": "proc", "type": "proc"}), true).unwrap(), None);
    }
}
