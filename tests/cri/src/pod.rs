// SPDX-License-Identifier: Apache-2.0
//! A running pod.

use std::path::{Path, PathBuf};

use k8s_cri::v1::{self, PodSandboxConfig};

use crate::{Container, ContainerSpec, Error, Forward, Node, Result, node::remove_logs, resize};

/// A pod that containerd runs for us. It stays until [`Pod::remove`]: dropping this value stops
/// nothing, but the pod is then among [`Node::leftovers`].
#[derive(Clone, Debug)]
pub struct Pod {
    node: Node,
    id: String,
    config: PodSandboxConfig,
}

impl Pod {
    pub(crate) fn new(node: Node, id: String, config: PodSandboxConfig) -> Self {
        Self { node, id, config }
    }

    /// containerd's id of the pod.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The node it runs on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where the logs of its containers are.
    pub fn log_directory(&self) -> &Path {
        Path::new(&self.config.log_directory)
    }

    /// CreateContainer, with the namespace modes of the pod.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<Container> {
        let security = self.config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let namespaces = security.and_then(|s| s.namespace_options.clone()).unwrap_or_default();
        self.create_in(spec, namespaces).await
    }

    /// CreateContainer with namespace modes of its own, as a debug container has.
    pub async fn create_in(&self, spec: &ContainerSpec, namespaces: v1::NamespaceOption) -> Result<Container> {
        let mut config = spec.config().clone();
        config.linux.get_or_insert_default().security_context.get_or_insert_default().namespace_options = Some(namespaces);
        let log = self.log_directory().join(&config.log_path);
        let request =
            v1::CreateContainerRequest { pod_sandbox_id: self.id.clone(), config: Some(config), sandbox_config: Some(self.config.clone()) };
        let answer = self.node.runtime("CreateContainer", request, async |mut c, r| c.create_container(r).await).await?;
        Ok(Container::new(self.node.clone(), answer.container_id, log))
    }

    /// CreateContainer and StartContainer.
    pub async fn run(&self, spec: &ContainerSpec) -> Result<Container> {
        let container = self.create(spec).await?;
        container.start().await?;
        Ok(container)
    }

    /// PodSandboxStatus.
    pub async fn status(&self) -> Result<v1::PodSandboxStatus> {
        let missing = Error::Incomplete { call: "PodSandboxStatus", what: "status" };
        self.status_response(false).await?.status.ok_or(missing)
    }

    /// Ready or not.
    pub async fn state(&self) -> Result<v1::PodSandboxState> {
        self.node.pod_state(&self.id).await
    }

    /// The verbose part of PodSandboxStatus: runtime details as JSON. Those of Magnetar are under
    /// `magnetar`.
    pub async fn info(&self) -> Result<serde_json::Value> {
        let answer = self.status_response(true).await?;
        let read = |key: &str| {
            let text = answer.info.get(key).map_or("{}", String::as_str);
            serde_json::from_str::<serde_json::Value>(text)
                .map_err(|_| Error::Incomplete { call: "PodSandboxStatus", what: "readable info" })
        };
        let mut info = read("info")?;
        info["magnetar"] = read("magnetar")?;
        Ok(info)
    }

    /// The pod's address; empty with the node's network.
    pub async fn ip(&self) -> Result<String> {
        Ok(self.status().await?.network.map(|n| n.ip).unwrap_or_default())
    }

    /// PodSandboxStats.
    pub async fn stats(&self) -> Result<v1::PodSandboxStats> {
        let request = v1::PodSandboxStatsRequest { pod_sandbox_id: self.id.clone() };
        self.node
            .runtime("PodSandboxStats", request, async |mut c, r| c.pod_sandbox_stats(r).await)
            .await?
            .stats
            .ok_or(Error::Incomplete { call: "PodSandboxStats", what: "stats" })
    }

    /// UpdatePodSandboxResources: what its containers may use together, which a kubelet says after
    /// it has changed the pod's cgroup.
    pub async fn resize(&self, resources: v1::LinuxContainerResources) -> Result<()> {
        let overhead = Some(v1::LinuxContainerResources::default());
        let request = resize::Request { pod_sandbox_id: self.id.clone(), overhead, resources: Some(resources) };
        let channel = self.node.channel();
        self.node.runtime("UpdatePodSandboxResources", request, async |_, r| resize::send(channel, r).await).await.map(drop)
    }

    /// PortForward: a stream to a TCP port on the pod's loopback.
    pub async fn port_forward(&self, port: u16) -> Result<Forward> {
        Forward::open(&self.port_forward_url(port).await?, port).await
    }

    /// The URL at which the streaming server waits for a port-forward client.
    pub async fn port_forward_url(&self, port: u16) -> Result<String> {
        let request = v1::PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![i32::from(port)] };
        let answer = self.node.runtime("PortForward", request, async |mut c, r| c.port_forward(r).await).await?;
        Ok(answer.url)
    }

    /// StopPodSandbox: its containers are killed and its network is gone.
    pub async fn stop(&self) -> Result<()> {
        self.node.stop_pod(&self.id).await
    }

    /// Stops the pod, removes it with all its containers, and deletes its logs.
    pub async fn remove(self) -> Result<()> {
        self.node.remove_pod(&self.id).await?;
        remove_logs(&PathBuf::from(&self.config.log_directory))
    }

    async fn status_response(&self, verbose: bool) -> Result<v1::PodSandboxStatusResponse> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose };
        self.node.runtime("PodSandboxStatus", request, async |mut c, r| c.pod_sandbox_status(r).await).await
    }
}
