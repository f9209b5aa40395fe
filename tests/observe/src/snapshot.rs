// SPDX-License-Identifier: Apache-2.0
//! Snapshots of everything on a node that a pod can leave behind, which can be compared.
//!
//! Each thing is one line of text, without parts that change by themselves (process ids, times,
//! contents). Equal lines are counted. So a restarted daemon is the same as before, and two equal
//! things differ from one.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use procfs::{
    net::UnixState,
    process::{MountInfo, Process as Proc},
};
use walkdir::WalkDir;

use crate::{Error, Process, Processes, Result};

/// The folders in which containerd, CNI and sandboxers keep files for a pod's lifetime. A missing
/// folder counts as empty.
const PLACES: [&str; 9] = [
    "/run",
    "/tmp",
    "/dev/shm",
    "/var/lib/cni",
    "/var/lib/magnetar",
    "/var/lib/containerd/io.containerd.grpc.v1.cri",
    "/var/lib/containerd/io.containerd.runtime.v2.task",
    "/var/lib/containerd/io.containerd.sandbox.controller.v1.shim",
    "/var/lib/containerd/tmpmounts",
];

/// containerd's namespaces whose containers are tested, and docker's own name for its parent of all
/// cgroups.
const NAMESPACES: [&str; 4] = ["k8s.io", "default", "moby", "docker"];

/// The state of a node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, usize>);

/// The difference between two snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Things that are there now and were not before.
    pub new: Vec<String>,
    /// Things that were there before and are not now.
    pub gone: Vec<String>,
}

impl Snapshot {
    /// Takes a snapshot of processes, mounts, cgroups, links, bound sockets, and the files of pods.
    /// It leaves out the calling process.
    pub fn take() -> Result<Self> {
        let mut snapshot = Self::default();
        let me = std::process::id().cast_signed();
        for process in Processes::now()?.iter().filter(|p| p.pid != me) {
            snapshot.add("process", describe(process));
        }
        let mounts = Proc::myself().and_then(|p| p.mountinfo()).map_err(Error::reading("the mounts"))?;
        for mount in &mounts {
            snapshot.add("mount", format!("{} {} {}", mount.mount_point.display(), mount.fs_type, mount.root));
        }
        for mount in mounts.iter().filter(is_cgroup) {
            // containerd's parent of all containers without a parent of their own is made with the
            // first of them, in some hierarchies or in all, and stays. Its content counts. Our
            // parent of all sandbox processes stays as well.
            let sandboxes = mount.mount_point.join("magnetar-sandboxes");
            let shared = NAMESPACES.iter().flat_map(|name| [mount.mount_point.join(name), sandboxes.join(name)]);
            let shared: Vec<_> = shared.chain([sandboxes.clone()]).collect();
            // The files of a cgroup come and go with its directory, so only directories count.
            for cgroup in below(&mount.mount_point).filter(|cgroup| !shared.contains(cgroup) && cgroup.is_dir()) {
                snapshot.add("cgroup", cgroup.display());
            }
        }
        for link in below(Path::new("/sys/class/net")) {
            snapshot.add("link", link.file_name().unwrap_or_default().display());
        }
        for socket in procfs::net::unix().map_err(Error::reading("the sockets"))? {
            if let (UnixState::UNCONNECTED, Some(path)) = (socket.state, socket.path) {
                snapshot.add("socket", path.display());
            }
        }
        for file in PLACES.iter().flat_map(|place| below(Path::new(place))) {
            snapshot.add("file", file.display());
        }
        Ok(snapshot)
    }

    /// The changes since `before`.
    pub fn since(&self, before: &Self) -> Diff {
        Diff { new: more(&self.0, &before.0), gone: more(&before.0, &self.0) }
    }

    /// The difference without the things for which `unwanted` is true.
    pub fn without(mut self, unwanted: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|thing, _| !unwanted(thing));
        self
    }

    fn add(&mut self, kind: &str, what: impl fmt::Display) {
        *self.0.entry(format!("{kind} {what}")).or_default() += 1;
    }
}

impl Diff {
    /// Nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.new.is_empty() && self.gone.is_empty()
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (sign, things) in [('+', &self.new), ('-', &self.gone)] {
            for thing in things {
                // Do not show things below another one that is shown.
                if !things.iter().any(|above| thing.strip_prefix(above.as_str()).is_some_and(|rest| rest.starts_with('/'))) {
                    writeln!(f, "  {sign} {thing}")?;
                }
            }
        }
        Ok(())
    }
}

fn describe(process: &Process) -> String {
    match (process.zombie, process.command.as_slice()) {
        (true, _) => format!("{} (zombie)", process.name),
        (false, []) => process.name.clone(),
        (false, words) => words.join(" "),
    }
}

fn is_cgroup(mount: &&MountInfo) -> bool {
    matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2")
}

/// Everything below a folder, without following links. Files that disappear meanwhile are left out.
/// So are other file systems, whose mounts are listed: in the node, a checkout below `/tmp` is one.
fn below(place: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    WalkDir::new(place).min_depth(1).same_file_system(true).into_iter().flatten().map(walkdir::DirEntry::into_path)
}

fn more(these: &BTreeMap<String, usize>, than: &BTreeMap<String, usize>) -> Vec<String> {
    these
        .iter()
        .filter_map(|(thing, &count)| {
            let other = than.get(thing).copied().unwrap_or_default();
            match count.checked_sub(other) {
                None | Some(0) => None,
                Some(1) => Some(thing.clone()),
                Some(n) => Some(format!("{thing} (×{n})")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(things: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for thing in things {
            snapshot.add("process", thing);
        }
        snapshot
    }

    #[test]
    fn equal_things_are_counted() {
        let diff = snapshot(&["a", "a", "b"]).since(&snapshot(&["a", "c"]));
        assert_eq!(diff.to_string(), "  + process a\n  + process b\n  - process c\n");
        let diff = snapshot(&["a", "a", "a"]).since(&snapshot(&["a"]));
        assert_eq!(diff.new, ["process a (×2)"]);
    }

    #[test]
    fn things_below_another_new_thing_are_not_shown() {
        let diff = snapshot(&["/a", "/a/b", "/a/b/c", "/ab"]).since(&snapshot(&[]));
        assert_eq!(diff.to_string(), "  + process /a\n  + process /ab\n");
    }

    #[test]
    fn order_does_not_matter() {
        assert!(snapshot(&["a", "b"]).since(&snapshot(&["b", "a"])).is_empty());
    }

    #[test]
    fn unwanted_things_do_not_count() {
        let with = snapshot(&["a", "noise"]).without(|thing| thing.ends_with("noise"));
        assert_eq!(with, snapshot(&["a"]));
    }
}
