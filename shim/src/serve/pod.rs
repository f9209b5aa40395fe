// SPDX-License-Identifier: Apache-2.0
//! A pod's names and its directory.

use magnetar_core::error::Error;
use magnetar_core::ids::{Namespace, SandboxId};
use magnetar_core::record::PodDir;
use tracing::{Span, info_span};

/// A pod's names and its directory.
#[derive(Debug, Clone)]
pub struct Pod {
    /// containerd's namespace.
    pub namespace: Namespace,
    /// The pod.
    pub id: SandboxId,
    /// Its directory.
    pub dir: PodDir,
}

impl Pod {
    /// The span of all log messages about the pod.
    pub fn span(&self) -> Span {
        info_span!(parent: None, "pod", sandbox = %self.id)
    }

    /// The error for a pod that does not exist.
    pub fn missing(&self) -> Error {
        Error::not_found(format!("sandbox {} does not exist in namespace {}", self.id, self.namespace))
    }
}
