// SPDX-License-Identifier: Apache-2.0
//! Sysctls: the file of each one, and whether a namespace limits its effect to the pod.

use super::{NamespaceMode, PodConfig};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a sysctl changes (the kernel's admin-guide/sysctl, and namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysctlScope {
    /// The writer's network namespace.
    Network,
    /// The writer's ipc namespace.
    Ipc,
    /// The writer's uts namespace.
    Uts,
    /// The whole kernel.
    Kernel,
}

impl SysctlScope {
    /// The scope of a sysctl with a valid name.
    pub fn of(name: &str) -> SysctlScope {
        let path = relative_path(name);
        if path.starts_with("net") {
            return SysctlScope::Network;
        }
        if path.starts_with("fs/mqueue") {
            return SysctlScope::Ipc;
        }
        match path.strip_prefix("kernel").ok().and_then(Path::to_str) {
            Some("domainname") => SysctlScope::Uts,
            Some("msgmax" | "msgmnb" | "msgmni" | "sem" | "shmall" | "shmmax" | "shmmni" | "shm_rmid_forced") => SysctlScope::Ipc,
            _ => SysctlScope::Kernel,
        }
    }
}

/// The sysctls that containerd sets for every pod with its own network, so that an unprivileged
/// server can listen on port 80 and ping works. The second is set only for pods without a user
/// namespace, because it refers to the host's group ids.
const LOW_PORTS: (&str, &str) = ("net/ipv4/ip_unprivileged_port_start", "0");
const PING: (&str, &str) = ("net/ipv4/ping_group_range", "0 2147483647");

impl PodConfig {
    /// Refuses sysctls that would affect more than the pod, for sandboxers whose pods run on the
    /// host's kernel. `own_network` says that the pod has a network namespace of its own.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, naming the first sysctl that belongs to the whole kernel or to a
    /// namespace that the pod shares with the host.
    pub fn refuse_host_sysctls(&self, own_network: bool) -> Result<()> {
        for name in self.sysctls.keys() {
            let inside = match SysctlScope::of(name) {
                SysctlScope::Network => own_network,
                SysctlScope::Ipc => self.ipc != NamespaceMode::Node,
                // The pod has a uts namespace of its own exactly when it has a network namespace of
                // its own.
                SysctlScope::Uts => own_network,
                SysctlScope::Kernel => false,
            };
            if !inside {
                return Err(Error::invalid(format!(
                    "the sysctl {name} is not one of this pod's own namespaces: setting it would change the host"
                )));
            }
        }
        Ok(())
    }

    /// The files below /proc/sys and their values: the pod's sysctls, and those of every pod with
    /// its own network.
    pub fn sysctl_files(&self, own_network: bool) -> BTreeMap<PathBuf, String> {
        let low_ports = own_network.then_some(LOW_PORTS);
        let ping = (own_network && self.userns.is_none()).then_some(PING);
        let every_pods = low_ports.into_iter().chain(ping).map(|(file, value)| (PathBuf::from(file), value.to_owned()));
        let own = self.sysctls.iter().map(|(name, value)| (relative_path(name), value.clone()));
        // The pod's own values come last, so they override the others.
        every_pods.chain(own).collect()
    }
}

/// Whether `name` is the name of a sysctl: parts of `a-z`, `0-9`, `_` and `-`, joined by single
/// separators of either kind.
///
/// No part is empty, so the name cannot lead out of /proc/sys.
pub(super) fn is_name(name: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    name.len() <= 255 && name.contains(['.', '/']) && name.split(['.', '/']).all(is_part)
}

/// A name as a path below /proc/sys.
///
/// As in sysctl(8), the first separator decides: `net.ipv4.conf.eth0/1` and `net/ipv4/conf/eth0.1`
/// are the same.
fn relative_path(name: &str) -> PathBuf {
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.find(['.', '/']) {
        Some(first) if name[first..].starts_with('.') => name.chars().map(swap).collect::<String>().into(),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn names_stay_below_proc_sys() {
        for good in ["net.ipv4.ip_forward", "net/ipv4/conf/eth0.100/rp_filter", "kernel.shm_rmid_forced"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "net", "net..ipv4", "net.//.vm", ".net.x", "/net/x", "net.x/", "net/../vm/x", "net. x", "Net.X", "net.x\n"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn the_first_separator_decides() {
        for name in ["net.ipv4.conf.eth0/1.rp_filter", "net/ipv4/conf/eth0.1/rp_filter"] {
            assert_eq!(relative_path(name), Path::new("net/ipv4/conf/eth0.1/rp_filter"));
        }
    }

    fn pod(sysctl: &str) -> PodConfig {
        PodConfig { sysctls: [(sysctl.to_owned(), "1".to_owned())].into(), ..PodConfig::default() }
    }

    #[test]
    fn sysctls_that_would_change_the_host_are_refused() {
        for inside in ["net.ipv4.ip_forward", "net/core/somaxconn", "kernel.shmmax", "fs.mqueue.msg_max", "kernel.domainname"] {
            pod(inside).refuse_host_sysctls(true).unwrap();
        }
        for outside in ["vm.swappiness", "kernel.panic", "kernel.hostname", "fs.file-max", "netx.y", "kernel.sem.x"] {
            assert_eq!(pod(outside).refuse_host_sysctls(true).unwrap_err().code(), Code::InvalidArgument, "{outside}");
        }
        for on_the_host in ["net.core.somaxconn", "kernel.domainname"] {
            assert!(pod(on_the_host).refuse_host_sysctls(false).is_err(), "{on_the_host}");
        }
        let with_ipc_of_the_host = PodConfig { ipc: NamespaceMode::Node, ..pod("kernel.shmmax") };
        assert!(with_ipc_of_the_host.refuse_host_sysctls(true).is_err());
    }

    #[test]
    fn a_pod_with_a_network_may_listen_on_low_ports() {
        let ports = Path::new(LOW_PORTS.0);
        assert_eq!(PodConfig::default().sysctl_files(true)[ports], "0");
        assert!(PodConfig::default().sysctl_files(false).is_empty());
        assert_eq!(pod("net.ipv4.ip_unprivileged_port_start").sysctl_files(true)[ports], "1", "the pod's own value overrides the default");
    }
}
