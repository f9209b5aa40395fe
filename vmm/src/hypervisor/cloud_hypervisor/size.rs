// SPDX-License-Identifier: Apache-2.0
//! Changes the size of a running machine: `vm.resize` asks for it, `vm.info` says what the guest
//! has taken.
//!
//! ```text
//! memory      a virtio-mem device, whose region is there from the start (docs/memory.md of Cloud Hypervisor)
//! processors  ACPI hot-plug, into the slots between `boot` and `max` (its docs/hotplug.md)
//! ```

use super::api::Api;
use crate::machine::size::Size;
use crate::machine::spec::{Acceleration, VmSpec};
use magnetar_core::error::{Code, Error, Result};
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The size of the region for more memory is a multiple of this, in MiB.
const STEP_MIB: u32 = 128;

/// The unit in which memory is given, in MiB.
const BLOCK_MIB: u32 = 2;

/// How long to wait for the guest to let go of processors before it gets new ones.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(8);

/// The interval between questions whether it has.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What can change of a machine, and what was asked for.
#[derive(Debug)]
pub struct Growth {
    start: Size,
    most: Size,
    asked: Size,
    /// How many processors there were before the guest was asked to let go of some, until it has.
    leaving: Option<u32>,
}

impl Growth {
    /// What can change of a machine; `None` if nothing can.
    pub fn of(spec: &VmSpec) -> Option<Self> {
        let start = Size { memory_mib: spec.memory_mib, vcpus: spec.vcpus };
        let most = Size { memory_mib: start.memory_mib.saturating_add(reserve(spec)), vcpus: processors(spec) };
        (most != start).then_some(Self { start, most, asked: start, leaving: None })
    }

    /// Asks for a size, and returns the present one: of memory what the guest has taken, of
    /// processors what is plugged.
    ///
    /// # Errors
    /// Errors of Cloud Hypervisor; `FailedPrecondition` if more processors are wanted, and the
    /// guest still has some that it was asked to let go of.
    pub async fn resize(&mut self, api: &Api, wanted: Size) -> Result<Size> {
        let wanted = wanted.max(self.start).min(self.most);
        self.resize_processors(api, wanted.vcpus).await?;
        // The same size a second time would be refused.
        if wanted.memory_mib != self.asked.memory_mib {
            let more = (wanted.memory_mib - self.start.memory_mib).next_multiple_of(BLOCK_MIB);
            let bytes = (u64::from(self.start.memory_mib) + u64::from(more)) << 20;
            api.order("vm.resize", &json!({ "desired_ram": bytes })).await?;
            self.asked.memory_mib = wanted.memory_mib;
        }
        let memory_mib = u32::try_from(api.memory().await? >> 20).unwrap_or(u32::MAX);
        Ok(Size { memory_mib, vcpus: self.asked.vcpus.max(self.leaving.unwrap_or(0)) })
    }

    async fn resize_processors(&mut self, api: &Api, wanted: u32) -> Result<()> {
        let end = Instant::now() + LET_GO_TIMEOUT;
        while !self.have_left(api).await? {
            if wanted <= self.asked.vcpus {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Error::precondition("the guest still has processors that it was asked to let go of: try again later"));
            }
            sleep(ASK_AGAIN).await;
        }
        if wanted != self.asked.vcpus {
            order_processors(api, wanted).await?;
            self.leaving = (wanted < self.asked.vcpus).then_some(self.asked.vcpus);
            self.asked.vcpus = wanted;
        }
        Ok(())
    }

    /// Whether the guest has let go of all processors that it was asked to. The same number a
    /// second time is refused until then.
    async fn have_left(&mut self, api: &Api) -> Result<bool> {
        if self.leaving.is_some() {
            match order_processors(api, self.asked.vcpus).await {
                Ok(()) => self.leaving = None,
                Err(error) if error.code() == Code::ResourceExhausted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.leaving.is_none())
    }
}

async fn order_processors(api: &Api, vcpus: u32) -> Result<()> {
    api.order("vm.resize", &json!({ "desired_vcpus": vcpus })).await
}

/// The most processors.
pub fn processors(spec: &VmSpec) -> u32 {
    if can_grow(spec) { spec.most.vcpus.max(spec.vcpus) } else { spec.vcpus }
}

/// How much memory may come later, in MiB. Memory from the host's huge pages is the pod's until its
/// end.
pub fn reserve(spec: &VmSpec) -> u32 {
    let more = spec.most.memory_mib.saturating_sub(spec.memory_mib);
    if can_grow(spec) && !spec.huge_pages { more / STEP_MIB * STEP_MIB } else { 0 }
}

/// What emulates in Cloud Hypervisor's place has a fixed size.
fn can_grow(spec: &VmSpec) -> bool {
    spec.acceleration == Acceleration::Kvm
}
