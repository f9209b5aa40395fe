// SPDX-License-Identifier: Apache-2.0
//! Disks, attached to a QEMU that runs.
//!
//! ```text
//! attach   add-fd: the device, which only we can open ─> blockdev-add: a block node of it ─> device_add: a disk of the guest
//! detach   device_del ─> DEVICE_DELETED ─> blockdev-del ─> remove-fd
//! ```
//!
//! The disks are on a SCSI controller that is there from the start. Such a disk comes and goes by a word of the hypervisor: a
//! card would need a slot that can be plugged, and its removal the guest's consent. The guest has a driver for it when it wants
//! one (the agent's `block`).
//!
//! The block node and the device are called as the disk's serial number; the set of descriptors has its number (QEMU's "QMP
//! Reference Manual" has the commands).

use super::machine::MachineKind;
use super::qmp::Qmp;
use crate::hypervisor::{Disk, DiskId};
use magnetar_core::error::{Code, Result};
use serde_json::{Value, json};
use std::os::fd::AsFd;
use tracing::warn;

/// The controller, as a `-device`. One queue: what is on it is not many processors' only work.
pub fn controller(machine: MachineKind) -> String {
    format!("{},id=disks,num_queues=1", machine.device("virtio-scsi"))
}

/// Attaches `disk`.
///
/// # Errors
/// What QEMU says; then nothing of it is left.
pub async fn attach(qmp: &mut Qmp, disk: &Disk) -> Result<()> {
    qmp.order("add-fd", set(disk.id), Some(disk.device.as_fd())).await?;
    let failed = match qmp.order("blockdev-add", node(disk), None).await {
        Ok(()) => match qmp.order("device_add", device(disk.id), None).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                undone(qmp.order("blockdev-del", node_name(disk.id), None).await, disk.id);
                error
            }
        },
        Err(error) => error,
    };
    undone(qmp.order("remove-fd", set(disk.id), None).await, disk.id);
    Err(failed)
}

/// Detaches a disk. QEMU does not ask the guest, but waits for what that has under way.
///
/// # Errors
/// What QEMU says; then it can be tried again.
pub async fn detach(qmp: &mut Qmp, disk: DiskId) -> Result<()> {
    match qmp.delete_device(&disk.to_string()).await {
        // It has left already, when this was tried before.
        Err(error) if error.code() == Code::NotFound => {}
        deleted => deleted?,
    }
    qmp.order("blockdev-del", node_name(disk), None).await?;
    qmp.order("remove-fd", set(disk), None).await
}

fn undone(undone: Result<()>, disk: DiskId) {
    if let Err(error) = undone {
        warn!(%disk, %error, "something is left of a disk that could not be attached");
    }
}

fn set(disk: DiskId) -> Value {
    json!({ "fdset-id": disk.0 })
}

fn node_name(disk: DiskId) -> Value {
    json!({ "node-name": disk.to_string() })
}

/// The block node. Written to without the host's page cache, which would be the pod's memory and another copy of what is in the
/// guest's.
fn node(disk: &Disk) -> Value {
    json!({
        "driver": "host_device",
        "node-name": disk.id.to_string(),
        // The descriptor in the set that is open for the same, and as direct.
        "filename": format!("/dev/fdset/{}", disk.id.0),
        "read-only": disk.read_only,
        "cache": { "direct": true },
        "discard": "unmap",
        // Others may have it too: another container of the pod read-only, a pod on this node. QEMU would take a lock on it.
        "locking": "off",
    })
}

fn device(disk: DiskId) -> Value {
    let name = disk.to_string();
    json!({ "driver": "scsi-hd", "id": name, "drive": name, "serial": name, "bus": "disks.0" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
    use tokio::net::UnixStream;

    /// A QEMU that refuses one command. Answers what it was told.
    async fn fake(stream: UnixStream, refused: &str) -> Vec<(String, Value)> {
        let mut stream = BufStream::new(stream);
        stream.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        stream.flush().await.unwrap();
        let (mut line, mut told) = (String::new(), Vec::new());
        while stream.read_line(&mut line).await.unwrap() > 0 {
            let command: Value = serde_json::from_str(&line).unwrap();
            line.clear();
            let name = command["execute"].as_str().unwrap().to_owned();
            if name == "device_del" && name != refused {
                let gone = json!({ "event": "DEVICE_DELETED", "data": { "device": command["arguments"]["id"] } });
                stream.write_all(format!("{gone}\n").as_bytes()).await.unwrap();
            }
            let mut answer = json!({ "id": command["id"] });
            if name == refused {
                let class = if name == "device_del" { "DeviceNotFound" } else { "GenericError" };
                answer["error"] = json!({ "class": class, "desc": "no" });
            } else {
                answer["return"] = json!({});
            }
            stream.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            told.push((name, command["arguments"].clone()));
        }
        told
    }

    async fn told(refused: &str, detached: bool) -> (Result<()>, Vec<(String, Value)>) {
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

    fn names(told: &[(String, Value)]) -> Vec<&str> {
        told.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[tokio::test]
    async fn a_disk_comes_and_goes() {
        let (outcome, told) = told("nothing", true).await;
        outcome.unwrap();
        assert_eq!(names(&told), ["qmp_capabilities", "add-fd", "blockdev-add", "device_add", "device_del", "blockdev-del", "remove-fd"]);
        assert_eq!(told[1].1, json!({"fdset-id": 7}));
        assert_eq!((&told[2].1["filename"], &told[2].1["read-only"]), (&json!("/dev/fdset/7"), &json!(true)));
        assert_eq!((&told[3].1["drive"], &told[3].1["serial"]), (&told[2].1["node-name"], &json!("disk-7")));
    }

    #[tokio::test]
    async fn a_disk_that_has_left_already_is_taken_away_all_the_same() {
        let (outcome, told) = told("device_del", true).await;
        outcome.unwrap();
        assert_eq!(names(&told)[4..], ["device_del", "blockdev-del", "remove-fd"]);
    }

    #[tokio::test]
    async fn what_was_made_before_a_refusal_is_undone() {
        for (refused, undone) in [("add-fd", &[][..]), ("blockdev-add", &["remove-fd"]), ("device_add", &["blockdev-del", "remove-fd"])] {
            let (outcome, told) = told(refused, false).await;
            assert_eq!(outcome.unwrap_err().to_string(), format!("QEMU refuses {refused}: no"));
            let names = names(&told);
            let after = names.iter().position(|name| *name == refused).unwrap() + 1;
            assert_eq!(&names[after..], undone);
        }
    }
}
