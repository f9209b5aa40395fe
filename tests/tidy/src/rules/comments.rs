// SPDX-License-Identifier: Apache-2.0
//! Comments are wrapped: prose is read more easily in short lines than code is.

use std::path::Path;

use anyhow::Result;

use crate::{Finding, Source, Text, Tree};

/// The most columns of a line with nothing but a comment. Code may be wider (`rustfmt.toml`).
const WIDEST: usize = 100;

/// Checks every file that has comments.
pub fn all(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in &tree.files {
        findings.extend(wide(file)?);
    }
    Ok(findings)
}

fn wide(file: &Text) -> Result<Vec<Finding>> {
    let Some(marker) = marker(&file.path) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut fenced = false;
    for (line, text) in file.content.lines().enumerate().map(|(index, text)| (index + 1, text)) {
        // A recipe's comment in a Makefile has `@`, so that make does not print it.
        let Some(comment) = text.trim_start().trim_start_matches('@').strip_prefix(marker) else {
            fenced = false;
            continue;
        };
        let is_fence = comment.trim_start_matches(['/', '!', ' ']).starts_with("```");
        fenced ^= is_fence;
        if text.chars().count() > WIDEST && !fenced && !is_table(comment) && !comment.contains("://") {
            found.push(line);
        }
    }
    if !found.is_empty() && file.path.extension().is_some_and(|e| e == "rs") {
        let source = Source::parse(file)?;
        found.retain(|line| !source.strings.iter().any(|string| string.contains(line)));
    }
    let what = format!("a comment has more than {WIDEST} columns: wrap it");
    Ok(found.into_iter().map(|line| Finding::new(&file.path, line, what.clone())).collect())
}

/// What a comment begins with. None for a file without comments, and for prose.
fn marker(path: &Path) -> Option<&'static str> {
    match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        "rs" | "c" | "h" => Some("//"),
        "wat" => Some(";;"),
        "md" | "json" | "lock" | "sum" => None,
        _ => Some("#"),
    }
}

/// Columns are apart by at least three spaces.
fn is_table(comment: &str) -> bool {
    let comment = comment.trim_start_matches(['/', '!', ' ']);
    comment.starts_with('|') || comment.trim_end().contains("   ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn lines(path: &str, content: &str) -> Vec<usize> {
        let file = Text { path: path.into(), content: content.to_owned() };
        wide(&file).unwrap().into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_wide_comment_is_found() {
        let words = "word ".repeat(30);
        assert_eq!(lines("a.rs", &format!("fn f() {{}}\n    /// {words}\n// short\n")), [2]);
        assert_eq!(lines("a.sh", &format!("#!/bin/sh\n# {words}\n")), [2]);
        assert_eq!(lines("Makefile", &format!("all:\n\t@# {words}\n")), [2]);
        assert_eq!(lines("a.wat", &format!(";; {words}\n")), [1]);
        assert_eq!(lines("a.md", &format!("# {words}\n")), NONE);
    }

    #[test]
    fn code_tables_addresses_and_strings_may_be_wide() {
        let words = "word ".repeat(30);
        assert_eq!(lines("a.sh", &format!("echo {words} # why\n")), NONE);
        assert_eq!(lines("a.rs", &format!("//! ```text\n//! {words}\n//! ```\n//! {words}\n")), [4]);
        assert_eq!(lines("a.rs", &format!("// | a | {words}|\n// key     {words}\n")), NONE);
        assert_eq!(lines("a.rs", &format!("// https://example.com/{}\n", "a".repeat(100))), NONE);
        assert_eq!(lines("a.rs", &format!("const A: &str = \"\n// {words}\n\";\n// {words}\n")), [4]);
    }
}
