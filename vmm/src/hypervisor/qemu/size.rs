// SPDX-License-Identifier: Apache-2.0
//! Changes the size of a running QEMU machine.
//!
//! ```text
//! memory      a virtio-mem device: its requested size goes up and down, its size is what the guest has taken
//! processors  with KVM: device_add into a free slot; device_del, and the guest lets go of it (ACPI)
//!             emulated: the machine has all of them from the start, and the agent switches them on and off
//! ```
//!
//! virtio-mem (Virtual I/O Device 1.2, section 5.15) gives and takes memory in blocks of 2 MiB. A
//! DIMM would go only as a whole, and each one would be another memory region for the processes
//! that map the guest's memory; this device is one region from the start. A balloon would have to
//! start with all of the memory that the machine might ever get. The guest's kernel would set aside
//! a page in 64 to manage it.
//!
//! Since 2025 Linux ignores processors that may come later, unless it recognises the hypervisor
//! (`acpi_is_processor_usable` in arch/x86/kernel/acpi/boot.c). It does not recognise emulation.

use super::machine::MachineKind;
use super::qmp::Qmp;
use crate::machine::size::Size;
use crate::machine::spec::{Acceleration, VmSpec};
use magnetar_core::confined::program::Invocation;
use magnetar_core::error::Result;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The device that memory comes from, as an object of QEMU.
const MEMORY: &str = "/machine/peripheral/memory";

/// The unit in which the device gives memory, in MiB.
const BLOCK_MIB: u32 = 2;

/// The size of the device is a multiple of this, in MiB: Linux adds memory in such steps.
const STEP_MIB: u32 = 128;

/// What can change of a machine, and what was asked for.
#[derive(Debug)]
pub struct Growth {
    start: Size,
    most: Size,
    /// Whether processors can be plugged. Otherwise the machine has all of them from the start.
    plugs_processors: bool,
    /// Processors that the guest was asked to let go of, by their names.
    leaving: BTreeSet<String>,
}

/// A processor that the machine has or might have.
#[derive(Debug, Deserialize)]
struct Slot {
    #[serde(rename = "type")]
    kind: String,
    props: Map<String, Value>,
    /// The processor, if the machine has it.
    #[serde(rename = "qom-path")]
    path: Option<String>,
}

/// The value of `-smp`.
pub fn processors(spec: &VmSpec, machine: MachineKind) -> String {
    let (now, most) = (spec.vcpus, spec.most.vcpus);
    match (machine, spec.acceleration) {
        (MachineKind::Q35, Acceleration::Kvm) if most > now => format!("cpus={now},maxcpus={most}"),
        (MachineKind::Q35, Acceleration::Tcg) if most > now => most.to_string(),
        (MachineKind::Q35 | MachineKind::Microvm, _) => now.to_string(),
    }
}

/// Parameters for the kernel of a machine that may grow.
pub fn parameters(spec: &VmSpec, machine: MachineKind) -> Vec<String> {
    let mut parameters = Vec::new();
    if reserve(spec, machine).is_some() {
        // Memory that may come later lies above 4 GiB. For devices that reach only below, the
        // kernel would set 64 MiB aside. There are none: virtio devices reach all memory.
        parameters.push("swiotlb=noforce".into());
    }
    if machine == MachineKind::Q35 && spec.acceleration == Acceleration::Tcg && spec.most.vcpus > spec.vcpus {
        // The others stay off until the agent switches them on.
        parameters.push(format!("maxcpus={}", spec.vcpus));
    }
    parameters
}

/// The value of `-m`.
pub fn memory(spec: &VmSpec, machine: MachineKind) -> String {
    let now = spec.memory_mib;
    match reserve(spec, machine) {
        Some(reserve) => format!("size={now}M,maxmem={}M", u64::from(now) + u64::from(reserve)),
        None => format!("size={now}M"),
    }
}

/// The devices through which the guest gets more memory, and gives back what it does not use.
pub fn devices(invocation: &mut Invocation<'_>, spec: &VmSpec, machine: MachineKind) {
    // Memory from the host's huge pages is the pod's until its end, and a microvm has too few
    // places for devices.
    if machine == MachineKind::Q35 && !spec.huge_pages {
        invocation.arguments(["-device", &format!("{},free-page-reporting=on", machine.device("virtio-balloon"))]);
    }
    let Some(reserve) = reserve(spec, machine) else { return };
    invocation.arguments([
        "-object",
        // A file in memory without a page, until the guest touches one. The vhost-user devices map
        // it from the start.
        &format!("memory-backend-memfd,id=more,size={reserve}M,share=on,reserve=off"),
        "-device",
        &format!("{},id=memory,memdev=more,block-size={BLOCK_MIB}M,requested-size=0", machine.device("virtio-mem")),
    ]);
}

/// How much memory may come later, in MiB.
fn reserve(spec: &VmSpec, machine: MachineKind) -> Option<u32> {
    match machine {
        MachineKind::Q35 => spec.most.memory_mib.saturating_sub(spec.memory_mib).checked_next_multiple_of(STEP_MIB).filter(|&mib| mib > 0),
        MachineKind::Microvm => None,
    }
}

impl Growth {
    /// What can change of a machine; `None` if nothing can.
    pub fn of(spec: &VmSpec, machine: MachineKind) -> Option<Self> {
        let start = Size { memory_mib: spec.memory_mib, vcpus: spec.vcpus };
        match machine {
            MachineKind::Q35 if spec.most != start => {
                let plugs_processors = spec.acceleration == Acceleration::Kvm && spec.most.vcpus > spec.vcpus;
                Some(Self { start, most: spec.most, plugs_processors, leaving: BTreeSet::new() })
            }
            MachineKind::Q35 | MachineKind::Microvm => None,
        }
    }

    /// Asks for a size, and returns the present one.
    ///
    /// # Errors
    /// Errors of QEMU.
    pub async fn resize(&mut self, qmp: &mut Qmp, wanted: Size) -> Result<Size> {
        let wanted = wanted.max(self.start).min(self.most);
        let memory_mib = self.resize_memory(qmp, wanted.memory_mib).await?;
        let vcpus = self.resize_processors(qmp, wanted.vcpus).await?;
        Ok(Size { memory_mib, vcpus })
    }

    async fn resize_memory(&self, qmp: &mut Qmp, wanted: u32) -> Result<u32> {
        if self.most.memory_mib == self.start.memory_mib {
            return Ok(self.start.memory_mib);
        }
        let more = u64::from((wanted - self.start.memory_mib).next_multiple_of(BLOCK_MIB)) << 20;
        let requested = json!({ "path": MEMORY, "property": "requested-size", "value": more });
        qmp.order("qom-set", requested, None).await?;
        let taken: u64 = qmp.ask("qom-get", json!({ "path": MEMORY, "property": "size" })).await?;
        Ok(self.start.memory_mib.saturating_add(u32::try_from(taken >> 20).unwrap_or(u32::MAX)))
    }

    async fn resize_processors(&mut self, qmp: &mut Qmp, wanted: u32) -> Result<u32> {
        if !self.plugs_processors {
            return Ok(wanted);
        }
        let slots = slots(qmp).await?;
        let has = slots.iter().filter(|slot| slot.path.is_some()).count();
        let wanted = wanted as usize;
        for (number, slot) in slots.iter().enumerate().filter(|(_, slot)| slot.path.is_none()).take(wanted.saturating_sub(has)) {
            self.leaving.clear();
            let mut arguments = slot.props.clone();
            arguments.insert("driver".into(), slot.kind.as_str().into());
            arguments.insert("id".into(), name(number).into());
            qmp.order("device_add", arguments.into(), None).await?;
        }
        for (number, slot) in slots.iter().enumerate().skip(wanted).rev() {
            // One request is enough; the guest may take its time.
            if slot.path.is_some() && self.leaving.insert(name(number)) {
                qmp.order("device_del", json!({ "id": name(number) }), None).await?;
            }
        }
        Ok(u32::try_from(has.max(wanted)).unwrap_or(u32::MAX))
    }
}

/// All processors that the machine has or might have, in the order in which the guest numbers them.
async fn slots(qmp: &mut Qmp) -> Result<Vec<Slot>> {
    let mut slots: Vec<Slot> = qmp.execute("query-hotpluggable-cpus").await?;
    slots.sort_by_key(|slot| ["socket-id", "core-id", "thread-id"].map(|level| slot.props.get(level).and_then(Value::as_u64)));
    Ok(slots)
}

/// The name of the processor in a slot.
fn name(number: usize) -> String {
    format!("cpu-{number}")
}

#[cfg(test)]
mod tests;
