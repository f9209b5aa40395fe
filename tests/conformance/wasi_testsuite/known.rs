// SPDX-License-Identifier: Apache-2.0
//! The known differences (wasi-testsuite.toml), and what a test's outcome means with them.
//!
//! The list stays true by itself: a test on it that passes is as much a failure as one that fails
//! and is not on it, and so is one that fails for another reason than the listed one.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Engine;

/// The whole list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    difference: Vec<Difference>,
}

/// A test that fails.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    engines: Vec<Engine>,
    suite: String,
    test: String,
    /// What is in the failure's text, so that it is not taken for another one.
    shows: String,
    pub reason: String,
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    /// It failed as listed.
    Known,
    /// What is wrong, and the failure's text if there is one.
    Unexpected(String),
}

impl Known {
    /// The list in the sources.
    pub fn read() -> Result<Self> {
        let known: Self = toml::from_str(include_str!("../wasi-testsuite.toml")).context("wasi-testsuite.toml")?;
        let mut seen = BTreeSet::new();
        for difference in &known.difference {
            ensure!(!difference.reason.is_empty() && !difference.shows.is_empty(), "no reason, or nothing shown: {difference:?}");
            for engine in &difference.engines {
                ensure!(seen.insert((engine, &difference.suite, &difference.test)), "listed twice: {difference:?}");
            }
        }
        Ok(known)
    }

    fn of(&self, engine: Engine, suite: &str, test: &str) -> Option<&Difference> {
        self.difference.iter().find(|known| known.engines.contains(&engine) && known.suite == suite && known.test == test)
    }

    /// What a failure (or none) of a test means.
    pub fn judge(&self, engine: Engine, suite: &str, test: &str, failure: Option<&str>) -> Verdict {
        match (failure, self.of(engine, suite, test)) {
            (None, None) => Verdict::Passed,
            (None, Some(known)) => Verdict::Unexpected(format!("passes, and is listed as a known difference: {}", known.reason)),
            (Some(failure), None) => Verdict::Unexpected(failure.to_owned()),
            (Some(failure), Some(known)) if failure.contains(&known.shows) => Verdict::Known,
            (Some(failure), Some(known)) => Verdict::Unexpected(format!("fails otherwise than listed ({:?}): {failure}", known.shows)),
        }
    }

    /// What is listed for a suite and names none of its tests.
    pub fn strangers<'a>(&'a self, exists: impl Fn(&str, &str) -> bool) -> impl Iterator<Item = String> + 'a {
        let unknown = move |known: &&Difference| !exists(&known.suite, &known.test);
        let text =
            |known: &Difference| format!("{}: {} is listed as a known difference, and there is no such test", known.suite, known.test);
        self.difference.iter().filter(unknown).map(text).collect::<Vec<_>>().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let text = r#"
            [[difference]]
            engines = ["wasmtime"]
            suite = "c"
            test = "listed"
            shows = "exit code 1"
            reason = "it is so"
        "#;
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_list_in_the_sources_is_readable() {
        Known::read().unwrap();
    }

    #[test]
    fn only_a_listed_failure_of_the_listed_kind_is_expected() {
        let judge = |engine, test, failure| known().judge(engine, "c", test, failure);
        assert_eq!(judge(Engine::Wasmtime, "other", None), Verdict::Passed);
        assert_eq!(judge(Engine::Wasmtime, "listed", Some("wait: exit code 1")), Verdict::Known);
        for (engine, test, failure) in [
            (Engine::Wasmtime, "other", Some("exit code 1")),
            (Engine::Wasmtime, "listed", Some("exit code 2")),
            (Engine::Wasmtime, "listed", None),
            (Engine::WasmEdge, "listed", Some("exit code 1")),
        ] {
            assert!(matches!(judge(engine, test, failure), Verdict::Unexpected(_)), "{engine:?} {test} {failure:?}");
        }
    }

    #[test]
    fn a_listed_test_that_is_not_there_is_named() {
        let known = known();
        assert_eq!(known.strangers(|_, test| test == "listed").count(), 0);
        assert_eq!(known.strangers(|_, _| false).count(), 1);
    }
}
