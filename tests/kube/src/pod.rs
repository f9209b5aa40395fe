// SPDX-License-Identifier: Apache-2.0
//! One pod, from its manifest to its last trace.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use magnetar_observe::Snapshot;
use serde_json::{Value, json};

use crate::{Kind, Kubectl, Output};

/// How long a container may take to end when its pod is deleted. Not 0: then the object would be
/// gone before the pod is.
const GRACE_SECONDS: u32 = 20;
/// Emulated machines boot within this, and their probes succeed.
const READY_SECONDS: u32 = 120;

const LOOK: Duration = Duration::from_millis(100);

/// A pod that was applied. It is deleted with this, if a test has not done so.
#[derive(Debug)]
pub struct Pod {
    kubectl: Kubectl,
    kind: Kind,
    name: String,
    uid: String,
    applied: Instant,
    deleted: bool,
}

impl Pod {
    /// Applies a pod with one container, which says hello, stays, and has a readiness probe.
    ///
    /// # Errors
    /// kubectl failed.
    pub fn apply(kubectl: Kubectl, kind: Kind, name: &str) -> Result<Self> {
        Self::apply_edited(kubectl, kind, name, |_| {})
    }

    /// The same, after `edit` has changed the pod's `spec`.
    ///
    /// # Errors
    /// kubectl failed, or the API server refuses the pod.
    pub fn apply_edited(kubectl: Kubectl, kind: Kind, name: &str, edit: impl FnOnce(&mut Value)) -> Result<Self> {
        let name = format!("{name}-{}", kind.class());
        let mut manifest = manifest(kind, &name);
        edit(&mut manifest["spec"]);
        let applied = Instant::now();
        kubectl.apply(&manifest)?;
        let object = kubectl.get(&format!("pod/{name}"))?.with_context(|| format!("pod {name} was applied and is not there"))?;
        let uid = object["metadata"]["uid"].as_str().context("a pod without uid")?.to_owned();
        Ok(Self { kubectl, kind, name, uid, applied, deleted: false })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until it is ready; how long that took since it was applied.
    ///
    /// # Errors
    /// It is not ready in time: with what `kubectl describe` says.
    pub fn ready(&self) -> Result<Duration> {
        let limit = format!("--timeout={}s", self.kubectl.within(READY_SECONDS).as_secs());
        let output = self.kubectl.try_run(&["wait", "--for", "condition=Ready", &limit, &self.reference()], &[])?;
        let took = self.applied.elapsed();
        ensure!(output.code == Some(0), "pod {}: {}\n{}", self.name, output.stderr.trim(), self.describe()?);
        Ok(took)
    }

    /// What the API server knows of it.
    ///
    /// # Errors
    /// kubectl failed, or there is no such pod.
    pub fn object(&self) -> Result<Value> {
        self.kubectl.get(&self.reference())?.with_context(|| format!("there is no pod {}", self.name))
    }

    /// What `kubectl describe` says, events included.
    ///
    /// # Errors
    /// kubectl failed.
    pub fn describe(&self) -> Result<String> {
        self.kubectl.run(&["describe", &self.reference()])
    }

    /// Waits until `kubectl describe` says these words.
    ///
    /// # Errors
    /// It does not: with what it says.
    pub fn described(&self, words: &str) -> Result<()> {
        let end = Instant::now() + self.kubectl.within(30);
        loop {
            let said = self.describe()?;
            if said.contains(words) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "kubectl describe does not say {words:?}:\n{said}");
            thread::sleep(LOOK);
        }
    }

    /// What its container has said.
    ///
    /// # Errors
    /// kubectl failed.
    pub fn logs(&self) -> Result<String> {
        self.kubectl.run(&["logs", &self.reference()])
    }

    /// Runs a command in its container, with this as its standard input.
    ///
    /// # Errors
    /// kubectl cannot be run; that the command fails is no error.
    pub fn exec(&self, command: &[&str], input: &[u8]) -> Result<Output> {
        let stdin: &[&str] = if input.is_empty() { &[] } else { &["--stdin"] };
        let reference = self.reference();
        self.kubectl.try_run(&[&["exec", &reference], stdin, &["--"], command].concat(), input)
    }

    /// Waits until a command in its container says this, and nothing else on standard output.
    ///
    /// # Errors
    /// It does not: with what it says.
    pub fn says(&self, command: &[&str], what: &str) -> Result<()> {
        let end = Instant::now() + self.kubectl.within(30);
        loop {
            let said = self.exec(command, &[])?;
            if said.stdout == what && said.code == Some(0) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{command:?} in pod {} does not say {what:?}: {said:?}", self.name);
            thread::sleep(LOOK);
        }
    }

    /// Deletes it, and waits until the API server has it no more: how long that took.
    ///
    /// # Errors
    /// kubectl failed, or it took too long.
    pub fn delete(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let limit = format!("--timeout={}s", self.kubectl.within(3 * GRACE_SECONDS).as_secs());
        self.kubectl.run(&["delete", &limit, &self.reference()])?;
        self.deleted = true;
        Ok(begin.elapsed())
    }

    /// What this node still has with its uid: the folder of its volumes, processes, mounts, cgroups
    /// and files.
    ///
    /// # Errors
    /// The kernel's data cannot be read.
    pub fn traces(&self) -> Result<Vec<String>> {
        let found = Snapshot::take()?.without(|thing| !thing.contains(&self.uid)).since(&Snapshot::default());
        let folder = Path::new("/var/lib/kubelet/pods").join(&self.uid);
        Ok(found.new.into_iter().chain(folder.exists().then(|| format!("folder {}", folder.display()))).collect())
    }

    /// Waits until it has no traces.
    ///
    /// # Errors
    /// Some are left.
    pub fn gone(&self) -> Result<()> {
        let end = Instant::now() + self.kubectl.within(30);
        loop {
            let traces = self.traces()?;
            if traces.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("pod {} is deleted and left:\n{}", self.name, traces.join("\n"));
            }
            thread::sleep(LOOK);
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn reference(&self) -> String {
        format!("pod/{}", self.name)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if !self.deleted
            && let Err(error) = self.delete()
        {
            eprintln!("pod {} stays: {error:#}", self.name);
        }
    }
}

fn manifest(kind: Kind, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "runtimeClassName": kind.class(),
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "containers": [{
                "name": "hello",
                "image": kind.image(),
                "command": kind.hello(),
                "readinessProbe": {"exec": {"command": kind.calls()}, "periodSeconds": 1, "timeoutSeconds": 10},
            }],
        },
    })
}
