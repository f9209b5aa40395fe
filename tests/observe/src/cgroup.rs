// SPDX-License-Identifier: Apache-2.0
//! Cgroups by name, whatever the version and however many hierarchies there are.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where cgroups are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The node has one hierarchy, version 2.
pub fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Removes a cgroup, which nobody may be in, from every hierarchy. True when it is gone; while
/// the last process is still leaving it, false.
pub fn remove(name: &str) -> bool {
    let below = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    let all: Vec<_> = below.chain([PathBuf::from(ROOT)]).map(|root| root.join(name.trim_start_matches('/'))).collect();
    for cgroup in &all {
        if cgroup.is_dir() {
            // Whether it worked is asked below.
            let _ = fs::remove_dir(cgroup);
        }
    }
    !all.iter().any(|cgroup| cgroup.is_dir())
}
