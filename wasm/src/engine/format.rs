// SPDX-License-Identifier: Apache-2.0
//! What engines say of a module that they cannot run.

/// The name by which modules import WASI preview 1.
pub const PREVIEW1: &str = "wasi_snapshot_preview1";

/// The error for a module that lacks the function to call.
pub fn no_function(name: &str) -> String {
    format!("it exports no function {name:?}")
}

/// The error for a function that takes parameters.
pub fn with_parameters(name: &str) -> String {
    format!("its function {name:?} takes parameters: only one that takes none can be called")
}

/// The most imports that a message names.
const NAMED: usize = 20;

/// What imports of a module are, by the name that they are imported from, where no engine has them.
const KNOWN: [(&str, &str); 5] = [
    ("env", "\"env\" is for programs that embed the module, as JavaScript by Emscripten does: compile it for WASI"),
    ("wasi_unstable", "\"wasi_unstable\" is WASI's preview 0: compile for preview 1"),
    ("wasi", "\"wasi\" has the threads of wasi-threads, which no engine here runs"),
    ("wasi_ephemeral_nn", "of \"wasi_ephemeral_nn\" (wasi-nn) the functions are those of WasmEdge's plugin, for language models"),
    ("__wbindgen_placeholder__", "\"__wbindgen_placeholder__\" is for a browser: compile for WASI"),
];

/// The error for a module that imports what its engine does not have: for each import its name, and
/// what it is imported from.
pub fn unknown_imports<'a>(missing: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let missing: Vec<_> = missing.into_iter().collect();
    let names = missing.iter().take(NAMED).map(|(name, from)| format!("{name:?} of {from:?}"));
    let names = names.collect::<Vec<_>>().join(", ");
    let more = missing.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let known = KNOWN.iter().filter(|(from, _)| missing.iter().any(|(_, missing)| from == missing));
    let known: String = known.map(|(_, what)| format!("; {what}")).collect();
    (!missing.is_empty()).then(|| format!("it imports what its engine does not have: {names}{more}{known}"))
}

/// The error for a component that imports interfaces which its engine does not have.
pub fn unknown_interfaces<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let names: Vec<_> = names.into_iter().map(|name| format!("{name:?}")).collect();
    (!names.is_empty()).then(|| {
        let names = names.join(", ");
        format!("it imports interfaces that its engine does not have: {names}; it has those of {}", PACKAGES.join(", "))
    })
}

/// The packages of interfaces that components can import.
const PACKAGES: [&str; 8] =
    ["wasi:cli", "wasi:clocks", "wasi:config", "wasi:filesystem", "wasi:http", "wasi:io", "wasi:random", "wasi:sockets"];

/// Whether an import of a component may be one that its engine has.
pub fn is_known_interface(name: &str) -> bool {
    name.split_once('/').is_some_and(|(package, _)| PACKAGES.contains(&package))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_unknown_imports_are_named_with_what_is_known_of_them() {
        let missing = [("now", "env"), ("fd_write", "wasi_unstable"), ("f", "mine")];
        let said = unknown_imports(missing).unwrap();
        assert!(said.starts_with(
            "it imports what its engine does not have: \"now\" of \"env\", \"fd_write\" of \"wasi_unstable\", \"f\" of \"mine\"; "
        ));
        assert!(said.ends_with("compile it for WASI; \"wasi_unstable\" is WASI's preview 0: compile for preview 1"), "{said}");
        let many = unknown_imports(std::iter::repeat_n(("f", "mine"), 100)).unwrap();
        assert!(many.ends_with("\"f\" of \"mine\" and 80 more"), "{many}");
        assert_eq!(unknown_imports([]), None);
    }

    #[test]
    fn interfaces_are_known_by_their_package() {
        assert!(is_known_interface("wasi:cli/run@0.2.12") && is_known_interface("wasi:http/types@0.2.0"));
        assert!(!is_known_interface("wasi:keyvalue/store@0.2.0") && !is_known_interface("wasi:clients/x") && !is_known_interface("f"));
        let said = unknown_interfaces(["wasi:keyvalue/store@0.2.0", "mine:own/thing"]).unwrap();
        assert!(
            said.starts_with(
                "it imports interfaces that its engine does not have: \"wasi:keyvalue/store@0.2.0\", \"mine:own/thing\"; it has"
            )
        );
    }
}
