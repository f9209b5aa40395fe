// SPDX-License-Identifier: Apache-2.0
//! The operator's program.

use std::{
    env,
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// kubectl on this node, and how long it may wait.
#[derive(Clone, Copy, Debug)]
pub struct Kubectl {
    patience: u32,
}

/// What it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
}

impl Kubectl {
    /// kubectl with the patience that the environment asks for.
    ///
    /// # Errors
    /// `MAGNETAR_PATIENCE` is no number.
    pub fn new() -> Result<Self> {
        let patience = env::var("MAGNETAR_PATIENCE").unwrap_or_else(|_| "1".to_owned());
        Ok(Self { patience: patience.parse().context("MAGNETAR_PATIENCE must be a whole number")? })
    }

    /// So many seconds on a node of usual speed.
    pub fn within(self, seconds: u32) -> Duration {
        Duration::from_secs(seconds.into()) * self.patience
    }

    /// Runs it to its end, with this as its standard input.
    ///
    /// # Errors
    /// It cannot be run, or does not take its input.
    pub fn try_run(self, words: &[&str], input: &[u8]) -> Result<Output> {
        let mut command = Command::new("kubectl");
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl has no input")?;
        // Beside it: it may say much before it has read all.
        let (written, output) = thread::scope(|scope| {
            let written = scope.spawn(move || stdin.write_all(input));
            (written.join(), child.wait_with_output())
        });
        let output = output.context("kubectl")?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let output = Output { stdout: text(&output.stdout), stderr: text(&output.stderr), code: output.status.code() };
        let taken = written.is_ok_and(|written| written.is_ok());
        // One that has failed need not have read.
        ensure!(taken || output.code != Some(0), "kubectl {} did not read its input", words.join(" "));
        Ok(output)
    }

    /// Runs it to its end, which must be a good one, and returns its standard output.
    ///
    /// # Errors
    /// As [`Kubectl::try_run`], and when it fails: with what it said.
    pub fn run(self, words: &[&str]) -> Result<String> {
        self.run_with(words, &[])
    }

    /// The same, with this as its standard input.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn run_with(self, words: &[&str], input: &[u8]) -> Result<String> {
        let output = self.try_run(words, input)?;
        ensure!(output.code == Some(0), "kubectl {}: {}", words.join(" "), output.stderr.trim());
        Ok(output.stdout)
    }

    /// Applies an object.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn apply(self, object: &Value) -> Result<()> {
        self.run_with(&["apply", "--filename", "-"], object.to_string().as_bytes())?;
        Ok(())
    }

    /// Whether the node's containerd says that a handler has a feature.
    ///
    /// # Errors
    /// kubectl failed, or there is not one node.
    pub fn handler_has(self, handler: &str, feature: &str) -> Result<bool> {
        let nodes = self.get("nodes")?.unwrap_or_default();
        let [node] = nodes["items"].as_array().map(Vec::as_slice).unwrap_or_default() else { bail!("not one node: {nodes}") };
        let handlers = node["status"]["runtimeHandlers"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(handlers.iter().any(|one| one["name"] == handler && one["features"][feature] == true))
    }

    /// An object as the API server has it; `None` if it has none of this name.
    ///
    /// # Errors
    /// As [`Kubectl::run`], or the answer is not JSON.
    pub fn get(self, name: &str) -> Result<Option<Value>> {
        let said = self.run(&["get", name, "--output", "json", "--ignore-not-found"])?;
        if said.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&said).map(Some).with_context(|| format!("the API server's {name}"))
    }
}
