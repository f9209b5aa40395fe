// SPDX-License-Identifier: Apache-2.0
//! Changes the size of a running machine: `vm.resize` asks for it, `vm.info` says what the guest has
//! taken.
//!
//! ```text
//! memory      a virtio-mem device, whose region is there from the start (docs/memory.md of Cloud Hypervisor)
//! processors  ACPI hot-plug, into the slots between `boot` and `max` (its docs/hotplug.md)
//! ```

use super::api::Api;
use crate::machine::size::Size;
use crate::machine::spec::{Acceleration, VmSpec};
use magnetar_core::error::Result;
use serde_json::json;

/// The size of the region for more memory is a multiple of this, in MiB.
const STEP_MIB: u32 = 128;

/// What can change of a machine, and what was asked for.
#[derive(Debug)]
pub struct Growth {
    start: Size,
    most: Size,
    asked: Size,
}

impl Growth {
    /// What can change of a machine; `None` if nothing can.
    pub fn of(spec: &VmSpec) -> Option<Self> {
        let start = Size { memory_mib: spec.memory_mib, vcpus: spec.vcpus };
        let most = Size { memory_mib: start.memory_mib.saturating_add(reserve(spec)), vcpus: processors(spec) };
        (most != start).then_some(Self { start, most, asked: start })
    }

    /// Asks for a size, and returns the present one. Only the memory that the guest has taken is
    /// known: a processor counts once it is plugged, or once its removal was asked for.
    ///
    /// # Errors
    /// Errors of Cloud Hypervisor.
    pub async fn resize(&mut self, api: &Api, wanted: Size) -> Result<Size> {
        let wanted = wanted.max(self.start).min(self.most);
        if wanted != self.asked {
            let bytes = u64::from(wanted.memory_mib.next_multiple_of(2)) << 20;
            let mut order = json!({});
            if self.most.memory_mib > self.start.memory_mib {
                order["desired_ram"] = bytes.into();
            }
            if wanted.vcpus != self.asked.vcpus {
                order["desired_vcpus"] = wanted.vcpus.into();
            }
            api.order("vm.resize", &order).await?;
            self.asked = wanted;
        }
        let memory_mib = u32::try_from(api.memory().await? >> 20).unwrap_or(u32::MAX);
        Ok(Size { memory_mib, vcpus: wanted.vcpus })
    }
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
