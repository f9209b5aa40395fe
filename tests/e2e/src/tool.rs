// SPDX-License-Identifier: Apache-2.0
//! Command-line tools of the node, as people use them.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// A tool that is on this node.
#[derive(Clone, Debug)]
pub struct Tool {
    program: PathBuf,
    first: Vec<String>,
}

/// What a tool said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// It ended with exit code zero.
    pub success: bool,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
}

impl Tool {
    /// containerd's own client in the namespace of Kubernetes.
    pub fn ctr() -> Option<Self> {
        Self::find("ctr", &["--namespace", "k8s.io"])
    }

    /// containerd's own client in any namespace. It is stopped when it takes longer than `limit`.
    pub fn ctr_in(namespace: &str, limit: Duration) -> Option<Self> {
        Self::find("ctr", &["--namespace", namespace])?.limited(limit)
    }

    /// nerdctl, where somebody has put one into the node, with CNI's plugins where Debian has them.
    /// Its own networks are kept apart from those of the CRI.
    pub fn nerdctl(limit: Duration) -> Option<Self> {
        Self::find("nerdctl", &["--cni-path", "/usr/lib/cni", "--cni-netconfpath", "/etc/nerdctl/net.d"])?.limited(limit)
    }

    /// docker's client, where the node has it and its daemon.
    pub fn docker(limit: Duration) -> Option<Self> {
        Self::find("dockerd", &[])?;
        Self::find("docker", &[])?.limited(limit)
    }

    /// The CRI's client. Its own time-out is too short for a slow node.
    pub fn crictl() -> Option<Self> {
        Self::find("crictl", &["--timeout", "120s"])
    }

    fn find(name: &str, first: &[&str]) -> Option<Self> {
        let path = env::var_os("PATH")?;
        let program = env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())?;
        Some(Self { program, first: first.iter().map(|&word| word.to_owned()).collect() })
    }

    /// The same tool, run by one that stops it after `limit` and says so with exit code 124.
    fn limited(self, limit: Duration) -> Option<Self> {
        let timeout = Self::find("timeout", &["--kill-after=5"])?;
        let command = [limit.as_secs().to_string(), self.program.to_string_lossy().into_owned()];
        let first = timeout.first.into_iter().chain(command).chain(self.first).collect();
        Some(Self { program: timeout.program, first })
    }

    /// Runs it to its end.
    pub fn try_run(&self, words: &[&str]) -> Result<Output> {
        let output = Command::new(&self.program)
            .args(&self.first)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .with_context(|| self.program.display().to_string())?;
        Ok(Output {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            success: output.status.success(),
            code: output.status.code(),
        })
    }

    /// Runs it to its end, which must be a good one, and returns its standard output.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.try_run(words)?;
        let name = self.program.file_name().map(Path::new).unwrap_or(Path::new("")).display();
        ensure!(output.success, "{name} {}: {}", words.join(" "), output.stderr.trim());
        Ok(output.stdout)
    }

    /// The command, for what does not end by itself.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.first).args(words);
        command
    }
}
