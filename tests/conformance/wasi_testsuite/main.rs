// SPDX-License-Identifier: Apache-2.0
//! wasi-testsuite in pods: each of its modules in a container, on every engine that has its world,
//! compared with the list of known differences.
//!
//! ```text
//!   <checkout>/tests/<language>/testsuite/<version>/   a suite: modules, specifications, roots
//!        │ images      an image for each root of a suite, with its modules beside it
//!        ▼
//!   engine × suite     a turn on the node: one pod, and in it a container for each test (`one`)
//!        │ known       wasi-testsuite.toml
//!        ▼
//!   the table, and all that is not as expected
//! ```
//!
//! tests/conformance/wasi-testsuite runs it in a node, and says by the environment where the suite
//! is (`MAGNETAR_WASI_SUITE`), and which tests to run (`MAGNETAR_WASI_ONLY`: those whose
//! `engine/language/version/test` contains it; all without). Nothing of the suite is in this
//! repository.

mod images;
mod known;
mod one;
mod servers;
mod spec;

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use magnetar_cri::PodSpec;
use magnetar_e2e::{Case, on_node};
use serde::Deserialize;

use self::{
    images::Image,
    known::{Known, Verdict},
    one::Test,
    spec::Spec,
};

/// The engines, each with a handler of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Engine {
    Wasmtime,
    WasmEdge,
}

const ENGINES: [Engine; 2] = [Engine::Wasmtime, Engine::WasmEdge];

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Wasmtime => "wasmtime",
            Self::WasmEdge => "wasmedge",
        }
    }

    fn handler(self) -> String {
        format!("magnetar-{}", self.name())
    }

    /// Why it has nothing of this version of WASI, if so.
    fn lacks(self, suite: &Suite) -> Option<&'static str> {
        (self == Self::WasmEdge && !suite.name.ends_with("/wasm32-wasip1")).then_some("WasmEdge runs no components")
    }
}

/// The tests of a language and a version of WASI.
struct Suite {
    /// `language/version`.
    name: String,
    tests: Vec<Test>,
    folder: PathBuf,
}

/// How the tests of a suite went on an engine.
struct Row {
    engine: Engine,
    suite: String,
    passed: u32,
    known: u32,
    unexpected: Vec<String>,
    skipped: usize,
}

#[test]
#[ignore = "needs a node and a checkout of wasi-testsuite: tests/conformance/wasi-testsuite"]
fn the_suite_passes_but_for_known_differences() -> Result<()> {
    let checkout = PathBuf::from(env::var("MAGNETAR_WASI_SUITE").context("MAGNETAR_WASI_SUITE names no checkout of wasi-testsuite")?);
    let only = env::var("MAGNETAR_WASI_ONLY").unwrap_or_default();
    let (suites, known) = (suites(&checkout)?, Known::read()?);
    let exists = |suite: &str, test: &str| suites.iter().any(|is| is.name == suite && is.tests.iter().any(|is| is.name == test));
    let mut wrong: Vec<_> = known.strangers(exists).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let case = Case::new().await?;
        for suite in &suites {
            suite.import(&case).await.with_context(|| suite.name.clone())?;
        }
        anyhow::Ok(())
    })?;
    let mut rows = Vec::new();
    for engine in ENGINES {
        for suite in &suites {
            let row = suite.on(engine, &known, &only)?;
            wrong.extend(row.unexpected.iter().cloned());
            rows.push(row);
        }
    }
    tell(&table(&rows))?;
    for wrong in &wrong {
        tell(&format!("NOT AS EXPECTED: {wrong}"))?;
    }
    ensure!(wrong.is_empty(), "{} tests are not as expected", wrong.len());
    ensure!(rows.iter().any(|row| row.passed > 0), "no test was passed: {only:?} may name none");
    Ok(())
}

/// All suites of a checkout with built modules.
fn suites(checkout: &Path) -> Result<Vec<Suite>> {
    let mut suites = Vec::new();
    for language in sorted(&checkout.join("tests"))? {
        let built = language.join("testsuite");
        if !built.is_dir() {
            continue;
        }
        for folder in sorted(&built)? {
            let part = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let name = format!("{}/{}", part(&language), part(&folder));
            let mut tests = Vec::new();
            for module in sorted(&folder)?.into_iter().filter(|path| path.extension().is_some_and(|is| is == "wasm")) {
                let specification = module.with_extension("json");
                let spec = if specification.exists() {
                    Spec::parse(&fs::read_to_string(&specification)?).with_context(|| specification.display().to_string())?
                } else {
                    Spec::default()
                };
                let root = spec.run.root.as_deref().unwrap_or("none").to_lowercase();
                let image = format!("localhost/magnetar/wasi-testsuite-{}-{root}:1", name.replace('/', "-"));
                let stem = module.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                tests.push(Test { name: stem, image, module: part(&module), spec });
            }
            if !tests.is_empty() {
                suites.push(Suite { name, tests, folder });
            }
        }
    }
    ensure!(!suites.is_empty(), "there are no built modules in {}: its branch prod/testsuite-base has them", checkout.display());
    Ok(suites)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

impl Suite {
    /// Makes its images known to the node.
    async fn import(&self, case: &Case) -> Result<()> {
        let mut images = BTreeMap::new();
        for test in &self.tests {
            let root = test.spec.run.root.as_ref().map(|root| self.folder.join(root));
            let image = images.entry(&test.image).or_insert_with(|| Image { name: &test.image, root, modules: Vec::new() });
            image.modules.push(self.folder.join(&test.module));
        }
        for image in images.values() {
            image.import(case).await?;
        }
        Ok(())
    }

    /// Its turn on an engine.
    fn on(&self, engine: Engine, known: &Known, only: &str) -> Result<Row> {
        let tests: Vec<_> =
            self.tests.iter().filter(|test| format!("{}/{}/{}", engine.name(), self.name, test.name).contains(only)).collect();
        let mut row =
            Row { engine, suite: self.name.clone(), passed: 0, known: 0, unexpected: Vec::new(), skipped: self.tests.len() - tests.len() };
        if tests.is_empty() {
            return Ok(row);
        }
        if let Some(because) = engine.lacks(self) {
            row.skipped = self.tests.len();
            tell(&format!("skipped {}: {}: {because}", engine.name(), self.name))?;
            return Ok(row);
        }
        // A turn that fails as a whole is one failure more, and the next engine has its turn.
        let turn = catch_unwind(AssertUnwindSafe(|| on_node(async |case| row.fill(case, &tests, known).await)));
        if turn.is_err() {
            row.unexpected.push(format!("{}: {}: the turn failed as a whole, for the reason above", engine.name(), self.name));
        }
        Ok(row)
    }
}

impl Row {
    async fn fill(&mut self, case: &Case, tests: &[&Test], known: &Known) -> Result<()> {
        // There is no name server, which the pod finds out at once.
        let spec = PodSpec::new("wasi-testsuite", &self.engine.handler()).own_pid().dns(&["127.0.0.1"], &[], &[]);
        let pod = case.node().run_pod(&spec).await?;
        for test in tests {
            let failure = test.run(case, &pod).await.with_context(|| test.name.clone())?;
            match known.judge(self.engine, &self.suite, &test.name, failure.as_deref()) {
                Verdict::Passed => self.passed += 1,
                Verdict::Known => self.known += 1,
                Verdict::Unexpected(what) => {
                    tell(&format!("{}: {}: {}: {what}", self.engine.name(), self.suite, test.name))?;
                    self.unexpected.push(format!(
                        "{}: {}: {}: {}",
                        self.engine.name(),
                        self.suite,
                        test.name,
                        what.lines().next().unwrap_or_default()
                    ));
                }
            }
        }
        Ok(pod.remove().await?)
    }
}

/// Past libtest's capture: this is what the run is for.
fn tell(text: &str) -> Result<()> {
    writeln!(std::io::stderr(), "{text}").context("stderr")
}

fn table(rows: &[Row]) -> String {
    let mut text =
        format!("{:<10} {:<30} {:>6} {:>18} {:>10} {:>7}\n", "engine", "suite", "passed", "known differences", "unexpected", "skipped");
    for Row { engine, suite, passed, known, unexpected, skipped } in rows {
        text += &format!("{:<10} {suite:<30} {passed:>6} {known:>18} {:>10} {skipped:>7}\n", engine.name(), unexpected.len());
    }
    text
}
