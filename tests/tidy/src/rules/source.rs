// SPDX-License-Identifier: Apache-2.0
//! Rules on Rust sources: the parts of STYLE.md that clippy cannot check.

use std::path::Path;

use anyhow::Result;

use crate::{Finding, Source, Tree};

/// The most lines of a source without its tests.
const LONGEST: usize = 400;
/// The most lines of a hypervisor's file, which has everything of that hypervisor.
const LONGEST_HYPERVISOR: usize = 600;
/// The most lines of tests inside a source; longer tests need a file of their own.
const LONGEST_TESTS: usize = 100;
/// Names of drawers: modules that say nothing about their content.
const DRAWERS: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "manager", "misc", "shared"];
/// Crates whose types are a protocol's.
const WIRE: [&str; 2] = ["containerd_shim_protos", "containerd_client"];
/// The adapters: files, and folders, of ours that may name those types. Everything else is free of
/// protocols (ARCHITECTURE.md, invariant 7).
const ADAPTERS: [&str; 20] = [
    "shim/core/src/cgroup/stats/v1.rs",
    "shim/core/src/cgroup/stats/v2.rs",
    "shim/core/src/cgroup/stats.rs",
    "shim/core/src/events/wire.rs",
    "shim/core/src/sandbox/service.rs",
    "shim/core/src/server.rs",
    "shim/core/src/task/service.rs",
    "shim/src/options",
    "shim/src/serve/client.rs",
    "shim/src/serve/controller.rs",
    "shim/src/serve/pods.rs",
    "shim/src/serve/store.rs",
    "shim/src/serve/tests",
    "shim/src/serve/tests.rs",
    "shim/src/serve/wire.rs",
    "shim/src/shim_protocol",
    "vmm/src/relay/guest/answers.rs",
    "vmm/src/relay/guest/tasks.rs",
    "wasm/src/artifact.rs",
    "tests",
];
/// Where unsafe code is allowed.
const EDGE: &str = "shim/sys";
/// Programs for modules that declare what their host has. They are part of no program of ours that
/// runs on a node.
const DECLARATIONS: [&str; 3] = ["examples/wasm/echo/src/wasmedge.rs", "images/llm/src/engine/wasi.rs", "images/llm/src/net/wasi.rs"];

type Rule = fn(&Source) -> Vec<Finding>;

/// All of them, by name.
pub const ALL: [(&str, Rule); 8] = [
    ("length", length),
    ("names", names),
    ("documentation", documentation),
    ("unsafe only at the edge", unsafe_at_the_edge),
    ("allowances explained", allowances_explained),
    ("no asynchronous mutex", no_async_mutex),
    ("no bare spawn", no_bare_spawn),
    ("wire types stop at adapters", wire_types),
];

/// Applies one rule to every source of the tree.
pub fn over(tree: &Tree, rule: Rule) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        findings.extend(rule(&Source::parse(file)?));
    }
    Ok(findings)
}

fn length(source: &Source) -> Vec<Finding> {
    let path = source.path();
    if is_test(path) {
        return Vec::new();
    }
    let longest = if path.starts_with("vmm/src/hypervisor") { LONGEST_HYPERVISOR } else { LONGEST };
    let all = source.file.content.lines().count();
    let code = source.tests_begin().map_or(all, |line| line - 1);
    let mut findings = Vec::new();
    if code > longest {
        findings.push(Finding::new(
            path,
            longest + 1,
            format!("{code} lines without tests; at most {longest} are allowed: split the file by ideas"),
        ));
    }
    if all - code > LONGEST_TESTS {
        let beside = path.with_extension("").join("tests.rs");
        let what = format!("{} lines of tests; beyond {LONGEST_TESTS} they belong into {}", all - code, beside.display());
        findings.push(Finding::new(path, code + 1, what));
    }
    findings
}

fn names(source: &Source) -> Vec<Finding> {
    let path = source.path();
    let advice = |name: &str| format!("a module named `{name}` is a drawer; name it after what is in it");
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let parent = path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    let name = if stem == "mod" { parent } else { stem };
    let file = DRAWERS.contains(&name).then(|| Finding::new(path, 1, advice(name)));
    let inline = source.find(&["mod"]).filter_map(|at| {
        let name = source.tokens.get(at + 1)?;
        let opens = source.tokens.get(at + 2)?.text == "{";
        (opens && DRAWERS.contains(&name.text.as_str())).then(|| Finding::new(path, name.line, advice(&name.text)))
    });
    file.into_iter().chain(inline).collect()
}

/// Crate roots and modules open with `//!`; the first line is the licence's.
fn documentation(source: &Source) -> Vec<Finding> {
    if is_test(source.path()) && source.path().file_name().is_some_and(|name| name == "tests.rs") {
        return Vec::new();
    }
    let opening = source.file.content.lines().find(|line| !line.trim().is_empty() && !line.starts_with("// "));
    match opening {
        Some(line) if line.starts_with("//!") => Vec::new(),
        Some(_) | None => vec![Finding::new(source.path(), 2, "a source must open with `//!`: say what the module does, and why")],
    }
}

fn wire_types(source: &Source) -> Vec<Finding> {
    let path = source.path();
    if ADAPTERS.iter().any(|adapter| path.starts_with(adapter)) {
        return Vec::new();
    }
    let named = source.tokens.iter().filter(|token| WIRE.contains(&token.text.as_str()));
    named
        .map(|token| Finding::new(path, token.line, format!("{} is named outside of the adapters, which tests/tidy lists", token.text)))
        .collect()
}

fn unsafe_at_the_edge(source: &Source) -> Vec<Finding> {
    if source.path().starts_with(EDGE) || DECLARATIONS.iter().any(|file| source.path() == Path::new(file)) {
        return Vec::new();
    }
    found(source, &["unsafe"], &format!("unsafe code belongs into {EDGE}"))
}

fn allowances_explained(source: &Source) -> Vec<Finding> {
    let kinds = ["allow", "expect"].into_iter();
    kinds
        .flat_map(|kind| {
            let outer = source.find(&["#", "[", kind, "("]).map(|at| at + 3).collect::<Vec<_>>();
            let inner = source.find(&["#", "!", "[", kind, "("]).map(|at| at + 4).collect::<Vec<_>>();
            outer.into_iter().chain(inner)
        })
        .filter(|&open| !source.inside(open).iter().any(|token| token.text == "reason"))
        .filter_map(|open| source.tokens.get(open))
        .map(|token| Finding::new(source.path(), token.line, "an allowance needs its `reason = \"…\"`"))
        .collect()
}

fn no_async_mutex(source: &Source) -> Vec<Finding> {
    let what = "tokio's mutex lives across awaits; keep state in one owner or in a watch channel";
    let path = ["tokio", ":", ":", "sync", ":", ":"];
    let mut findings = found(source, &[&path[..], &["Mutex"]].concat(), what);
    for at in source.find(&[&path[..], &["{"]].concat()) {
        let imported = source.inside(at + path.len()).iter().filter(|token| token.text == "Mutex");
        findings.extend(imported.map(|token| Finding::new(source.path(), token.line, what)));
    }
    findings
}

fn no_bare_spawn(source: &Source) -> Vec<Finding> {
    let what = "every task has a parent: spawn on the owner's task set";
    ["spawn", "spawn_blocking"]
        .into_iter()
        .flat_map(|call| {
            let path = found(source, &["tokio", ":", ":", call, "("], what);
            path.into_iter().chain(found(source, &["tokio", ":", ":", "task", ":", ":", call, "("], what))
        })
        .collect()
}

fn found(source: &Source, words: &[&str], what: &str) -> Vec<Finding> {
    source.find(words).filter_map(|at| source.tokens.get(at)).map(|token| Finding::new(source.path(), token.line, what)).collect()
}

fn is_test(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests") && is_below_tests_of_a_crate(path)
}

/// `tests/` at the top holds crates, whose sources are sources; `tests/` of a crate holds tests.
fn is_below_tests_of_a_crate(path: &Path) -> bool {
    path.components().skip(1).any(|part| part.as_os_str() == "tests")
}

#[cfg(test)]
mod tests;
