// SPDX-License-Identifier: Apache-2.0
//! What documents point at is there: files, headings, and the tests that guard a boundary.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use tidy::{Text, Tree};

/// The page that names a test for each attack.
const SECURITY: &str = "docs/security.md";

/// The lines of a document that are no program's output, with their numbers.
fn prose(file: &Text) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    file.content.lines().enumerate().filter_map(move |(number, line)| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        (!fenced && !is_fence).then_some((number + 1, line))
    })
}

/// What stands between `open` and `close`, again and again.
fn between<'a>(line: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    line.split(open).skip(1).filter_map(move |rest| rest.split_once(close).map(|(inside, _)| inside))
}

/// The name by which a heading can be pointed at.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// A path without `..`, as git names it.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, component| {
        match component {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
        path
    })
}

/// Whether a link from one document leads somewhere.
fn leads(tree: &Tree, from: &Text, link: &str) -> bool {
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => from.path.clone(),
        path => plain(&from.path.parent().unwrap_or(Path::new("")).join(path)),
    };
    if heading.is_empty() {
        return tree.paths.iter().any(|path| path.starts_with(&target));
    }
    let document = tree.files.iter().find(|file| file.path == target);
    document.is_some_and(|file| prose(file).any(|(_, line)| line.starts_with('#') && anchor(line) == heading))
}

fn none(findings: &[String]) {
    for finding in findings {
        println!("{finding}");
    }
    assert!(findings.is_empty(), "{} findings", findings.len());
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let tree = Tree::read()?;
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.path.extension().is_some_and(|e| e == "md")) {
        for (number, line) in prose(file) {
            let lost = between(line, "](", ")").filter(|link| !link.contains("://") && !leads(&tree, file, link));
            findings.extend(lost.map(|link| format!("{}:{number}: {link} leads nowhere", file.path.display())));
        }
    }
    none(&findings);
    Ok(())
}

#[test]
fn the_tests_that_guard_a_boundary_exist() -> Result<()> {
    let tree = Tree::read()?;
    let page = tree.files.iter().find(|file| file.path == Path::new(SECURITY)).context(SECURITY)?;
    let mut findings = Vec::new();
    for (number, line) in prose(page) {
        let names = line.split('`').skip(1).step_by(2).filter_map(|span| span.rsplit_once("::")).map(|(_, name)| name);
        for name in names.filter(|name| !name.is_empty()) {
            if !tree.rust().any(|file| file.content.contains(&format!("fn {name}("))) {
                findings.push(format!("{SECURITY}:{number}: there is no test {name}"));
            }
        }
    }
    none(&findings);
    Ok(())
}
