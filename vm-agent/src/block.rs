// SPDX-License-Identifier: Apache-2.0
//! Finds disks that the host attaches while the guest runs.
//!
//! ```text
//! host: attaches a disk ──> the kernel finds it ──uevent──> the agent looks for its serial number
//! ```
//!
//! The hypervisor decides whether a disk is a SCSI disk (virtio-scsi) or a card of its own
//! (virtio-blk). Every guest has the driver of the latter from its start. Those of the former are
//! loaded for the first disk, because most pods have none.

use crate::{modules, uevents};
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_vm_agent_api::{DISK_FOUND, Disk};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The drivers that a SCSI disk needs: of the controller, and of the disk.
const DRIVERS: [&str; 2] = ["virtio_scsi", "sd_mod"];

/// Where the kernel has its block devices.
const BLOCK: &str = "/sys/block";

/// Major and minor, as a specification has them.
type Numbers = (i64, i64);

/// How long a disk may stay in use after its container: the kernel writes and unmounts a
/// container's file systems in the background, some time after its last process has ended.
const USED: Duration = Duration::from_secs(20);

/// The time between two checks whether a disk is still in use. The kernel sends no event for that.
const AGAIN: Duration = Duration::from_millis(20);

/// Waits for each of `disks`, and returns the specification with this kernel's device numbers for
/// them.
///
/// # Errors
/// `DeadlineExceeded` for a disk that does not appear, or the kernel's error.
pub async fn place(spec: &str, disks: &[Disk]) -> Result<String> {
    for driver in DRIVERS {
        modules::load(driver)?;
    }
    let mut spec: Value = serde_json::from_str(spec).map_err(|e| Error::invalid(format!("the specification does not parse: {e}")))?;
    let mut numbers = Vec::new();
    for Disk { serial, major, minor } in disks {
        let named = |error: Error| Error::new(error.code(), format!("the host's block device {major}:{minor}: {error}"));
        let found = find(serial).await.map_err(named)?;
        numbers.push(((i64::from(*major), i64::from(*minor)), device_numbers(&found)?));
    }
    renumber(&mut spec, &numbers);
    Ok(spec.to_string())
}

/// Waits until nothing uses the disk with this serial number. A disk that is not there is no error.
///
/// # Errors
/// `DeadlineExceeded` if it stays in use, or the kernel's error.
pub async fn release(serial: &str) -> Result<()> {
    let Some(found) = look_for(serial)? else { return Ok(()) };
    let name = found.file_name().unwrap_or_default();
    let node = Path::new("/dev").join(name);
    let what = || format!("cannot open {}", node.display());
    let used = async {
        loop {
            // With O_EXCL the kernel refuses to open a block device that is in use (open(2)).
            match rustix::fs::open(&node, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
                Err(Errno::BUSY) => tokio::time::sleep(AGAIN).await,
                outcome => return outcome.map(drop).context(what),
            }
        }
    };
    let late = |_| {
        let what =
            format!("{} in the guest is in use, by a process or as a mounted file system, {USED:?} after its container", node.display());
        Error::new(Code::DeadlineExceeded, what)
    };
    tokio::time::timeout(USED, used).await.map_err(late)?
}

/// Waits for the disk with this serial number. Returns its directory in [`BLOCK`].
async fn find(serial: &str) -> Result<PathBuf> {
    // Listen first, so that a disk cannot appear unnoticed between the look and the wait.
    let told = uevents::listen()?;
    let found = async {
        loop {
            if let Some(found) = look_for(serial)? {
                return Ok(found);
            }
            uevents::hear(&told).await?;
        }
    };
    let late = |_| Error::new(Code::DeadlineExceeded, format!("the guest's kernel has not found {serial} within {DISK_FOUND:?}"));
    tokio::time::timeout(DISK_FOUND, found).await.map_err(late)?
}

fn look_for(serial: &str) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(BLOCK).context(|| format!("cannot list {BLOCK}"))?;
    Ok(entries.flatten().map(|entry| entry.path()).find(|block| serial_number(block).as_deref() == Some(serial)))
}

/// Reads a disk's serial number: of a SCSI disk from its page 0x80 (SPC-4), where it follows four
/// bytes of header; of a virtio-blk disk from the file that its driver has for it.
fn serial_number(block: &Path) -> Option<String> {
    let serial = match fs::read(block.join("device/vpd_pg80")) {
        Ok(page) => page.get(4..)?.to_vec(),
        Err(_) => fs::read(block.join("serial")).ok()?,
    };
    String::from_utf8(serial).ok().map(|serial| serial.trim().to_owned())
}

fn device_numbers(block: &Path) -> Result<Numbers> {
    let file = block.join("dev");
    let text = fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
    let numbers = text.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    numbers.ok_or_else(|| Error::internal(format!("{} has no device numbers: {text:?}", file.display())))
}

/// Replaces the host's numbers of block devices by this kernel's, in the devices and in the rules
/// for them.
fn renumber(spec: &mut Value, numbers: &[(Numbers, Numbers)]) {
    for list in ["/linux/devices", "/linux/resources/devices"] {
        for entry in spec.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let given = (entry["major"].as_i64(), entry["minor"].as_i64());
            let found = numbers.iter().find(|((major, minor), _)| entry["type"] == "b" && given == (Some(*major), Some(*minor)));
            if let Some((_, (major, minor))) = found {
                entry["major"] = (*major).into();
                entry["minor"] = (*minor).into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_devices_and_rules_of_the_disks_are_renumbered() {
        let entry = |kind: &str, major: i64, minor: i64| json!({"type": kind, "major": major, "minor": minor});
        let spec = |a: Numbers, b: Numbers| {
            json!({"linux": {
                "devices": [entry("b", a.0, a.1), entry("c", 8, 0), entry("b", b.0, b.1)],
                "resources": {"devices": [{"allow": false}, entry("b", b.0, b.1), entry("c", 8, 0), entry("b", a.0, a.1)]},
            }})
        };
        // The guest's numbers of the first are the host's numbers of the second.
        let mut given = spec((8, 0), (8, 16));
        renumber(&mut given, &[((8, 0), (8, 16)), ((8, 16), (8, 0))]);
        assert_eq!(given, spec((8, 16), (8, 0)));
        renumber(&mut given, &[]);
        assert_eq!(given, spec((8, 16), (8, 0)));
        let mut none = json!({"linux": {}});
        renumber(&mut none, &[((8, 0), (8, 16))]);
        assert_eq!(none, json!({"linux": {}}));
    }

    #[test]
    fn the_serial_number_is_where_the_driver_has_it() {
        let dir = std::env::temp_dir().join(format!("magnetar-block-{}", std::process::id()));
        fs::create_dir_all(dir.join("device")).unwrap();
        fs::write(dir.join("device/vpd_pg80"), b"\0\x80\0\x06disk-7").unwrap();
        fs::write(dir.join("dev"), "8:16\n").unwrap();
        assert_eq!(serial_number(&dir).as_deref(), Some("disk-7"));
        assert_eq!(device_numbers(&dir).unwrap(), (8, 16));
        fs::remove_dir_all(dir.join("device")).unwrap();
        fs::write(dir.join("serial"), b"disk-8\n").unwrap();
        assert_eq!(serial_number(&dir).as_deref(), Some("disk-8"), "virtio-blk");
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(serial_number(&dir), None);
    }
}
