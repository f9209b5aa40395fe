// SPDX-License-Identifier: Apache-2.0
//! Saves a machine, and begins others as its copies: QEMU's migration, to and from a file.
//!
//! ```text
//! save      stop ─> add-fd: the file ─> migrate: all devices, but not the memory
//! restore   add-fd ─> migrate-incoming ─> getfd, device_add: the vsock, on the empty slot ─> cont
//! ```
//!
//! With the capability `x-ignore-shared` QEMU leaves out memory that it has as a file which others
//! share. It must be a `memory-backend-file`: QEMU knows of no other backend that it is a file, and
//! saves all of a `memory-backend-memfd` without a word. A vhost-user vsock cannot be saved, so it
//! is attached after the restore. That needs a slot: a root port, because the root bus has no
//! hot-plug.
//!
//! The memory that may come later is another file, of which a saved machine has nothing: QEMU saves
//! none of what virtio-mem has not given to the guest.
//!
//! vhost-user-fs can be saved: virtiofsd hands its state to QEMU. The share of the saved machine is
//! empty, and another directory is behind the copy's.

use super::machine::MachineKind;
use super::qmp::Qmp;
use super::size::{self, Growth};
use super::{Qemu, QemuControl, board, connect, disks, fixed_parameters, kernel, monitors, network, processor, shared_files};
use crate::host::vsock::VsockAttachment;
use crate::hypervisor::snapshots::{MemoryKeeper, Save, Saved, SavedState, Snapshots, saved_mac};
use crate::hypervisor::{Control, Promise};
use crate::machine::spec::VmSpec;
use magnetar_core::confined::program::Invocation;
use magnetar_core::error::{Error, Result};
use magnetar_vm_agent_api::TEMPLATE;
use serde_json::json;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

/// The descriptor set of the file with the state. Those of disks are counted from 1.
const SET: u32 = 0;

/// The file, for QEMU. A plain descriptor is refused, because it may be a pipe.
const FILE: &str = "file:/dev/fdset/0";

/// The slot for the vsock.
const SLOT: &str = "rp0";

/// The largest MTU of an interface, in bytes. The guest sets the pod's.
const MTU: u32 = 65_535;

impl Snapshots for Qemu {
    fn programs(&self) -> Vec<PathBuf> {
        vec![self.program.clone()]
    }

    fn compatibility(&self, spec: &VmSpec) -> String {
        let VmSpec { vcpus, memory_mib, most, nics, .. } = spec;
        let parameters = (fixed_parameters(spec, self.machine), &spec.parameters);
        let (machine, processor, interfaces) = (self.machine.options(), processor(spec), nics.len());
        format!(
            "{machine:?} {processor:?}, {vcpus} to {} processors, {memory_mib} to {} MiB, {interfaces} interfaces, {parameters:?}",
            most.vcpus, most.memory_mib
        )
    }

    fn memory(&self) -> MemoryKeeper {
        MemoryKeeper::Program
    }

    fn plan_saved<'a>(&self, spec: &'a VmSpec, memory: BorrowedFd<'a>) -> Invocation<'a> {
        let mut invocation = self.confined(spec);
        self.whole(&mut invocation, spec, memory);
        kernel(&mut invocation, spec, self, &[TEMPLATE]);
        invocation
    }

    fn plan_copy<'a>(&self, spec: &'a VmSpec, memory: BorrowedFd<'a>) -> Invocation<'a> {
        let mut invocation = self.confined(spec);
        self.whole(&mut invocation, spec, memory);
        invocation.arguments(["-incoming", "defer", "-S"]);
        invocation
    }

    fn restore<'a>(&'a self, spec: &'a VmSpec, saved: SavedState<'a>, vsock: VsockAttachment<'a>) -> Promise<'a, Box<dyn Control>> {
        Box::pin(async move {
            let mut qmp = connect(spec).await?;
            if qmp.version() != saved.version {
                let (now, then) = (qmp.version(), saved.version);
                return Err(Error::precondition(format!("QEMU {now} cannot load what QEMU {then} has saved")));
            }
            prepare(&mut qmp).await?;
            // QEMU would announce the hardware address, which is not the pod's.
            qmp.order("migrate-set-parameters", json!({ "announce-rounds": 0 }), None).await?;
            qmp.order("add-fd", json!({ "fdset-id": SET }), Some(saved.file)).await?;
            qmp.migrate("migrate-incoming", FILE).await?;
            qmp.order("remove-fd", json!({ "fdset-id": SET }), None).await?;
            plug(&mut qmp, vsock).await?;
            qmp.order("cont", json!({}), None).await?;
            let growth = Growth::of(spec, self.machine);
            Ok(Box::new(QemuControl { qmp, growth }) as Box<dyn Control>)
        })
    }
}

impl Qemu {
    /// All devices but the vsock, in the same order in a saved machine and in its copies: QEMU
    /// gives them addresses in this order.
    fn whole<'a>(&self, invocation: &mut Invocation<'a>, spec: &'a VmSpec, memory: BorrowedFd<'a>) {
        let memory = invocation.open(memory);
        board(invocation, spec, self.machine, ("memory-backend-file", &format!(",mem-path=/proc/self/fd/{memory}")));
        size::devices(invocation, spec, self.machine);
        monitors(invocation, spec);
        invocation.arguments(["-device", &format!("pcie-root-port,id={SLOT},chassis=1")]);
        // Each copy gets another id, and its kernel then makes new random numbers.
        invocation.arguments(["-device", "vmgenid,guid=auto"]);
        shared_files(invocation, spec, self.machine);
        invocation.arguments(["-device", &disks::controller(self.machine)]);
        for (number, nic) in spec.nics.iter().enumerate() {
            network(invocation, number, (&nic.tap, saved_mac(number), MTU), self.machine);
        }
    }
}

/// Switches on what saving and loading need.
async fn prepare(qmp: &mut Qmp) -> Result<()> {
    let capabilities = ["x-ignore-shared", "events"].map(|name| json!({ "capability": name, "state": true }));
    qmp.order("migrate-set-capabilities", json!({ "capabilities": capabilities }), None).await
}

async fn plug(qmp: &mut Qmp, vsock: VsockAttachment<'_>) -> Result<()> {
    let device = match vsock {
        VsockAttachment::User(connection) => {
            give(qmp, connection).await?;
            let address = json!({ "type": "fd", "data": { "str": "vsock" } });
            let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
            qmp.order("chardev-add", json!({ "id": "vsock", "backend": backend }), None).await?;
            let driver = MachineKind::Q35.device("vhost-user-vsock");
            json!({ "driver": driver, "id": "vsock", "bus": SLOT, "chardev": "vsock" })
        }
        VsockAttachment::Kernel(cid) => {
            give(qmp, cid.device.as_fd()).await?;
            let driver = MachineKind::Q35.device("vhost-vsock");
            json!({ "driver": driver, "id": "vsock", "bus": SLOT, "vhostfd": "vsock", "guest-cid": cid.number })
        }
        VsockAttachment::Own(_) => return Err(Error::internal("QEMU serves no vsock itself")),
    };
    qmp.order("device_add", device, None).await
}

/// Gives QEMU a descriptor, by the name `vsock`.
async fn give(qmp: &mut Qmp, descriptor: BorrowedFd<'_>) -> Result<()> {
    qmp.order("getfd", json!({ "fdname": "vsock" }), Some(descriptor)).await
}

impl Save for QemuControl {
    fn save<'a>(&'a mut self, state: BorrowedFd<'a>) -> Promise<'a, Saved> {
        Box::pin(async move {
            let qmp = &mut self.qmp;
            prepare(qmp).await?;
            qmp.order("stop", json!({}), None).await?;
            qmp.order("add-fd", json!({ "fdset-id": SET }), Some(state)).await?;
            qmp.migrate("migrate", FILE).await?;
            Ok(Saved { version: qmp.version().to_owned(), memory: None })
        })
    }
}
