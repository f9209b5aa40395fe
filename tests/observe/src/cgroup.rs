// SPDX-License-Identifier: Apache-2.0
//! Finds and removes cgroups by name, in both versions and in all hierarchies.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where cgroups are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Whether the node has one hierarchy, of version 2.
pub fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Removes a cgroup without processes from every hierarchy. Returns true when it is gone, and false
/// while its last process is still ending.
pub fn remove(name: &str) -> bool {
    let below = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    let all: Vec<_> = below.chain([PathBuf::from(ROOT)]).map(|root| root.join(name.trim_start_matches('/'))).collect();
    for cgroup in &all {
        if cgroup.is_dir() {
            // Whether it worked is checked below.
            let _ = fs::remove_dir(cgroup);
        }
    }
    !all.iter().any(|cgroup| cgroup.is_dir())
}
