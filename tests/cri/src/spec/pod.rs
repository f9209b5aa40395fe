// SPDX-License-Identifier: Apache-2.0
//! A pod's configuration.

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use k8s_cri::v1::{
    DnsConfig, IdMapping, Int64Value, LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol, UserNamespace,
};

/// The configuration of a pod. It has nothing that the test does not set, but for a unique id and a
/// folder for the pod's logs.
#[derive(Clone, Debug)]
pub struct PodSpec {
    handler: String,
    config: PodSandboxConfig,
}

impl PodSpec {
    /// A pod with namespaces of its own, run by `handler` (empty: containerd's default).
    pub fn new(name: &str, handler: &str) -> Self {
        let uid = unique();
        let logs = std::env::temp_dir().join("magnetar-pod-logs").join(&uid);
        Self {
            handler: handler.to_owned(),
            config: PodSandboxConfig {
                metadata: Some(PodSandboxMetadata { name: name.to_owned(), uid, namespace: "magnetar-test".to_owned(), attempt: 0 }),
                log_directory: logs.to_string_lossy().into_owned(),
                linux: Some(LinuxPodSandboxConfig::default()),
                ..Default::default()
            },
        }
    }

    /// The runtime handler.
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// The configuration as it is sent.
    pub fn config(&self) -> &PodSandboxConfig {
        &self.config
    }

    /// Changes anything that has no method of its own here.
    pub fn edit(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Uses the node's network.
    pub fn host_network(self) -> Self {
        self.namespaces(|n| n.network = NamespaceMode::Node.into())
    }

    /// Uses the node's PID namespace.
    pub fn host_pid(self) -> Self {
        self.namespaces(|n| n.pid = NamespaceMode::Node.into())
    }

    /// One PID namespace for all containers of the pod.
    pub fn shared_pid(self) -> Self {
        self.namespaces(|n| n.pid = NamespaceMode::Pod.into())
    }

    /// A PID namespace for each container, which is the default of Kubernetes.
    pub fn own_pid(self) -> Self {
        self.namespaces(|n| n.pid = NamespaceMode::Container.into())
    }

    /// Uses the node's System V and POSIX queues, and its /dev/shm.
    pub fn host_ipc(self) -> Self {
        self.namespaces(|n| n.ipc = NamespaceMode::Node.into())
    }

    /// A user namespace: root in the pod is `host_id` on the node, and `length` ids follow.
    pub fn user_namespace(self, host_id: u32, length: u32) -> Self {
        let map = IdMapping { host_id, container_id: 0, length };
        self.namespaces(|n| {
            n.userns_options = Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: vec![map], gids: vec![map] });
        })
    }

    /// The pod's host name.
    pub fn hostname(self, name: &str) -> Self {
        self.edit(|c| c.hostname = name.to_owned())
    }

    /// The content of resolv.conf.
    pub fn dns(self, servers: &[&str], searches: &[&str], options: &[&str]) -> Self {
        self.edit(|c| {
            c.dns_config = Some(DnsConfig { servers: owned(servers), searches: owned(searches), options: owned(options) });
        })
    }

    /// A kernel parameter of the pod's namespaces.
    pub fn sysctl(self, name: &str, value: &str) -> Self {
        self.linux(|l| {
            l.sysctls.insert(name.to_owned(), value.to_owned());
        })
    }

    /// An annotation.
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.edit(|c| {
            c.annotations.insert(key.to_owned(), value.to_owned());
        })
    }

    /// A label.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.edit(|c| {
            c.labels.insert(key.to_owned(), value.to_owned());
        })
    }

    /// The cgroup that the pod's cgroup is made in.
    pub fn cgroup_parent(self, parent: &str) -> Self {
        self.linux(|l| l.cgroup_parent = parent.to_owned())
    }

    /// The resources of the sandbox itself, beyond those of its containers.
    pub fn overhead(self, resources: LinuxContainerResources) -> Self {
        self.linux(|l| l.overhead = Some(resources))
    }

    /// The sum of the containers' requests and limits.
    pub fn resources(self, resources: LinuxContainerResources) -> Self {
        self.linux(|l| l.resources = Some(resources))
    }

    /// A TCP port of the pod that is reachable on the node.
    pub fn port(self, container_port: i32, host_port: i32) -> Self {
        self.edit(|c| {
            c.port_mappings.push(PortMapping { protocol: Protocol::Tcp.into(), container_port, host_port, host_ip: String::new() });
        })
    }

    /// Where the containers' logs are written.
    pub fn log_directory(self, path: &Path) -> Self {
        self.edit(|c| c.log_directory = path.to_string_lossy().into_owned())
    }

    /// May hold privileged containers.
    pub fn privileged(self) -> Self {
        self.security(|s| s.privileged = true)
    }

    /// The user that the sandbox itself runs as.
    pub fn run_as_user(self, uid: i64) -> Self {
        self.security(|s| s.run_as_user = Some(Int64Value { value: uid }))
    }

    fn namespaces(self, change: impl FnOnce(&mut NamespaceOption)) -> Self {
        self.security(|s| change(s.namespace_options.get_or_insert_default()))
    }

    fn security(self, change: impl FnOnce(&mut LinuxSandboxSecurityContext)) -> Self {
        self.linux(|l| change(l.security_context.get_or_insert_default()))
    }

    fn linux(self, change: impl FnOnce(&mut LinuxPodSandboxConfig)) -> Self {
        self.edit(|c| change(c.linux.get_or_insert_default()))
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&w| w.to_owned()).collect()
}

/// A name that is unique on this node, also among earlier runs.
fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    format!("{now:x}-{:x}-{count}", std::process::id())
}
