// SPDX-License-Identifier: Apache-2.0
//! Disks that are attached and detached while the machine runs. In place of Cloud Hypervisor's PCI
//! cards they are SCSI disks, which QEMU alone can remove.
//!
//! As Cloud Hypervisor does, it opens a disk by its path: the node in the program's own /dev.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Error, Lines, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// The machine's disks, and QEMU's socket for orders about them.
pub struct Disks {
    monitor: PathBuf,
    names: BTreeSet<String>,
}

/// A connection that speaks QEMU's protocol.
struct Monitor {
    socket: UnixStream,
    lines: Lines<BufReader<UnixStream>>,
}

impl Disks {
    /// None yet.
    pub fn new(monitor: PathBuf) -> Self {
        Self { monitor, names: BTreeSet::new() }
    }

    /// The machine's devices, as `vm.info` names them: only the disks.
    pub fn tree(&self) -> Value {
        self.names.iter().map(|name| (name.clone(), json!({}))).collect::<serde_json::Map<_, _>>().into()
    }

    /// `vm.add-disk`.
    pub fn add(&mut self, order: &Value) -> Result<()> {
        let text = |key: &str| order[key].as_str().ok_or_else(|| Error::other(format!("vm.add-disk without {key}: {order}")));
        let (path, name, serial) = (text("path")?, text("id")?, text("serial")?);
        if order["image_type"] != "Raw" || order["direct"] != true {
            return Err(Error::other(format!("vm.add-disk with options that this program does not know: {order}")));
        }
        let mut monitor = Monitor::connect(&self.monitor)?;
        let node = json!({
            "driver": "host_device", "node-name": name, "filename": path, "read-only": order["readonly"], "cache": { "direct": true },
            "locking": "off",
        });
        monitor.execute("blockdev-add", &node)?;
        monitor.execute("device_add", &json!({ "driver": "scsi-hd", "id": name, "drive": name, "serial": serial, "bus": "disks.0" }))?;
        self.names.insert(name.to_owned());
        Ok(())
    }

    /// `vm.remove-device`, and what follows it once the guest lets go.
    pub fn remove(&mut self, order: &Value) -> Result<()> {
        let name = order["id"].as_str().filter(|name| self.names.contains(*name));
        let name = name.ok_or_else(|| Error::other(format!("no such device: {order}")))?.to_owned();
        let mut monitor = Monitor::connect(&self.monitor)?;
        monitor.execute("device_del", &json!({ "id": name }))?;
        // The device is gone once its block node can be deleted.
        while let Err(error) = monitor.execute("blockdev-del", &json!({ "node-name": name })) {
            if !error.to_string().contains("in use") {
                return Err(error);
            }
        }
        self.names.remove(&name);
        Ok(())
    }
}

impl Monitor {
    fn connect(socket: &PathBuf) -> Result<Self> {
        let socket = UnixStream::connect(socket)?;
        let mut monitor = Self { lines: BufReader::new(socket.try_clone()?).lines(), socket };
        // The greeting.
        monitor.line()?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<()> {
        writeln!(self.socket, "{}", json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let answer = self.line()?;
            if !answer["error"].is_null() {
                return Err(Error::other(format!("QEMU refuses {command}: {}", answer["error"]["desc"])));
            }
            // Otherwise it is an event.
            if !answer["return"].is_null() {
                return Ok(());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let line = self.lines.next().ok_or_else(|| Error::other("QEMU has hung up"))??;
        serde_json::from_str(&line).map_err(Error::other)
    }
}
