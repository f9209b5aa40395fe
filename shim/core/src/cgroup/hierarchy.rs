// SPDX-License-Identifier: Apache-2.0
//! Finds the mounted cgroup hierarchies, and in them the directory of a process or a path.
//!
//! Formats: /proc/PID/cgroup is described in cgroups(7), mountinfo in proc_pid_mountinfo(5), slices
//! in systemd.slice(5).

use super::{Cgroup, UNIFIED};
use crate::error::{Error, Result};
use crate::mount::{MountEntry, for_each_mount};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

/// The v1 controllers by which a process's own place is found, most reliable first: every runtime
/// joins a freezer, because it pauses containers with it.
pub(super) const DECISIVE: [&str; 5] = ["freezer", "memory", "pids", "cpu", "devices"];

/// Mount options of v1 hierarchies that are not controllers (those with `=` apart).
const NOT_CONTROLLERS: [&str; 9] =
    ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods", "nofavordynmods", "seclabel"];

/// The hierarchies of this mount namespace.
#[derive(Debug, Default)]
pub(super) struct Hierarchies {
    /// The v1 hierarchies by controller or name, and a hybrid system's v2 as [`UNIFIED`].
    v1: BTreeMap<String, Vec<MountPoint>>,
    v2: Vec<MountPoint>,
}

/// A hierarchy, or the part of it below `root`, mounted at `target`.
#[derive(Debug, Clone)]
struct MountPoint {
    root: PathBuf,
    target: PathBuf,
}

impl Hierarchies {
    /// The mounted hierarchies. They are read once, because they do not change and a node's list of
    /// mounts is long.
    pub(super) fn mounted() -> Result<&'static Hierarchies> {
        static MOUNTED: OnceLock<Hierarchies> = OnceLock::new();
        if let Some(known) = MOUNTED.get() {
            return Ok(known);
        }
        let mut found = Hierarchies::default();
        for_each_mount(|entry| found.add(&entry))?;
        if found.v1.is_empty() && found.v2.is_empty() {
            return Err(Error::precondition("no cgroup hierarchy is mounted"));
        }
        Ok(MOUNTED.get_or_init(|| found))
    }

    pub(super) fn add(&mut self, entry: &MountEntry) {
        let mount_point = || MountPoint { root: entry.root.clone(), target: entry.target.clone() };
        match entry.fs_type.as_str() {
            "cgroup2" => self.v2.push(mount_point()),
            "cgroup" => {
                let is_key = |option: &&str| option.starts_with("name=") || !(option.contains('=') || NOT_CONTROLLERS.contains(option));
                for key in entry.super_options.split(',').filter(is_key) {
                    self.v1.entry(key.to_owned()).or_default().push(mount_point());
                }
            }
            _ => {}
        }
    }

    /// Whether the controllers are in v1. A named hierarchy alone (systemd's) does not count.
    fn is_v1(&self) -> bool {
        self.v1.keys().any(|key| !key.starts_with("name="))
    }

    pub(super) fn at(&self, path: &str) -> Result<Cgroup> {
        let path = relative_path(path)?;
        let place = |mount_points: &[MountPoint]| mount_points.first().map(|first| join(&first.target, &path));
        if !self.is_v1() {
            let dir = place(&self.v2).ok_or_else(|| Error::precondition("no cgroup v2 hierarchy is mounted"))?;
            return Ok(Cgroup::V2 { dir });
        }
        let mut dirs: BTreeMap<_, _> = self.v1.iter().filter_map(|(key, mounts)| Some((key.clone(), place(mounts)?))).collect();
        dirs.extend(place(&self.v2).map(|dir| (UNIFIED.to_owned(), dir)));
        Ok(Cgroup::V1 { dirs })
    }

    /// `membership` is the content of /proc/PID/cgroup: lines of `<id>:<controllers>:<path>`, where
    /// v2 has no controllers.
    pub(super) fn of_process(&self, membership: &str) -> Result<Cgroup> {
        let lines = || membership.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let outside = |path: &str| Error::not_found(format!("cgroup {path:?} is gone, or outside of the mounted hierarchies"));
        if !self.is_v1() {
            let path = lines().find(|(controllers, _)| controllers.is_empty()).map_or("", |(_, path)| path);
            let dir = locate(&self.v2, path).ok_or_else(|| outside(path))?;
            return Ok(Cgroup::V2 { dir });
        }
        let path_of = |controller: &str| lines().find(|(list, _)| list.split(',').any(|one| one == controller)).map(|(_, path)| path);
        let own = DECISIVE.iter().filter_map(|controller| path_of(controller)).find(|path| *path != "/").unwrap_or("/");
        let mut dirs = BTreeMap::new();
        for (controllers, _) in lines().filter(|(_, path)| *path == own) {
            for controller in controllers.split(',') {
                let (key, mount_points) = match controller {
                    "" => (UNIFIED, Some(&self.v2)),
                    controller => (controller, self.v1.get(controller)),
                };
                dirs.extend(mount_points.and_then(|mounts| locate(mounts, own)).map(|dir| (key.to_owned(), dir)));
            }
        }
        match dirs.is_empty() {
            true => Err(outside(own)),
            false => Ok(Cgroup::V1 { dirs }),
        }
    }
}

/// The directory of a cgroup. `path` is its place in the hierarchy; a mount's root says which part
/// of the hierarchy is mounted.
fn locate(mount_points: &[MountPoint], path: &str) -> Option<PathBuf> {
    // The path of a process outside our cgroup namespace begins with `/..`; that of a removed
    // cgroup ends with ` (deleted)`.
    let goes_up = |path: &Path| path.components().any(|part| part == Component::ParentDir);
    let below_root =
        |mount: &MountPoint| Some(join(&mount.target, Path::new(path).strip_prefix(&mount.root).ok().filter(|rest| !goes_up(rest))?));
    match path.starts_with('/') && !path.ends_with(" (deleted)") {
        true => mount_points.iter().find_map(below_root),
        false => None,
    }
}

/// `Path::join`, without the trailing slash that it appends for an empty path.
fn join(base: &Path, rest: &Path) -> PathBuf {
    base.components().chain(rest.components()).collect()
}

/// Converts a cgroupfs path, a systemd triple or a slice to a path below the root of a hierarchy.
fn relative_path(path: &str) -> Result<PathBuf> {
    if let Some(below) = path.strip_prefix('/') {
        let below = Path::new(below);
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        return match plain && !path.contains(['\0', '\n']) {
            true => Ok(below.components().collect()),
            false => Err(Error::invalid(format!("cgroup path {path:?} must not have \"..\", a zero byte or a line break"))),
        };
    }
    match path.splitn(3, ':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] if is_unit_part(prefix) && is_unit_part(name) && !name.is_empty() => {
            let unit = match (prefix, name) {
                (_, slice) if slice.ends_with(".slice") => slice.to_owned(),
                ("", name) => format!("{name}.scope"),
                (prefix, name) => format!("{prefix}-{name}.scope"),
            };
            Ok(expand_slice(if slice.is_empty() { "system.slice" } else { slice })?.join(unit))
        }
        [slice] if slice.ends_with(".slice") => expand_slice(slice),
        _ => Err(Error::invalid(format!("cgroup path {path:?} is neither absolute nor slice:prefix:name"))),
    }
}

fn is_unit_part(part: &str) -> bool {
    !part.contains(['/', '\0', '\n']) && !part.starts_with('.')
}

/// The path of a slice: `a-b.slice` is inside `a.slice`, and `-.slice` is the root
/// (systemd.slice(5)).
fn expand_slice(slice: &str) -> Result<PathBuf> {
    let invalid = || Error::invalid(format!("{slice:?} is not a systemd slice"));
    let name = slice.strip_suffix(".slice").ok_or_else(invalid)?;
    if name == "-" {
        return Ok(PathBuf::new());
    }
    if !is_unit_part(name) || name.split('-').any(str::is_empty) {
        return Err(invalid());
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Ok(ends.map(|end| format!("{}.slice", &name[..end])).collect())
}

#[cfg(test)]
mod tests;
