// SPDX-License-Identifier: Apache-2.0
//! What a pod has to do with templates: its machine begins as a copy of one, or makes one.

use super::VmPod;
use crate::host::share::Share;
use crate::hypervisor::snapshots::saved_mac;
use crate::machine::Machine;
use crate::machine::spec::VmSpec;
use crate::template::maker::Maker;
use crate::template::recipe::Recipe;
use crate::template::store::{ROOT, Store, Template};
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::sandbox::PodRequest;
use magnetar_vm_agent_api::network::Network;
use std::path::Path;
use tracing::{debug, warn};

/// The directory of the machine that becomes a template, in the pod's. It is short because a
/// socket's path is limited.
const DIR: &str = "tm";

/// A pod's dealings with templates.
#[derive(Debug, Default)]
pub struct Templates {
    /// What the pod's machine is made of, if it may begin as a copy.
    recipe: Option<Recipe>,
    /// Whether a copy has begun.
    is_copy: bool,
    maker: Option<Maker>,
}

impl VmPod {
    /// Starts the pod's machine: as a copy of a template if there is one, and if that fails, or
    /// else, by a boot.
    pub(super) async fn start_machine(&mut self, request: &PodRequest, share: &Share, huge_pages: u32) -> Result<(Machine, Network)> {
        match self.boot(request, share, huge_pages).await {
            Err(error) if self.templates.is_copy => {
                warn!(%error, "the pod's machine cannot begin as a copy of a template, and boots");
                self.templates.is_copy = false;
                // That the host was too busy, or the pod had too little memory, is not the
                // template's fault.
                let is_at_fault = error.code() != Code::DeadlineExceeded && !self.ran_out_of_memory();
                if let Some(recipe) = self.templates.recipe.as_ref().filter(|_| is_at_fault) {
                    discard(recipe);
                }
                share.remove_secret()?;
                let dir = self.vm_dir();
                std::fs::remove_dir_all(&dir).context(|| format!("cannot remove {}", dir.display()))?;
                self.boot(request, share, huge_pages).await
            }
            outcome => outcome,
        }
    }

    /// The template for a machine, if there is one. The guest then has the template's network
    /// interfaces, and gets a seed.
    pub(super) fn find_template(&mut self, spec: &VmSpec, network: &mut Network, share: &Share) -> Result<Option<Template>> {
        if !self.config.template {
            return Ok(None);
        }
        let Some(snapshots) = self.hypervisor.snapshots() else {
            let name = self.hypervisor.name();
            return Err(Error::precondition(format!("{name} cannot save this kind of machine as a template: set template = false")));
        };
        // This is the second try, after a copy has failed.
        if self.templates.recipe.is_some() {
            return Ok(None);
        }
        let recipe = match Recipe::of(spec, snapshots) {
            Ok(recipe) => recipe,
            Err(error) => {
                warn!(%error, "cannot look for a template, and the pod's machine boots");
                return Ok(None);
            }
        };
        let found = Store::at(Path::new(ROOT)).find(&recipe).unwrap_or_else(|error| {
            warn!(%error, "a template cannot be used, and the pod's machine boots");
            discard(&recipe);
            None
        });
        self.templates.recipe = Some(recipe);
        self.templates.is_copy = found.is_some();
        if found.is_some() {
            debug!("the pod's machine begins as a copy of a template");
            share.write_seed()?;
            for (number, nic) in spec.nics.iter().enumerate() {
                let interface = network.interfaces.iter_mut().find(|interface| interface.mac == nic.mac);
                interface.ok_or_else(|| Error::internal("an interface has no configuration"))?.device = Some(saved_mac(number));
            }
        }
        Ok(found)
    }

    /// Begins to make the template that the pod's machine would have needed.
    pub(super) fn make_template(&mut self) {
        if self.templates.is_copy {
            return;
        }
        if let Some(recipe) = self.templates.recipe.take() {
            let (store, dir) = (Store::at(Path::new(ROOT)), self.dir.path().join(DIR));
            self.templates.maker = Some(Maker::begin(self.hypervisor.clone(), store, recipe, &self.record, dir, &self.parts));
        }
    }

    /// Ends the making of a template. Idempotent.
    pub(super) async fn leave_template(&mut self) {
        if let Some(maker) = self.templates.maker.take() {
            maker.end().await;
        }
    }
}

fn discard(recipe: &Recipe) {
    if let Err(error) = Store::at(Path::new(ROOT)).discard(recipe) {
        warn!(%error, "cannot remove a template that cannot be used");
    }
}
