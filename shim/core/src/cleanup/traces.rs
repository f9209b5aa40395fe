// SPDX-License-Identifier: Apache-2.0
//! Finds everything that has the name of a pod or container in the kernel's list of mounts and in
//! containerd's directories, for a clean-up without a record. containerd makes these directories
//! for one container or pod only, and names them after it.

use crate::config::Containerd;
use crate::error::Result;
use crate::ids::{ContainerId, Namespace, SandboxId};
use crate::mount::for_each_mount;
use std::path::{Path, PathBuf};

/// The folder of bundles in containerd's root and state directories.
const TASKS: &str = "io.containerd.runtime.v2.task";

/// The folder of pods' files in the same directories.
const SANDBOXES: &str = "io.containerd.grpc.v1.cri/sandboxes";

/// Whether a directory can only be the bundle of this container, or its bundle's working directory.
pub fn is_bundle(dir: &Path, namespace: Option<&Namespace>, id: &str) -> bool {
    let mut names = dir.components().rev().map(|component| component.as_os_str());
    let (own, of, tasks) = (names.next(), names.next(), names.next());
    let named = |wanted: Option<&str>, name: Option<&std::ffi::OsStr>| name.is_some_and(|name| wanted.is_none_or(|wanted| name == wanted));
    dir.is_absolute() && named(Some(id), own) && named(namespace.map(Namespace::as_str), of) && named(Some(TASKS), tasks)
}

/// The bundles of a container: those with a mount in them, and the one in containerd's default
/// directory.
///
/// # Errors
/// If the mounts cannot be read.
pub fn bundles(namespace: &Namespace, id: &ContainerId) -> Result<Vec<PathBuf>> {
    let mut bundles = vec![Containerd::default().state.join(TASKS).join(namespace.as_str()).join(id.as_str())];
    for_each_mount(|entry| {
        bundles.extend(entry.target.ancestors().find(|dir| is_bundle(dir, Some(namespace), id.as_str())).map(Into::into))
    })?;
    bundles.sort();
    bundles.dedup();
    Ok(bundles)
}

/// The containerds that may have files of a pod: the one with the default directories, and the one
/// in whose state directory something of the pod is mounted.
///
/// # Errors
/// If the mounts cannot be read.
pub fn containerds(sandbox: &SandboxId) -> Result<Vec<Containerd>> {
    let mut all = vec![Containerd::default()];
    let own = Path::new(SANDBOXES).join(sandbox.as_str());
    for_each_mount(|entry| {
        let place = entry.target.ancestors().find(|dir| dir.ends_with(&own));
        if let Some(state) = place.and_then(|place| place.ancestors().nth(own.components().count()))
            && all.iter().all(|containerd| containerd.state != state)
        {
            all.push(Containerd { state: state.to_owned(), ..Containerd::default() });
        }
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_recognised_by_its_path() {
        let namespace = Namespace::parse("k8s.io").unwrap();
        let bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s.io/c1");
        assert!(is_bundle(bundle, Some(&namespace), "c1"));
        assert!(is_bundle(bundle, None, "c1"));
        for other in ["/run/containerd/io.containerd.runtime.v2.task/default/c1", "/k8s.io/c1", "/c1", "/etc", "c1"] {
            assert!(!is_bundle(Path::new(other), Some(&namespace), "c1"), "{other}");
        }
        assert!(!is_bundle(bundle, None, "c2"));
    }
}
