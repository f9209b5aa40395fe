// SPDX-License-Identifier: Apache-2.0
//! Checks layout and style as tests: `cargo test -p tidy` prints its findings as `file:line: what`.
//!
//! ```text
//!   git ls-files ──► Tree ──► text rules      paths, shell scripts, SPDX lines
//!                     │  ├──► comment rule    their width
//!                     │  └──► source rules    length, names, docs, unsafe, allowances
//!                     └─────► manifest rules  workspace-only dependencies and lints
//!   cargo metadata ─────────► import rules    which crate may import which
//! ```
//!
//! Checks that clippy has are left to clippy; this crate checks that they are enabled. A rule is a
//! pure function from the files to findings, and has a unit test in which it finds something. If a
//! rule makes code worse, change the rule here, where everybody sees it.

mod rules;
mod source;
mod tree;

use std::{fmt, path::PathBuf};

pub use rules::{comments, imports, manifest, source as source_rules, text};
pub use source::Source;
pub use tree::{Text, Tree};

/// A place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Below the root of the checkout.
    pub file: PathBuf,
    /// Counted from one.
    pub line: usize,
    /// What is wrong, and what to do.
    pub what: String,
}

impl Finding {
    fn new(file: &std::path::Path, line: usize, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}
