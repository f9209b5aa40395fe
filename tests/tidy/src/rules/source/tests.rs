// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::Text;

const NONE: [usize; 0] = [];

fn lines(rule: Rule, path: &str, content: &str) -> Vec<usize> {
    let file = Text { path: path.into(), content: content.to_owned() };
    let source = Source::parse(&file).unwrap();
    rule(&source).into_iter().map(|finding| finding.line).collect()
}

#[test]
fn long_sources_are_found_and_their_tests_do_not_count() {
    let code = |n| "fn f() {}\n".repeat(n);
    let tests = |n| format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    fn t() {}\n".repeat(n));
    assert_eq!(lines(length, "a.rs", &code(400)), NONE);
    assert_eq!(lines(length, "a.rs", &code(401)), [401]);
    assert_eq!(lines(length, "vmm/src/hypervisor/qemu.rs", &code(600)), NONE);
    assert_eq!(lines(length, "a.rs", &(code(390) + &tests(90))), NONE);
    assert_eq!(lines(length, "a.rs", &(code(10) + &tests(120))), [11]);
    assert_eq!(lines(length, "shim/core/src/a/tests.rs", &code(900)), NONE);
    assert_eq!(lines(length, "tests/e2e/tests/e2e/exec.rs", &code(900)), NONE);
    assert_eq!(lines(length, "tests/cri/src/node.rs", &code(401)), [401]);
}

#[test]
fn drawers_are_found() {
    assert_eq!(lines(names, "shim/core/src/utils.rs", ""), [1]);
    assert_eq!(lines(names, "shim/core/src/common/mod.rs", ""), [1]);
    assert_eq!(lines(names, "shim/core/src/task.rs", "mod process;\nmod helpers { }\n"), [2]);
    assert_eq!(lines(names, "shim/core/src/task.rs", "mod process;\n"), NONE);
}

#[test]
fn undocumented_modules_are_found() {
    assert_eq!(lines(documentation, "a.rs", "// SPDX\nuse a::b;\n"), [2]);
    assert_eq!(lines(documentation, "a.rs", "// SPDX\n//! What.\nuse a::b;\n"), NONE);
    assert_eq!(lines(documentation, "a/tests.rs", "// SPDX\nuse super::*;\n"), NONE);
}

#[test]
fn unsafe_is_found_outside_the_edge() {
    assert_eq!(lines(unsafe_at_the_edge, "shim/core/src/a.rs", "fn f() {\n    unsafe { g() }\n}\n"), [2]);
    assert_eq!(lines(unsafe_at_the_edge, "shim/sys/src/a.rs", "fn f() { unsafe { g() } }\n"), NONE);
    assert_eq!(lines(unsafe_at_the_edge, "a.rs", "#![forbid(unsafe_code)]\n"), NONE);
}

#[test]
fn allowances_without_a_reason_are_found() {
    assert_eq!(lines(allowances_explained, "a.rs", "#[allow(dead_code)]\nfn f() {}\n"), [1]);
    assert_eq!(lines(allowances_explained, "a.rs", "#![allow(dead_code)]\n"), [1]);
    assert_eq!(lines(allowances_explained, "a.rs", "#[expect(\n    dead_code,\n    reason = \"soon\"\n)]\nfn f() {}\n"), NONE);
}

#[test]
fn asynchronous_mutexes_are_found() {
    assert_eq!(lines(no_async_mutex, "a.rs", "use tokio::sync::Mutex;\n"), [1]);
    assert_eq!(lines(no_async_mutex, "a.rs", "use tokio::sync::{\n    Mutex,\n    watch,\n};\n"), [2]);
    assert_eq!(lines(no_async_mutex, "a.rs", "use std::sync::Mutex;\nuse tokio::sync::{mpsc, watch};\n"), NONE);
}

#[test]
fn bare_spawns_are_found() {
    assert_eq!(lines(no_bare_spawn, "a.rs", "fn f() {\n    tokio::spawn(g());\n}\n"), [2]);
    assert_eq!(lines(no_bare_spawn, "a.rs", "fn f() { tokio::task::spawn_blocking(g) }\n"), [1]);
    assert_eq!(lines(no_bare_spawn, "a.rs", "fn f() { tracker.spawn(g()) }\n"), NONE);
}

#[test]
fn wire_types_are_found_outside_of_adapters() {
    let code = "use containerd_shim_protos::api;\nfn f(_: containerd_client::types::Mount) {}\n";
    assert_eq!(lines(wire_types, "vmm/src/relay.rs", code), [1, 2]);
    assert_eq!(lines(wire_types, "shim/core/src/task/service.rs", code), NONE);
    assert_eq!(lines(wire_types, "shim/src/shim_protocol/delete.rs", code), NONE);
}
