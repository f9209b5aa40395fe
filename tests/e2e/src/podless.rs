// SPDX-License-Identifier: Apache-2.0
//! Containers without a pod: the names under which clients ask for a kind of sandbox, and ctr,
//! which makes such containers.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use magnetar_observe::Processes;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Case, Output, Tool, eventually};

/// containerd's namespace for containers of clients that name none.
pub const NAMESPACE: &str = "default";

/// ctr, with the runtime under test.
#[derive(Debug)]
pub struct Ctr<'a> {
    case: &'a Case,
    tool: Tool,
    runtime: String,
}

/// The runtime's name by which a client gets the kind of sandbox under test, or the stock runtime.
pub fn runtime(case: &Case) -> String {
    match case.handler().trim_end_matches("-shim") {
        handler if handler.starts_with("magnetar-") => format!("io.containerd.{handler}.v2"),
        _ => "io.containerd.runc.v2".into(),
    }
}

impl<'a> Ctr<'a> {
    /// For a test of the handler under test.
    pub fn new(case: &'a Case) -> Result<Self> {
        let tool = Tool::ctr_in(NAMESPACE, case.within(60)).context("the node has no ctr")?;
        Ok(Self { case, tool, runtime: runtime(case) })
    }

    /// Runs a command of ctr, which must succeed, and returns its standard output.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        self.tool.run(words)
    }

    /// Runs a command of ctr.
    pub fn try_run(&self, words: &[&str]) -> Result<Output> {
        self.tool.try_run(words).map(without_advice)
    }

    /// `ctr run` with the runtime under test: options, image, the container's name, and its
    /// command.
    pub fn container(&self, words: &[&str]) -> Result<Output> {
        self.try_run(&self.words(words))
    }

    /// The same for a container that must be made: what it has said on standard output.
    pub fn made(&self, words: &[&str]) -> Result<String> {
        self.tool.run(&self.words(words))
    }

    /// The same as a command, for what does not end by itself.
    pub fn command(&self, words: &[&str]) -> Command {
        self.tool.command(&self.words(words))
    }

    /// Any other command of ctr, for what does not end by itself.
    pub fn any_command(&self, words: &[&str]) -> Command {
        self.tool.command(words)
    }

    fn words<'w>(&'w self, words: &[&'w str]) -> Vec<&'w str> {
        [&["run", "--runtime", &self.runtime][..], words].concat()
    }

    /// The state of a container's first process, as `ctr task ls` has it: its process id and its
    /// status.
    pub fn task(&self, container: &str) -> Result<Option<(i32, String)>> {
        let listed = self.run(&["task", "ls"])?;
        let line = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|words| words.first() == Some(&container));
        let Some(words) = line else { return Ok(None) };
        let (pid, status) = (words.get(1).context("no pid")?, words.get(2).context("no status")?);
        Ok(Some((pid.parse()?, (*status).to_owned())))
    }

    /// Waits until a container's first process is in this state.
    pub async fn becomes(&self, container: &str, status: &str) -> Result<()> {
        let what = format!("{container} is {status}");
        eventually(&what, self.case.soon(), async || Ok(self.task(container)?.is_some_and(|(_, is)| is == status).then_some(()))).await
    }

    /// Kills and removes a container, which must be there.
    pub fn remove(&self, container: &str) -> Result<()> {
        self.run(&["task", "rm", "--force", container])?;
        self.run(&["container", "rm", container]).map(drop)
    }
}

/// containerd's own words on the node, which a later ctr says before those of the container.
fn without_advice(output: Output) -> Output {
    let is_advice = |line: &&str| line.contains("level=warning") && line.contains("DEPRECATION: ");
    let stderr = output.stderr.split_inclusive('\n').filter(|line| !is_advice(line)).collect();
    Output { stderr, ..output }
}

/// Makes an image of the node's Kubernetes namespace known in another one.
pub fn bring_image(case: &Case, image: &str, namespace: &str) -> Result<()> {
    let ctr = |namespace| Tool::ctr_in(namespace, case.within(60)).context("the node has no ctr");
    let there = ctr(namespace)?;
    if there.run(&["images", "ls", "--quiet"])?.lines().any(|name| name == image) {
        return Ok(());
    }
    let scratch = crate::Scratch::new()?;
    let archive = scratch.join("image.tar");
    // By itself: what containerd sends through a stream is not always written when ctr ends ("short
    // read" at the import).
    ctr("k8s.io")?.run(&["images", "export", "--local", &archive, image])?;
    there.run(&["images", "import", &archive]).map(drop)
}

/// The process that manages one container without a pod: a sandbox process of ours, or the stock
/// shim.
pub fn sandbox_process(container: &str) -> Result<i32> {
    let all = Processes::now()?;
    let manages = |command: &[String]| {
        let program = command.first().and_then(|program| Path::new(program).file_name()?.to_str()).unwrap_or_default();
        (program.starts_with("magnetar-") || program.starts_with("containerd-shim-"))
            && command.iter().any(|word| word == container || Path::new(word).file_name().is_some_and(|name| name == container))
    };
    // A copy of it that only holds namespaces has its command line, and a name of its own.
    let found: Vec<_> = all.iter().filter(|process| process.name != "magnetar-holder" && manages(&process.command)).collect();
    ensure!(found.len() == 1, "{} processes manage {container}: {found:?}", found.len());
    Ok(found[0].pid)
}

/// Kills the process that manages a container, without warning.
pub fn kill_sandbox_process(container: &str) -> Result<()> {
    Ok(kill(Pid::from_raw(sandbox_process(container)?), Signal::SIGKILL)?)
}

/// Whether a process lives.
pub fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
