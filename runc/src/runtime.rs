// SPDX-License-Identifier: Apache-2.0
//! The runtime that makes the pod's containers. The configuration selects it once.

use magnetar_core::config::RuntimeConfig;
use magnetar_core::error::{Context, Result};
use magnetar_core::ids::ContainerId;
use magnetar_core::reaper::Reaper;
use magnetar_core::record::PodDir;
use magnetar_core::runtime::cli::CommandLine;
use magnetar_core::runtime::libcontainer::{self, Libcontainer};
use magnetar_core::runtime::{Checkpoint, Creation, Execution, Made, Runtime};

/// The maker's program, in the folder of this one.
const MAKER: &str = "magnetar-maker";

/// Either of the two runtimes.
#[derive(Debug)]
pub enum PodRuntime {
    /// An OCI runtime's command line.
    CommandLine(CommandLine),
    /// The libcontainer crate.
    Libcontainer(Libcontainer),
}

impl PodRuntime {
    /// The runtime that `config` names.
    pub fn new(config: &RuntimeConfig, pod: &PodDir, reaper: Reaper) -> Result<Self> {
        if config.name == libcontainer::NAME {
            let own = std::env::current_exe().context(|| "cannot find this program".into())?;
            Libcontainer::new(config, pod, reaper, own.with_file_name(MAKER)).map(Self::Libcontainer)
        } else {
            CommandLine::new(config, pod, reaper).map(Self::CommandLine)
        }
    }
}

/// Both make processes of this host, for which the defaults of the other methods are.
impl Runtime for PodRuntime {
    async fn create(&self, creation: Creation<'_>) -> Result<Made> {
        match self {
            Self::CommandLine(runtime) => runtime.create(creation).await,
            Self::Libcontainer(runtime) => runtime.create(creation).await,
        }
    }

    async fn start(&self, container: &ContainerId) -> Result<()> {
        match self {
            Self::CommandLine(runtime) => runtime.start(container).await,
            Self::Libcontainer(runtime) => runtime.start(container).await,
        }
    }

    async fn exec(&self, execution: Execution<'_>) -> Result<Made> {
        match self {
            Self::CommandLine(runtime) => runtime.exec(execution).await,
            Self::Libcontainer(runtime) => runtime.exec(execution).await,
        }
    }

    async fn freeze(&self, container: &ContainerId, frozen: bool) -> Result<()> {
        match self {
            Self::CommandLine(runtime) => runtime.freeze(container, frozen).await,
            Self::Libcontainer(runtime) => runtime.freeze(container, frozen).await,
        }
    }

    async fn update(&self, container: &ContainerId, resources: &[u8]) -> Result<()> {
        match self {
            Self::CommandLine(runtime) => runtime.update(container, resources).await,
            Self::Libcontainer(runtime) => runtime.update(container, resources).await,
        }
    }

    async fn checkpoint(&self, container: &ContainerId, checkpoint: Checkpoint) -> Result<()> {
        match self {
            Self::CommandLine(runtime) => runtime.checkpoint(container, checkpoint).await,
            Self::Libcontainer(runtime) => runtime.checkpoint(container, checkpoint).await,
        }
    }

    async fn delete(&self, container: &ContainerId) -> Result<()> {
        match self {
            Self::CommandLine(runtime) => runtime.delete(container).await,
            Self::Libcontainer(runtime) => runtime.delete(container).await,
        }
    }

    fn execs_into_warm_cgroups(&self) -> bool {
        match self {
            Self::CommandLine(runtime) => runtime.execs_into_warm_cgroups(),
            Self::Libcontainer(runtime) => runtime.execs_into_warm_cgroups(),
        }
    }

    fn undoes_hooks(&self) -> bool {
        match self {
            Self::CommandLine(runtime) => runtime.undoes_hooks(),
            Self::Libcontainer(runtime) => runtime.undoes_hooks(),
        }
    }
}
