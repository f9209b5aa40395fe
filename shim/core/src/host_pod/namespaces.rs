// SPDX-License-Identifier: Apache-2.0
//! The pod's namespaces: which ones are entered, which ones are made, and by which process.
//!
//! Containers join them through `/proc/<pid>/ns` of the process that StartSandbox names, so that
//! process must be in all of them. It is the sandbox process itself, unless the pod has a PID
//! namespace (whose process 1 must reap) or a user namespace (in which the sandbox process would
//! have no rights on the host). Then a holder is forked.

use crate::error::{Context, Error, Result};
use crate::home::namespace;
use crate::pod_config::{IdMap, NamespaceMode, UserNs};
use crate::sandbox::PodRequest;
use magnetar_sys::holder::{self, HolderError};
use magnetar_sys::namespace::{owning_user_namespace, user_namespace};
use nix::sched::{CloneFlags, setns, unshare};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The steps into the pod's namespaces.
#[derive(Debug)]
pub struct Plan {
    network: Option<OwnedFd>,
    user: Option<OwnedFd>,
    unshare: CloneFlags,
    new_pid_namespace: bool,
    hostname: Option<String>,
    sysctls: BTreeMap<PathBuf, String>,
}

impl Plan {
    /// Plans by the pod's configuration, and opens the namespaces that will be entered.
    ///
    /// # Errors
    /// `InvalidArgument` for sysctls that would change the host, or the kernel's error for a path.
    pub fn new(request: &PodRequest) -> Result<Self> {
        let config = &request.config;
        let network = request.netns.as_deref().map(namespace).transpose()?;
        let user = match (&config.userns, &network) {
            (None, _) => None,
            (Some(_), Some(network)) => {
                let owner = owning_user_namespace(network);
                Some(owner.context(|| "cannot find the user namespace of the pod's network namespace".into())?)
            }
            // With the host's network containerd has not made a user namespace. The root of ours
            // has no rights over that network.
            (Some(userns), None) => Some(own_user_namespace(userns)?),
        };
        let mut unshare = CloneFlags::empty();
        unshare.set(CloneFlags::CLONE_NEWIPC, config.ipc != NamespaceMode::Node);
        // As in containerd's own sandboxes, a pod with the host's network has the host's name.
        unshare.set(CloneFlags::CLONE_NEWUTS, network.is_some());
        let own_uts = unshare.contains(CloneFlags::CLONE_NEWUTS);
        if !own_uts && !config.hostname.is_empty() {
            return Err(Error::invalid(format!(
                "the pod cannot have the hostname {:?}: with the host's network it has the host's name",
                config.hostname
            )));
        }
        let hostname = Some(config.hostname.clone()).filter(|name| own_uts && !name.is_empty());
        config.refuse_host_sysctls(network.is_some())?;
        let sysctls = config.sysctl_files(network.is_some());
        Ok(Self { network, user, unshare, new_pid_namespace: config.pid == NamespaceMode::Pod, hostname, sysctls })
    }

    /// Whether a holder is needed.
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

    /// Enters and makes the namespaces in the calling process.
    pub fn enter(&self) -> Result<()> {
        if let Some(user) = &self.user {
            setns(user, CloneFlags::CLONE_NEWUSER).context(|| "cannot enter the pod's user namespace".into())?;
            // The pod's root owns the pod's sysctls.
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
            let path = Path::new("/proc/sys").join(name);
            std::fs::write(path, value).context(|| format!("cannot set the sysctl {} = {value:?}", name.display()))?;
        }
        Ok(())
    }
}

/// A new user namespace with the pod's id maps.
fn own_user_namespace(userns: &UserNs) -> Result<OwnedFd> {
    let lines =
        |maps: &[IdMap]| maps.iter().map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.length)).collect::<String>();
    user_namespace(&lines(&userns.uids), &lines(&userns.gids)).context(|| "cannot make the pod's user namespace".into())
}
