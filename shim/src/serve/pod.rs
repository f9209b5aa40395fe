// SPDX-License-Identifier: Apache-2.0
//! Which pod: its names, and where it is.

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
    /// The span of everything that is said about the pod in the log.
    pub fn span(&self) -> Span {
        info_span!(parent: None, "pod", sandbox = %self.id)
    }

    /// What is answered where there is none.
    pub fn missing(&self) -> Error {
        Error::not_found(format!("sandbox {} does not exist in namespace {}", self.id, self.namespace))
    }
}
