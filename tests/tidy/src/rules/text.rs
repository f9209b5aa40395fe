// SPDX-License-Identifier: Apache-2.0
//! Rules on any text: licence lines, paths of one machine, shell scripts.

use crate::{Finding, Text, Tree};

const SPDX: &str = "SPDX-License-Identifier: Apache-2.0";

/// Folders that exist only on certain machines. Written in pieces, because this file is checked as
/// well.
const PRIVATE: [&str; 4] = [concat!("/", "home/"), concat!("/", "Users/"), concat!("/", "work/"), concat!("/", "root/")];

/// Every Rust source begins with its licence line; every script has it among its first lines.
pub fn licence(tree: &Tree) -> Vec<Finding> {
    let sources = tree.rust().filter(|file| file.content.lines().next() != Some(&format!("// {SPDX}")));
    let scripts = tree.files.iter().filter(|file| is_shell(file) && !file.content.lines().take(3).any(|line| line.contains(SPDX)));
    let sources = sources.map(|file| Finding::new(&file.path, 1, format!("the first line must be `// {SPDX}`")));
    sources.chain(scripts.map(|file| Finding::new(&file.path, 1, format!("one of the first lines must be `# {SPDX}`")))).collect()
}

/// No file has a path that exists only on certain machines. A user's folder is `$HOME`.
pub fn private_paths(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        for (number, line) in file.content.lines().enumerate() {
            if let Some(path) = PRIVATE.iter().find(|&&path| starts_a_path(line, path)) {
                findings.push(Finding::new(
                    &file.path,
                    number + 1,
                    format!("a path below `{path}` exists only on certain machines: use a variable"),
                ));
            }
        }
    }
    findings
}

/// A script must not ignore a failed command.
pub fn strict_shell(tree: &Tree) -> Vec<Finding> {
    let scripts = tree.files.iter().filter(|file| is_shell(file) && has_shebang(file));
    let lax = scripts.filter(|file| !file.content.lines().map(str::trim).any(|line| is_strict(line, file)));
    lax.map(|file| Finding::new(&file.path, 1, "a script must `set -euo pipefail` (sh: `set -eu`)")).collect()
}

/// `set -uo pipefail` without `-e` is for a process that must never end: an init.
fn is_strict(line: &str, file: &Text) -> bool {
    let first = file.content.lines().next().unwrap_or_default();
    match line {
        "set -euo pipefail" => true,
        "set -eu" => !first.contains("bash"),
        "set -uo pipefail" => file.path.file_name().is_some_and(|name| name == "init"),
        _ => false,
    }
}

fn is_shell(file: &Text) -> bool {
    has_shebang(file) || file.path.extension().is_some_and(|e| e == "sh")
}

fn has_shebang(file: &Text) -> bool {
    let first = file.content.lines().next().unwrap_or_default();
    first.starts_with("#!") && (first.ends_with("/bash") || first.ends_with("/sh") || first.ends_with(" bash") || first.ends_with(" sh"))
}

/// Whether a path in the line begins with the folder, as opposed to having it in the middle.
fn starts_a_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        // A home in an image's list of users is not a path of this machine.
        if line[..at].ends_with("::") {
            return false;
        }
        let before = line[..at].chars().next_back();
        // Not after a character that a path, a variable or a host's name can end with.
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '}' | ')' | '*' | '~'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn lines(rule: fn(&Tree) -> Vec<Finding>, path: &str, content: &str) -> Vec<usize> {
        let tree = Tree { files: vec![Text { path: path.into(), content: content.to_owned() }], ..Tree::default() };
        rule(&tree).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_missing_licence_line_is_found() {
        assert_eq!(lines(licence, "a.rs", "//! Docs.\n"), [1]);
        assert_eq!(lines(licence, "a.rs", "// SPDX-License-Identifier: Apache-2.0\n"), NONE);
        assert_eq!(lines(licence, "a.sh", "echo\n"), [1]);
        assert_eq!(lines(licence, "a", "#!/bin/bash\n# SPDX-License-Identifier: Apache-2.0\n"), NONE);
        assert_eq!(lines(licence, "a.toml", "nothing = 1\n"), NONE);
    }

    #[test]
    fn a_path_of_one_machine_is_found_only_where_it_begins() {
        let home = PRIVATE[0];
        assert_eq!(lines(private_paths, "a", &format!("fine\ncd {home}me\n")), [2]);
        assert_eq!(lines(private_paths, "a", &format!("\"{home}me\"\n")), [1]);
        assert_eq!(lines(private_paths, "a", &format!("$prefix{home}me {{root}}{home} x/y{home} u:x:1:1::{home}u:\n")), NONE);
    }

    #[test]
    fn a_lax_script_is_found() {
        assert_eq!(lines(strict_shell, "a", "#!/bin/bash\necho\n"), [1]);
        assert_eq!(lines(strict_shell, "a", "#!/bin/bash\nset -eu\n"), [1]);
        assert_eq!(lines(strict_shell, "a", "#!/usr/bin/env bash\nset -euo pipefail\n"), NONE);
        assert_eq!(lines(strict_shell, "a", "#!/bin/sh\nset -eu\n"), NONE);
        assert_eq!(lines(strict_shell, "a.sh", "sourced=yes\n"), NONE);
    }
}
