// SPDX-License-Identifier: Apache-2.0
//! Checks which crate imports which, by cargo's own view of the workspace.
//!
//! A crate is identified by its folder. It may import the crates that are listed for it, and no
//! others of the workspace. A folder that is not listed is a finding as well: the layout is decided
//! here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::{Finding, tree::root};

/// The crates of the workspace that a member may import, by folder. `tests/…` may use the core's
/// formats, but never a sandboxer.
const ALLOWED: [(&str, &[&str]); 19] = [
    ("shim/sys", &[]),
    ("shim/core", &["shim/sys"]),
    ("shim", &["shim/core", "shim/sys"]),
    ("vm-agent/api", &[]),
    ("vm-agent", &["shim/core", "shim/sys", "vm-agent/api"]),
    ("runc", &["shim/core", "shim/sys"]),
    ("wasm", &["shim/core", "shim/sys"]),
    ("vmm", &["shim/core", "shim/sys", "vm-agent/api"]),
    ("tests/tidy", &[]),
    ("tests/cri", &[]),
    ("tests/observe", &[]),
    ("tests/componentize", &[]),
    ("tests/e2e", &["tests/cri", "tests/observe", "shim/core", "shim/sys", "vm-agent/api"]),
    ("tests/kube", &["tests/observe"]),
    ("tests/bench", &["tests/cri", "tests/observe"]),
    ("tests/demo", &["tests/cri", "tests/observe"]),
    ("tests/conformance", &["tests/cri", "tests/observe", "shim/core", "shim/sys"]),
    ("tests/fuzz", &["shim/core", "shim/sys", "vm-agent/api"]),
    ("images/guest", &[]),
];

/// One member: its folder, and the folders of those it imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    folder: PathBuf,
    imports: Vec<PathBuf>,
}

/// The members of the workspace that this crate is in.
pub fn members() -> Result<Vec<Member>> {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().context("cargo metadata")?;
    Ok(metadata.packages.iter().map(|package| member(&metadata, package)).collect())
}

/// The rules over all members.
pub fn check(members: &[Member]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for member in members {
        let manifest = member.folder.join("Cargo.toml");
        let Some((_, allowed)) = ALLOWED.iter().find(|(folder, _)| Path::new(folder) == member.folder) else {
            findings.push(Finding::new(&manifest, 1, "this folder is not in the layout; add it to tests/tidy/src/rules/imports.rs"));
            continue;
        };
        for import in &member.imports {
            if !allowed.iter().any(|folder| Path::new(folder) == import) {
                let what = format!("{} may not import {}", member.folder.display(), import.display());
                findings.push(Finding::new(&manifest, 1, what));
            }
        }
    }
    findings
}

fn member(metadata: &Metadata, package: &cargo_metadata::Package) -> Member {
    let below = |path: &Path| path.strip_prefix(&metadata.workspace_root).unwrap_or(path).to_owned();
    let folder = package.manifest_path.parent().map(|folder| below(folder.as_std_path())).unwrap_or_default();
    // Dependencies of every kind: a test that imports a sandboxer couples to it as much as code
    // does.
    let imports = package.dependencies.iter().filter_map(|dependency| dependency.path.as_ref()).map(|path| below(path.as_std_path()));
    Member { folder, imports: imports.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(folder: &str, imports: &[&str]) -> usize {
        let member = Member { folder: folder.into(), imports: imports.iter().map(PathBuf::from).collect() };
        check(&[member]).len()
    }

    #[test]
    fn a_sandboxer_imports_the_core_and_no_other_sandboxer() {
        assert_eq!(findings("runc", &["shim/core", "shim/sys"]), 0);
        assert_eq!(findings("runc", &["wasm"]), 1);
        assert_eq!(findings("vmm", &["vm-agent/api"]), 0);
        assert_eq!(findings("vmm", &["vm-agent"]), 1);
        assert_eq!(findings("shim/core", &["runc"]), 1);
        assert_eq!(findings("shim/sys", &["shim/core"]), 1);
    }

    #[test]
    fn an_unlisted_folder_is_found() {
        assert_eq!(findings("somewhere", &[]), 1);
    }

    #[test]
    fn cargo_metadata_lists_this_crate() {
        let members = members().unwrap();
        assert!(members.contains(&Member { folder: "tests/tidy".into(), imports: Vec::new() }), "{members:?}");
    }
}
