// SPDX-License-Identifier: Apache-2.0
//! Attaches disks to a running QEMU, and detaches them.
//!
//! ```text
//! attach   add-fd: pass the device, which only we can open ─> blockdev-add: its block node ─> device_add: the guest's disk
//! detach   device_del ─> DEVICE_DELETED ─> blockdev-del ─> remove-fd
//! ```
//!
//! The disks are on a SCSI controller that exists from the start. QEMU alone can add and remove
//! such a disk. A PCI card would need a hotplug slot, and the guest's consent to remove it. The
//! guest loads a driver when it needs one (the agent's `block`).
//!
//! The block node and the device are named after the disk's serial number. The descriptor set has
//! the disk's number (see the commands in QEMU's "QMP Reference Manual").

use super::machine::MachineKind;
use super::qmp::Qmp;
use crate::hypervisor::{Disk, DiskId};
use magnetar_core::error::{Code, Result};
use serde_json::{Value, json};
use std::os::fd::AsFd;
use tracing::warn;

/// The controller, as a `-device`. One queue is enough, since disks are not the only work of many
/// processors.
pub fn controller(machine: MachineKind) -> String {
    format!("{},id=disks,num_queues=1", machine.device("virtio-scsi"))
}

/// Attaches `disk`.
///
/// # Errors
/// Errors of QEMU. Nothing of the disk is left then.
pub async fn attach(qmp: &mut Qmp, disk: &Disk) -> Result<()> {
    qmp.order("add-fd", set(disk.id), Some(disk.device.as_fd())).await?;
    let failed = match qmp.order("blockdev-add", node(disk), None).await {
        Ok(()) => match qmp.order("device_add", device(disk.id), None).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                warn_if_left(qmp.order("blockdev-del", node_name(disk.id), None).await, disk.id);
                error
            }
        },
        Err(error) => error,
    };
    warn_if_left(qmp.order("remove-fd", set(disk.id), None).await, disk.id);
    Err(failed)
}

/// Detaches a disk. QEMU does not ask the guest, but waits for its pending requests.
///
/// # Errors
/// Errors of QEMU, after which the call can be repeated.
pub async fn detach(qmp: &mut Qmp, disk: DiskId) -> Result<()> {
    match qmp.delete_device(&disk.to_string()).await {
        // An earlier call has removed it.
        Err(error) if error.code() == Code::NotFound => {}
        deleted => deleted?,
    }
    qmp.order("blockdev-del", node_name(disk), None).await?;
    qmp.order("remove-fd", set(disk), None).await
}

fn warn_if_left(undone: Result<()>, disk: DiskId) {
    if let Err(error) = undone {
        warn!(%disk, %error, "cannot clean up after a disk could not be attached");
    }
}

fn set(disk: DiskId) -> Value {
    json!({ "fdset-id": disk.0 })
}

fn node_name(disk: DiskId) -> Value {
    json!({ "node-name": disk.to_string() })
}

/// The block node. It bypasses the host's page cache, which would count as the pod's memory and
/// duplicate the guest's cache.
fn node(disk: &Disk) -> Value {
    json!({
        "driver": "host_device",
        "node-name": disk.id.to_string(),
        // QEMU picks the set's descriptor with the same access mode and O_DIRECT flag.
        "filename": format!("/dev/fdset/{}", disk.id.0),
        "read-only": disk.read_only,
        "cache": { "direct": true },
        "discard": "unmap",
        // The device may have other users: another container of the pod, read-only, or another pod
        // on this node. Without this, QEMU would lock it.
        "locking": "off",
    })
}

fn device(disk: DiskId) -> Value {
    let name = disk.to_string();
    json!({ "driver": "scsi-hd", "id": name, "drive": name, "serial": name, "bus": "disks.0" })
}

#[cfg(test)]
mod tests {
    use super::super::double::{self, Answer};
    use super::*;
    use std::os::fd::OwnedFd;
    use tokio::net::UnixStream;

    /// A fake QEMU that refuses one command. Returns the commands that it received.
    async fn fake(stream: UnixStream, refused: &str) -> Vec<(String, Value)> {
        let answer = |name: &str, arguments: &Value| match name {
            "device_del" if name == refused => Answer::refuses("DeviceNotFound"),
            _ if name == refused => Answer::refuses("GenericError"),
            "device_del" => {
                let gone = json!({ "event": "DEVICE_DELETED", "data": { "device": arguments["id"] } });
                Answer { before: Some(gone), ..Answer::returns(json!({})) }
            }
            _ => Answer::returns(json!({})),
        };
        double::serve(stream, Value::Null, answer).await
    }

    async fn run_attach(refused: &str, detached: bool) -> (Result<()>, Vec<(String, Value)>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let device = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let disk = Disk { id: DiskId(7), device, read_only: true };
        let order = async {
            let mut qmp = Qmp::begin(ours).await?;
            attach(&mut qmp, &disk).await?;
            if detached { detach(&mut qmp, DiskId(7)).await } else { Ok(()) }
        };
        tokio::join!(order, fake(theirs, refused))
    }

    fn names(commands: &[(String, Value)]) -> Vec<&str> {
        commands.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[tokio::test]
    async fn a_disk_is_attached_and_detached() {
        let (outcome, commands) = run_attach("nothing", true).await;
        outcome.unwrap();
        assert_eq!(
            names(&commands),
            ["qmp_capabilities", "add-fd", "blockdev-add", "device_add", "device_del", "blockdev-del", "remove-fd"]
        );
        assert_eq!(commands[1].1, json!({"fdset-id": 7}));
        assert_eq!((&commands[2].1["filename"], &commands[2].1["read-only"]), (&json!("/dev/fdset/7"), &json!(true)));
        assert_eq!((&commands[3].1["drive"], &commands[3].1["serial"]), (&commands[2].1["node-name"], &json!("disk-7")));
    }

    #[tokio::test]
    async fn a_detach_is_completed_if_the_device_is_gone_already() {
        let (outcome, commands) = run_attach("device_del", true).await;
        outcome.unwrap();
        assert_eq!(names(&commands)[4..], ["device_del", "blockdev-del", "remove-fd"]);
    }

    #[tokio::test]
    async fn a_refused_attach_is_undone() {
        for (refused, undone) in [("add-fd", &[][..]), ("blockdev-add", &["remove-fd"]), ("device_add", &["blockdev-del", "remove-fd"])] {
            let (outcome, commands) = run_attach(refused, false).await;
            assert_eq!(outcome.unwrap_err().to_string(), format!("QEMU refuses {refused}: no"));
            let names = names(&commands);
            let after = names.iter().position(|name| *name == refused).unwrap() + 1;
            assert_eq!(&names[after..], undone);
        }
    }
}
