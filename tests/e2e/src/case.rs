// SPDX-License-Identifier: Apache-2.0
//! What one test works with: the node's CRI, the handler under test, and its patience.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use magnetar_cri::{Container, ContainerSpec, Node, Pod, PodSpec};

/// The image that all tests use: busybox, each applet a program of its own.
pub const BUSYBOX: &str = "localhost/magnetar/busybox:1";

const SOCKET: &str = "/run/containerd/containerd.sock";
const HANDLER: &str = "magnetar-runc";

/// The patience that a node asks for whose processor is emulated (images/node/vm.sh).
const EMULATED: u32 = 10;

/// One test's view of the node.
#[derive(Clone, Debug)]
pub struct Case {
    node: Node,
    handler: String,
    patience: u32,
}

impl Case {
    /// Connects to the node's containerd with the settings of the environment.
    pub async fn new() -> Result<Self> {
        let setting = |key: &str, default: &str| env::var(key).unwrap_or_else(|_| default.to_owned());
        let patience = setting("MAGNETAR_PATIENCE", "1").parse().context("MAGNETAR_PATIENCE must be a whole number")?;
        let deadline = Duration::from_secs(60) * patience;
        let node = Node::connect(setting("MAGNETAR_CRI_SOCKET", SOCKET), deadline).await?;
        Ok(Self { node, handler: setting("MAGNETAR_HANDLER", HANDLER), patience })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Whether containerd itself starts the pods' processes: the handlers of shim-mode.toml.
    pub fn is_shim_mode(&self) -> bool {
        self.handler().ends_with("-shim")
    }

    /// The runtime handler under test.
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// The handler is one of ours: a sandbox process per pod, with a record on disk.
    pub fn is_magnetar(&self) -> bool {
        self.handler.starts_with("magnetar-")
    }

    /// `seconds` on a fast node, more on a slow one. For waiting, never for measuring.
    pub fn within(&self, seconds: u32) -> Duration {
        Duration::from_secs(1) * seconds * self.patience
    }

    /// What should happen at once happens within this.
    pub fn soon(&self) -> Duration {
        self.within(15)
    }

    /// Whether the handler under test runs virtual machines.
    pub fn is_vm(&self) -> bool {
        self.hypervisor().is_some()
    }

    /// The hypervisor's program, if the handler under test runs virtual machines: as the kernel
    /// names its process.
    pub fn hypervisor(&self) -> Option<&'static str> {
        match self.handler.as_str() {
            "magnetar-qemu" => Some("qemu-system"),
            // A process's name has at most 15 letters.
            "magnetar-clh" => Some("cloud-hyperviso"),
            _ => None,
        }
    }

    /// How many of `pods` to make at the same time: all, but for machines on a node whose one
    /// processor is itself emulated. It starts one in ten seconds, and of four, whose kernels all
    /// want their ticks, none within the two minutes that a guest has.
    pub fn at_once(&self, pods: u32) -> u32 {
        if self.is_vm() && self.patience >= EMULATED { pods.min(2) } else { pods }
    }

    /// A pod to be run by the handler under test: the node's network, which most tests do not
    /// look at and which is quick. A virtual machine cannot have that one.
    pub fn pod_spec(&self, name: &str) -> PodSpec {
        let spec = self.pod_spec_with_network(name);
        if self.is_vm() { spec } else { spec.host_network() }
    }

    /// A pod to be run by the handler under test with a network of its own.
    pub fn pod_spec_with_network(&self, name: &str) -> PodSpec {
        PodSpec::new(name, &self.handler).own_pid()
    }

    /// Runs a pod of [`pod_spec`](Self::pod_spec).
    pub async fn pod(&self, name: &str) -> Result<Pod> {
        Ok(self.node.run_pod(&self.pod_spec(name)).await?)
    }

    /// A container to be run with a script for busybox' shell.
    pub fn script(&self, script: &str) -> ContainerSpec {
        ContainerSpec::new("script", BUSYBOX).shell(script)
    }

    /// A container that does nothing until it is stopped.
    pub fn sleeper(&self) -> ContainerSpec {
        // Not the shell itself: as process 1 it would ignore SIGTERM.
        ContainerSpec::new("sleeper", BUSYBOX).command(["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"])
    }

    /// Runs a container to its end and returns what it printed on standard output.
    pub async fn output(&self, pod: &Pod, spec: &ContainerSpec) -> Result<String> {
        let container = pod.run(spec).await?;
        let status = container.exited(self.soon()).await?;
        let output = self.whole_log(&container).await?.stdout();
        container.remove().await?;
        anyhow::ensure!(status.exit_code == 0, "exit code {}, output {output:?}", status.exit_code);
        Ok(output)
    }

    /// The log of a container that has ended.
    pub async fn whole_log(&self, container: &Container) -> Result<magnetar_cri::Log> {
        Ok(container.whole_log(self.soon()).await?)
    }

    /// The folder in which one of our pods keeps its record and its socket.
    pub fn state_dir(&self, pod: &Pod) -> PathBuf {
        Path::new("/run/magnetar/k8s.io").join(pod.id())
    }

    /// The process id of one of our pods' sandbox process, from the pod's record.
    pub fn sandbox_pid(&self, pod: &Pod) -> Result<i32> {
        recorded_pid(&self.state_dir(pod))?.context("the pod's record has no pid yet")
    }
}

/// The pid in a pod's record; none while no process has taken the pod over.
pub fn recorded_pid(state: &Path) -> Result<Option<i32>> {
    let file = state.join("pod.json");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let record: serde_json::Value = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    let pid = record.get("pid").and_then(serde_json::Value::as_i64).unwrap_or_default();
    Ok(i32::try_from(pid).ok().filter(|&pid| pid > 0))
}

/// A folder of the node for one test, gone with this value.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("magnetar-e2e-{}-{count}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file or folder in it, as text for a specification.
    pub fn join(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is found by the leak check.
        let _ = fs::remove_dir_all(&self.0);
    }
}
