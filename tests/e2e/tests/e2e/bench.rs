// SPDX-License-Identifier: Apache-2.0
//! The Task API of one pod, asked on the socket of the pod's own process, and containers that
//! containerd does not know.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::{
    api::{CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, StartRequest, StateRequest, Status, WaitRequest},
    protobuf::well_known_types::any::Any,
    shim_async::{Client, TaskClient},
};
use magnetar_cri::{Pod, PodSpec, v1::PodSandboxState};
use magnetar_e2e::{Case, Scratch, kernel::remove_cgroups};
use serde_json::{Value, json};
use ttrpc::context;

/// Where the containers of these tests have their cgroups.
const CGROUP: &str = "/magnetar-e2e-task";

/// Where containerd keeps the bundles of pods whose processes it starts itself.
const STOCK_PODS: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";

/// A pod, a connection to its socket, and a bundle that containerd does not know.
pub struct Bench {
    pub pod: Pod,
    pub task: TaskClient,
    pub scratch: Scratch,
}

impl Bench {
    /// A pod of the handler under test, which is one of ours.
    pub async fn new(case: &Case) -> Result<Self> {
        let pod = case.pod("task-api").await?;
        let address = format!("unix://{}", socket(case, &pod).display());
        let bench = Self::connect(pod, &address).await?;
        bench.write_bundle("bundle", "sleep 1000")?;
        Ok(bench)
    }

    /// A pod of containerd's own runc shim, whatever the handler under test is.
    pub async fn stock(case: &Case) -> Result<Self> {
        let pod = case.node().run_pod(&PodSpec::new("task-api-stock", "runc").own_pid().host_network()).await?;
        let file = Path::new(STOCK_PODS).join(pod.id()).join("bootstrap.json");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let bootstrap: Value = serde_json::from_str(&text)?;
        ensure!(bootstrap["version"] == 3 && bootstrap["protocol"] == "ttrpc", "the stock shim does not speak our Task API: {text}");
        let address = bootstrap["address"].as_str().with_context(|| format!("the stock shim has no address: {text}"))?;
        Self::connect(pod, address).await
    }

    async fn connect(pod: Pod, address: &str) -> Result<Self> {
        let task = TaskClient::new(Client::connect(address).await?);
        Ok(Self { pod, task, scratch: Scratch::new()? })
    }

    /// An OCI bundle of its own: busybox of the node, a few namespaces.
    pub fn write_bundle(&self, name: &str, script: &str) -> Result<PathBuf> {
        let process = json!({ "args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
        self.write_bundle_for(name, &process)
    }

    /// The same for a `process` in the words of an OCI specification.
    pub fn write_bundle_for(&self, name: &str, process: &Value) -> Result<PathBuf> {
        let bundle = self.scratch.path().join(name);
        for folder in ["bin", "proc", "dev", "sys"] {
            fs::create_dir_all(bundle.join("rootfs").join(folder))?;
        }
        let shell = bundle.join("rootfs/bin/sh");
        fs::copy("/usr/bin/busybox", &shell).context("the node has no static busybox")?;
        fs::set_permissions(&shell, fs::Permissions::from_mode(0o755))?;
        let spec = json!({
            "ociVersion": "1.1.0",
            "process": process,
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] },
            ],
            "linux": {
                "cgroupsPath": format!("{CGROUP}/{name}"),
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }],
            },
        });
        fs::write(bundle.join("config.json"), spec.to_string())?;
        Ok(bundle)
    }

    pub fn request(&self, id: &str, bundle: &str) -> CreateTaskRequest {
        CreateTaskRequest { id: id.to_owned(), bundle: self.scratch.join(bundle), ..Default::default() }
    }

    pub async fn create(&self, id: &str, bundle: &str) -> ttrpc::Result<u32> {
        Ok(self.task.create(patience(), &self.request(id, bundle)).await?.pid)
    }

    pub async fn start(&self, id: &str) -> ttrpc::Result<u32> {
        let request = StartRequest { id: id.to_owned(), ..Default::default() };
        Ok(self.task.start(patience(), &request).await?.pid)
    }

    pub async fn state(&self, id: &str) -> ttrpc::Result<Status> {
        let request = StateRequest { id: id.to_owned(), ..Default::default() };
        Ok(self.task.state(patience(), &request).await?.status.enum_value_or_default())
    }

    pub async fn kill(&self, id: &str) -> ttrpc::Result<()> {
        let request = KillRequest { id: id.to_owned(), signal: 9, ..Default::default() };
        self.task.kill(patience(), &request).await.map(drop)
    }

    pub async fn wait(&self, id: &str) -> ttrpc::Result<u32> {
        let request = WaitRequest { id: id.to_owned(), ..Default::default() };
        Ok(self.task.wait(patience(), &request).await?.exit_status)
    }

    pub async fn delete(&self, id: &str) -> ttrpc::Result<()> {
        let request = DeleteRequest { id: id.to_owned(), ..Default::default() };
        self.task.delete(patience(), &request).await.map(drop)
    }

    pub async fn exec(&self, id: &str, exec: &str) -> ttrpc::Result<()> {
        let process = json!({ "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            value: process.to_string().into(),
            ..Default::default()
        };
        let request = ExecProcessRequest { id: id.to_owned(), exec_id: exec.to_owned(), spec: Some(spec).into(), ..Default::default() };
        self.task.exec(patience(), &request).await.map(drop)
    }

    /// Ends a container of these tests in the way containerd would.
    pub async fn end(&self, id: &str) -> Result<()> {
        self.kill(id).await?;
        self.wait(id).await?;
        Ok(self.delete(id).await?)
    }

    /// The pod is as good as before all this, and goes.
    pub async fn close(self, case: &Case) -> Result<()> {
        assert_eq!(self.pod.state().await?, PodSandboxState::SandboxReady);
        assert_eq!(case.output(&self.pod, &case.script("echo fine")).await?, "fine\n");
        self.pod.remove().await?;
        remove_cgroups(case, CGROUP).await
    }
}

/// The socket of one of our pods.
pub fn socket(case: &Case, pod: &Pod) -> PathBuf {
    case.state_dir(pod).join("task.sock")
}

/// With it, a call waits 30 seconds for its answer. The stock shim has to be told containerd's
/// namespace.
pub fn patience() -> context::Context {
    let mut context = context::with_duration(Duration::from_secs(30));
    context.add("containerd-namespace-ttrpc".to_owned(), "k8s.io".to_owned());
    context
}
