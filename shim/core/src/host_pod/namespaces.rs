// SPDX-License-Identifier: Apache-2.0
//! The pod's namespaces: what is entered, what is made, and by whom.
//!
//! Containers join them by way of `/proc/<pid>/ns` of the process that StartSandbox names, so that
//! process must be in all of them. The sandbox process itself is, unless the pod has a PID namespace
//! (whose process 1 must reap) or a user namespace (in which it would have no power over the host):
//! then a holder is forked.

use crate::error::{Context, Error, Result};
use crate::home::namespace;
use crate::pod_config::{NamespaceMode, PodConfig};
use crate::sandbox::PodRequest;
use magnetar_sys::holder::{self, HolderError};
use magnetar_sys::namespace::owning_user_namespace;
use nix::sched::{CloneFlags, setns, unshare};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

/// What has to happen to be in the pod's namespaces.
#[derive(Debug)]
pub struct Plan {
    network: Option<OwnedFd>,
    user: Option<OwnedFd>,
    unshare: CloneFlags,
    new_pid_namespace: bool,
    hostname: Option<String>,
    sysctls: BTreeMap<String, String>,
}

impl Plan {
    /// Decides from the pod's configuration; opens what will be entered.
    ///
    /// # Errors
    /// `Unimplemented` for a user namespace with the host's network, `InvalidArgument` for sysctls
    /// that would change the host, and what the kernel says of the paths.
    pub fn new(request: &PodRequest) -> Result<Self> {
        let config = &request.config;
        let network = request.netns.as_deref().map(namespace).transpose()?;
        let user = match (&config.userns, &network) {
            (None, _) => None,
            (Some(_), Some(network)) => {
                let owner = owning_user_namespace(network);
                Some(owner.context(|| "cannot find the user namespace of the pod's network namespace".into())?)
            }
            (Some(_), None) => {
                return Err(Error::unimplemented(
                    "a pod cannot have a user namespace and the host's network: give it a network of its own",
                ));
            }
        };
        let mut unshare = CloneFlags::empty();
        unshare.set(CloneFlags::CLONE_NEWIPC, config.ipc != NamespaceMode::Node);
        // As containerd's own sandboxes: the host's name goes with the host's network.
        unshare.set(CloneFlags::CLONE_NEWUTS, network.is_some());
        let own_uts = unshare.contains(CloneFlags::CLONE_NEWUTS);
        let hostname = Some(config.hostname.clone()).filter(|name| own_uts && !name.is_empty());
        let sysctls = sysctls(config, network.is_some())?;
        Ok(Self { network, user, unshare, new_pid_namespace: config.pid == NamespaceMode::Pod, hostname, sysctls })
    }

    /// Whether a process of its own must hold them.
    pub fn needs_holder(&self) -> bool {
        self.new_pid_namespace || self.user.is_some()
    }

    /// Forks the holder. Returns its process id.
    pub fn hold(&self) -> Result<u32> {
        holder::spawn(self.new_pid_namespace, || self.enter().map_err(|e| e.to_string())).map_err(|e| match e {
            HolderError::Fork(e) => Error::internal(format!("cannot fork the process that holds the pod's namespaces: {e}")),
            HolderError::Prepare(message) => Error::internal(message),
        })
    }

    /// Puts the calling process into them.
    pub fn enter(&self) -> Result<()> {
        if let Some(user) = &self.user {
            setns(user, CloneFlags::CLONE_NEWUSER).context(|| "cannot enter the pod's user namespace".into())?;
            // The pod's root, who owns its sysctls.
            nix::unistd::setgid(0.into()).context(|| "cannot become the pod's root group".into())?;
            nix::unistd::setuid(0.into()).context(|| "cannot become the pod's root".into())?;
        }
        if let Some(network) = &self.network {
            setns(network, CloneFlags::CLONE_NEWNET).context(|| "cannot enter the pod's network namespace".into())?;
        }
        unshare(self.unshare).context(|| "cannot make the pod's IPC and UTS namespaces".into())?;
        if let Some(hostname) = &self.hostname {
            nix::unistd::sethostname(hostname).context(|| format!("cannot set the hostname {hostname:?}"))?;
        }
        for (name, value) in &self.sysctls {
            let path = Path::new("/proc/sys").join(sysctl_path(name));
            std::fs::write(&path, value).context(|| format!("cannot set the sysctl {name} = {value:?}"))?;
        }
        Ok(())
    }
}

/// The pod's sysctls, and the two that containerd sets for every pod with a network of its own, so
/// that an unprivileged server can listen on port 80 and ping works.
fn sysctls(config: &PodConfig, own_network: bool) -> Result<BTreeMap<String, String>> {
    let mut sysctls = config.sysctls.clone();
    for name in sysctls.keys() {
        let normal = sysctl_path(name);
        let in_network = normal.starts_with("net/");
        let in_ipc = normal.starts_with("fs/mqueue/") || ["kernel/msg", "kernel/sem", "kernel/shm"].iter().any(|p| normal.starts_with(p));
        if (in_network && !own_network) || (in_ipc && config.ipc == NamespaceMode::Node) || !(in_network || in_ipc) {
            return Err(Error::invalid(format!(
                "the sysctl {name} is not one of this pod's own namespaces: setting it would change the host"
            )));
        }
    }
    if own_network {
        sysctls.entry("net.ipv4.ip_unprivileged_port_start".into()).or_insert("0".into());
        if config.userns.is_none() {
            sysctls.entry("net.ipv4.ping_group_range".into()).or_insert("0 2147483647".into());
        }
    }
    Ok(sysctls)
}

/// `net.ipv4.x` as `net/ipv4/x`. A name that has slashes has them instead of dots, and its dots
/// belong to names of interfaces (sysctl(8)).
fn sysctl_path(name: &str) -> String {
    match (name.find('.'), name.find('/')) {
        (Some(dot), Some(slash)) if slash < dot => name.to_owned(),
        (None, _) => name.to_owned(),
        (Some(_), _) => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn config(sysctl: &str) -> PodConfig {
        let mut config = PodConfig::default();
        config.sysctls.insert(sysctl.into(), "1".into());
        config
    }

    #[test]
    fn sysctls_of_the_host_are_refused() {
        for (name, own_network) in [("kernel.panic", true), ("vm.swappiness", true), ("net.core.somaxconn", false), ("fs.file-max", true)] {
            assert_eq!(sysctls(&config(name), own_network).unwrap_err().code(), Code::InvalidArgument, "{name}");
        }
        let mut host_ipc = config("kernel.shmmax");
        assert!(sysctls(&host_ipc, true).is_ok());
        host_ipc.ipc = NamespaceMode::Node;
        assert!(sysctls(&host_ipc, true).is_err());
    }

    #[test]
    fn a_pod_with_a_network_may_listen_on_low_ports() {
        assert_eq!(sysctls(&PodConfig::default(), true).unwrap()["net.ipv4.ip_unprivileged_port_start"], "0");
        assert!(sysctls(&PodConfig::default(), false).unwrap().is_empty());
        let own = sysctls(&config("net.ipv4.ip_unprivileged_port_start"), true).unwrap();
        assert_eq!(own["net.ipv4.ip_unprivileged_port_start"], "1", "the pod's own wish comes first");
    }

    #[test]
    fn names_in_both_spellings() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
    }
}
