// SPDX-License-Identifier: Apache-2.0
//! Sysctls: where each one is written, and whether a namespace keeps the effect inside the pod.

use super::{NamespaceMode, PodConfig};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What a sysctl changes. The kernel's documentation (admin-guide/sysctl) and namespaces(7) say which belongs where.
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

impl PodConfig {
    /// Refuses sysctls whose effect would leave the pod, for sandboxers whose pods run on the host's kernel.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, naming the first sysctl that belongs to the whole kernel or to a namespace that the pod shares
    /// with the host.
    pub fn refuse_host_sysctls(&self) -> Result<()> {
        for name in self.sysctls.keys() {
            let inside = match SysctlScope::of(name) {
                SysctlScope::Network => self.network != NamespaceMode::Node,
                SysctlScope::Ipc => self.ipc != NamespaceMode::Node,
                // The pod has a uts namespace of its own exactly when it has a network namespace of its own.
                SysctlScope::Uts => self.network != NamespaceMode::Node,
                SysctlScope::Kernel => false,
            };
            if !inside {
                return Err(Error::invalid(format!("sysctl {name:?} would change the host")));
            }
        }
        Ok(())
    }

    /// The sysctls as files and what to write there.
    pub fn sysctl_files(&self) -> impl Iterator<Item = (PathBuf, &str)> {
        self.sysctls.iter().map(|(name, value)| (Path::new("/proc/sys").join(relative_path(name)), value.as_str()))
    }
}

/// Whether `name` is one: parts of `a-z`, `0-9`, `_` and `-`, joined by single separators, of which the kind does not matter.
///
/// No part being empty, neither spelling of the name can climb out of /proc/sys.
pub(super) fn is_name(name: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    name.len() <= 255 && name.contains(['.', '/']) && name.split(['.', '/']).all(is_part)
}

/// A name as a path below /proc/sys.
///
/// As in sysctl(8), the first separator decides: `net.ipv4.conf.eth0/1` and `net/ipv4/conf/eth0.1` are the same.
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

    #[test]
    fn what_would_change_the_host_is_refused() {
        let pod = |name: &str| PodConfig { sysctls: [(name.to_owned(), "1".to_owned())].into(), ..PodConfig::default() };
        for inside in ["net.ipv4.ip_forward", "net/core/somaxconn", "kernel.shmmax", "fs.mqueue.msg_max", "kernel.domainname"] {
            pod(inside).refuse_host_sysctls().unwrap();
        }
        for outside in ["vm.swappiness", "kernel.panic", "kernel.hostname", "fs.file-max", "netx.y", "kernel.sem.x"] {
            assert!(pod(outside).refuse_host_sysctls().is_err(), "{outside}");
        }
        let on_the_host = PodConfig { network: NamespaceMode::Node, ..pod("net.ipv4.ip_forward") };
        assert!(on_the_host.refuse_host_sysctls().is_err());
        assert_eq!(on_the_host.sysctl_files().collect::<Vec<_>>(), [(PathBuf::from("/proc/sys/net/ipv4/ip_forward"), "1")]);
    }
}
