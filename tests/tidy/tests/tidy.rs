// SPDX-License-Identifier: Apache-2.0
//! Applies the rules to this checkout. Every test prints all its findings.

use anyhow::Result;
use tidy::{Finding, Tree, comments, imports, manifest, source_rules, text};

fn none(mut findings: Vec<Finding>) {
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    assert!(findings.is_empty(), "{} findings", findings.len());
}

#[test]
fn crates_import_only_allowed_crates() -> Result<()> {
    none(imports::check(&imports::members()?));
    Ok(())
}

#[test]
fn manifests_leave_versions_and_lints_to_the_workspace() -> Result<()> {
    none(manifest::all(&Tree::read()?)?);
    Ok(())
}

#[test]
fn sources_keep_the_style() -> Result<()> {
    let tree = Tree::read()?;
    let mut findings = Vec::new();
    for (_, rule) in source_rules::ALL {
        findings.extend(source_rules::over(&tree, rule)?);
    }
    none(findings);
    Ok(())
}

#[test]
fn comments_are_wrapped() -> Result<()> {
    none(comments::all(&Tree::read()?)?);
    Ok(())
}

#[test]
fn files_carry_their_licence() -> Result<()> {
    none(text::licence(&Tree::read()?));
    Ok(())
}

#[test]
fn no_file_names_a_path_of_one_machine() -> Result<()> {
    none(text::private_paths(&Tree::read()?));
    Ok(())
}

#[test]
fn scripts_stop_at_a_failure() -> Result<()> {
    none(text::strict_shell(&Tree::read()?));
    Ok(())
}
