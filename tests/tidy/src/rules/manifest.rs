// SPDX-License-Identifier: Apache-2.0
//! Rules on the members' manifests: they inherit versions, lints and editions from the workspace.

use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::{Finding, Text, Tree};

const INHERITED: [&str; 5] = ["version", "edition", "license", "rust-version", "publish"];
const DEPENDENCIES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// The lints that clippy must deny everywhere; clippy.toml makes exceptions for tests.
const DENIED: &[&str] = &["unwrap_used", "expect_used", "panic", "todo", "unimplemented", "dbg_macro"];
/// The one crate with lints of its own, because it holds the unsafe code.
const EDGE: &str = "shim/sys";
const DENIED_AT_THE_EDGE: &[&str] = &["undocumented_unsafe_blocks"];

/// Checks every manifest of the tree.
pub fn all(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut versions = Table::new();
    for file in tree.files.iter().filter(|file| file.path == Path::new("Cargo.toml")) {
        let manifest: Table = file.content.parse().context("Cargo.toml")?;
        let workspace = manifest.get("workspace");
        findings.extend(missing(file, workspace.and_then(|workspace| workspace.get("lints")), DENIED));
        versions.extend(workspace.and_then(|workspace| workspace.get("dependencies")?.as_table().cloned()).unwrap_or_default());
    }
    for file in tree.manifests() {
        findings.extend(check(file)?);
        findings.extend(other_versions(file, &versions)?);
    }
    Ok(findings)
}

/// Dependencies of a workspace of its own that ours has in another version: what is fuzzed would
/// not be what is built.
fn other_versions(file: &Text, versions: &Table) -> Result<Vec<Finding>> {
    let manifest: Table = file.content.parse().with_context(|| file.path.display().to_string())?;
    if !manifest.contains_key("workspace") {
        return Ok(Vec::new());
    }
    let version = |value: &Value| value.as_str().or_else(|| value.get("version")?.as_str()).map(str::to_owned);
    let other = dependencies(&manifest).filter_map(|(name, value)| {
        let (here, ours) = (version(value)?, version(versions.get(name)?)?);
        (here != ours).then(|| finding(file, name, format!("`{name}` is {here} here, and {ours} in the workspace's Cargo.toml")))
    });
    Ok(other.collect())
}

fn check(file: &Text) -> Result<Vec<Finding>> {
    let manifest: Table = file.content.parse().with_context(|| file.path.display().to_string())?;
    // A fuzz crate is a workspace of its own, as cargo-fuzz requires.
    if manifest.contains_key("workspace") {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    let package = manifest.get("package").and_then(Value::as_table).cloned().unwrap_or_default();
    for key in INHERITED {
        if !package.get(key).is_some_and(is_inherited) {
            findings.push(finding(file, "[package]", format!("`{key}` must be `{key}.workspace = true`")));
        }
    }
    let lints = manifest.get("lints");
    if file.path.starts_with(EDGE) {
        findings.extend(missing(file, lints, &[DENIED, DENIED_AT_THE_EDGE].concat()));
    } else if !lints.is_some_and(is_inherited) {
        findings.push(finding(file, "[lints]", "`[lints]` must be `workspace = true`".to_owned()));
    }
    for (name, value) in dependencies(&manifest) {
        if !is_inherited(value) {
            findings.push(finding(file, name, format!("`{name}` must be `{name}.workspace = true`; its version goes into the workspace")));
        }
    }
    Ok(findings)
}

/// Lints of clippy that are not denied and should be.
fn missing(file: &Text, lints: Option<&Value>, names: &[&str]) -> Vec<Finding> {
    let clippy = lints.and_then(|lints| lints.get("clippy"));
    let denied = |name: &str| clippy.and_then(|clippy| clippy.get(name)).and_then(Value::as_str) == Some("deny");
    let missing = names.iter().filter(|&&name| !denied(name));
    missing.map(|name| finding(file, "[workspace.lints", format!("clippy must deny `{name}`"))).collect()
}

/// All dependencies of a manifest, including those for certain targets only.
fn dependencies(manifest: &Table) -> impl Iterator<Item = (&str, &Value)> {
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values).filter_map(Value::as_table);
    std::iter::once(manifest)
        .chain(targets)
        .flat_map(|table| DEPENDENCIES.iter().filter_map(|&key| table.get(key)?.as_table()))
        .flatten()
        .map(|(name, value)| (name.as_str(), value))
}

fn is_inherited(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

/// The line is that of the first mention; toml does not keep lines of values.
fn finding(file: &Text, mention: &str, what: String) -> Finding {
    let line = file.content.lines().position(|line| line.starts_with(mention)).map_or(1, |n| n + 1);
    Finding::new(&file.path, line, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    const GOOD: &str = "[package]\nname = \"a\"\nversion.workspace = true\nedition.workspace = true\n\
        license.workspace = true\nrust-version.workspace = true\npublish.workspace = true\n\
        [lints]\nworkspace = true\n[dependencies]\nb = { workspace = true, features = [\"c\"] }\n";

    fn lines(content: &str) -> Vec<usize> {
        let file = Text { path: "a/Cargo.toml".into(), content: content.to_owned() };
        check(&file).unwrap().into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_correct_manifest_has_no_findings() {
        assert_eq!(lines(GOOD), NONE);
    }

    #[test]
    fn own_versions_lints_and_editions_are_found() {
        assert_eq!(lines(&format!("{GOOD}c = \"1\"\n")), [12]);
        assert_eq!(lines(&format!("{GOOD}[target.'cfg(unix)'.dependencies]\nd = {{ path = \"../d\" }}\n")), [13]);
        assert_eq!(lines(&GOOD.replace("edition.workspace = true", "edition = \"2021\"")), [1]);
        assert_eq!(lines(&GOOD.replace("[lints]\nworkspace = true\n", "")), [1]);
    }

    #[test]
    fn a_workspace_of_its_own_has_the_versions_of_ours() {
        let ours: Table = "a = \"1\"\nb = { version = \"2\", features = [] }\n".parse().unwrap();
        let content = "[workspace]\n[dependencies]\na = \"1\"\nb = { version = \"3\" }\nc = \"9\"\nd = { path = \"../d\" }\n";
        let file = |content: &str| Text { path: "a/Cargo.toml".into(), content: content.to_owned() };
        let lines =
            |content: &str| other_versions(&file(content), &ours).unwrap().into_iter().map(|finding| finding.line).collect::<Vec<_>>();
        assert_eq!(lines(content), [4]);
        assert_eq!(lines(&content.replace("[workspace]", "")), NONE);
    }

    #[test]
    fn a_lint_that_is_not_denied_is_found() {
        let lints: Table = "[lints.clippy]\ntodo = \"deny\"\npanic = \"warn\"\n".parse().unwrap();
        let file = Text { path: "Cargo.toml".into(), content: String::new() };
        assert_eq!(missing(&file, lints.get("lints"), &["todo"]), []);
        assert_eq!(missing(&file, lints.get("lints"), &["todo", "panic", "dbg_macro"]).len(), 2);
    }
}
