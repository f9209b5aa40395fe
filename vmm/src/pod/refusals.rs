// SPDX-License-Identifier: Apache-2.0
//! What a pod in a virtual machine cannot have.

use super::huge_pages;
use magnetar_core::error::{Error, Result};
use magnetar_core::pod_config::{NamespaceMode, PodConfig};

/// Refuses what a pod in a virtual machine cannot have, before anything is made.
pub(super) fn refuse(config: &PodConfig) -> Result<()> {
    if config.network == NamespaceMode::Node {
        return Err(no_host_network());
    }
    let kept = |what: &str| Error::unimplemented(format!("a pod in a virtual machine cannot have {what}: its kernel is not the host's"));
    if config.pid == NamespaceMode::Node {
        return Err(kept("the host's process ids (hostPID)"));
    }
    if config.ipc == NamespaceMode::Node {
        return Err(kept("the host's IPC namespace (hostIPC)"));
    }
    if config.userns.is_some() {
        return Err(kept("a user namespace of the host (hostUsers: false)"));
    }
    huge_pages(config).map(drop)
}

/// The error for a pod on the host's network.
pub(super) fn no_host_network() -> Error {
    Error::unimplemented(
        "a pod in a virtual machine cannot have the host's network (hostNetwork): its kernel has one of its own; use magnetar-runc for this pod",
    )
}
