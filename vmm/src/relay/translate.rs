// SPDX-License-Identifier: Apache-2.0
//! Translates a container's specification for the host into one for the guest. A pure function: the
//! caller provides what it must know of the host, and it returns what must be done there.
//!
//! - Root filesystem and volumes are in the share. /dev/shm is the guest's. An emptyDir in memory
//!   is in the guest's memory.
//! - The pod's namespaces are the guest's own; the container's are made in the guest.
//! - A block device of the container becomes a disk of the machine. It keeps the host's numbers
//!   here. The agent replaces them with the numbers that its kernel gives the disk.
//! - The host's other devices, processors, labels and hooks mean nothing in the guest. What the
//!   container would miss is refused. What only restricts it on the host (AppArmor, SELinux, CPU
//!   sets) is left out.

use crate::host::block::DeviceNumbers;
use crate::host::huge_pages;
use crate::host::share::{ROOTFS, Volume};
use crate::hypervisor::connection::WantedDisk;
use magnetar_core::error::{Error, Result};
use magnetar_core::ids::ContainerId;
use magnetar_vm_agent_api as api;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What the translation must know of the pod.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The process whose PID namespace on the host represents the pod's.
    pub sandbox_pid: u32,
    /// The pod's /dev/shm on the host.
    pub shm: &'a Path,
    /// The number of the volume in memory for a directory of the host; `None` if it is no such
    /// volume.
    pub memory: &'a (dyn Fn(&Path) -> Option<u32> + Sync),
    /// Whether the container has no pod. The sandbox then handles its hooks and sysctls.
    pub is_single: bool,
}

/// The result of the translation.
#[derive(Debug)]
pub struct Translated {
    /// The specification for the guest.
    pub spec: Value,
    /// The volumes to mount into the share.
    pub volumes: Vec<Volume>,
    /// The disks to attach, each device once.
    pub disks: Vec<WantedDisk>,
    /// How many huge pages it may use.
    pub huge_pages: u32,
    /// Whether it joins the pod's PID namespace.
    pub shared_pid: bool,
}

/// Devices that are the same in every kernel, by their numbers
/// (Documentation/admin-guide/devices.txt in the kernel).
const SAME_IN_EVERY_KERNEL: [(i64, i64); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 229)];

/// Translates a specification.
///
/// # Errors
/// `Unimplemented` for what a container in a virtual machine cannot have, `InvalidArgument` for an
/// invalid specification.
pub fn translate(mut spec: Value, container: &ContainerId, context: &Context<'_>) -> Result<Translated> {
    let Some(object) = spec.as_object_mut() else { return Err(Error::invalid("the specification is not a JSON object")) };
    if context.is_single {
        object.remove("hooks");
    }
    refuse_hooks(object)?;
    let share = format!("{}/{container}", api::SHARE);
    let root = object.entry("root").or_insert_with(|| json!({}));
    let Some(root) = root.as_object_mut() else { return Err(Error::invalid("root of the specification is not an object")) };
    root.insert("path".into(), format!("{share}/{ROOTFS}").into());
    let volumes = mounts(object, &share, context)?;
    // The guest has the pod's hostname. Containers have no UTS namespace of their own.
    object.remove("hostname");
    object.remove("domainname");
    if let Some(process) = object.get_mut("process") {
        let Some(process) = process.as_object_mut() else { return Err(Error::invalid("process of the specification is not an object")) };
        process.remove("apparmorProfile");
        process.remove("selinuxLabel");
    }
    let linux = object.entry("linux").or_insert_with(|| json!({}));
    let Some(linux) = linux.as_object_mut() else { return Err(Error::invalid("linux of the specification is not an object")) };
    linux.insert("cgroupsPath".into(), format!("{}/{container}", api::CGROUP).into());
    if context.is_single {
        linux.remove("sysctl");
    }
    for of_the_host in ["mountLabel", "intelRdt", "rootfsPropagation"] {
        linux.remove(of_the_host);
    }
    let shared_pid = namespaces(linux, context)?;
    let disks = devices(linux)?;
    let huge_pages = huge_pages(linux)?;
    if let Some(limits) = linux.get_mut("resources") {
        resources(limits);
    }
    if linux.get("seccomp").and_then(|seccomp| seccomp.get("listenerPath")).is_some() {
        return Err(Error::unimplemented("a seccomp profile with a listener on the host does not reach into a virtual machine"));
    }
    Ok(Translated { spec, volumes, disks, huge_pages, shared_pid })
}

/// Adapts limits for the guest. Removes those for the host's processors, memory nodes and devices,
/// and those for huge page sizes that only the host has.
pub fn resources(limits: &mut Value) {
    if let Some(cpu) = limits.get_mut("cpu").and_then(Value::as_object_mut) {
        for of_the_host in ["cpus", "mems", "realtimeRuntime", "realtimePeriod"] {
            cpu.remove(of_the_host);
        }
    }
    if let Some(limits) = limits.as_object_mut() {
        for of_the_host in ["blockIO", "rdma", "network"] {
            limits.remove(of_the_host);
        }
        // The guest has no such pages, and no file for their limit.
        if let Some(huge) = limits.get_mut("hugepageLimits").and_then(Value::as_array_mut) {
            huge.retain(|limit| limit["pageSize"].as_str().is_some_and(huge_pages::guest_has));
        }
    }
}

fn refuse_hooks(object: &Map<String, Value>) -> Result<()> {
    let hooks = object.get("hooks").and_then(Value::as_object).into_iter().flatten();
    match hooks.filter(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty())).map(|(name, _)| name).next() {
        Some(name) => {
            Err(Error::unimplemented(format!("the container has {name} hooks, which would run on the host and not in the virtual machine")))
        }
        None => Ok(()),
    }
}

fn mounts(object: &mut Map<String, Value>, share: &str, context: &Context<'_>) -> Result<Vec<Volume>> {
    let mut volumes = Vec::new();
    for mount in object.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if mount["destination"] == "/dev/shm" && mount["type"] == "tmpfs" {
            // If containerd finds no /dev/shm of the pod on the host, it keeps the mount of its
            // default specification. Replace it by the pod's, mounted as in other pods: programs
            // may be mapped from it.
            let options = ["bind", "rw", "rprivate"];
            *mount = json!({"destination": "/dev/shm", "type": "bind", "source": api::SHM, "options": options});
            continue;
        }
        let options: Vec<&str> = mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let has = |name: &str| options.contains(&name);
        let destination = mount["destination"].as_str().unwrap_or_default();
        if mount.get("uidMappings").is_some() {
            return Err(Error::unimplemented(format!(
                "the volume at {destination} has ids of its own, which files of a virtual machine cannot have"
            )));
        }
        if !(mount["type"] == "bind" || has("bind") || has("rbind")) {
            continue;
        }
        if has("rshared") || has("shared") {
            return Err(Error::unimplemented(format!(
                "the volume at {destination} has the propagation Bidirectional: mounts in a virtual machine cannot appear on the host"
            )));
        }
        let source = PathBuf::from(mount["source"].as_str().unwrap_or_default());
        if !source.is_absolute() {
            return Err(Error::invalid(format!(
                "the volume at {destination} has the source {}, which is not an absolute path",
                source.display()
            )));
        }
        let (read_only, recursive, follows_host) = (has("ro"), has("rbind"), has("rslave") || has("slave"));
        mount["source"] = if source == context.shm {
            api::SHM.into()
        } else if let Some(number) = (context.memory)(&source) {
            format!("{}/{number}", api::MEMORY).into()
        } else {
            let name = volumes.len().to_string();
            let inside = format!("{share}/{name}");
            volumes.push(Volume { name, source, read_only, recursive, follows_host });
            inside.into()
        };
        // Later mounts of the host may appear through the share, but mounts must not propagate
        // within the guest.
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| !matches!(option.as_str(), Some("rslave" | "slave" | "rprivate" | "private")));
            options.push("rprivate".into());
        }
    }
    Ok(volumes)
}

/// Replaces the namespaces. Returns whether the container shares the pod's PID namespace.
fn namespaces(linux: &mut Map<String, Value>, context: &Context<'_>) -> Result<bool> {
    let mut inside = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    let mut shared_pid = false;
    let asked = linux.get("namespaces").and_then(Value::as_array).cloned().unwrap_or_default();
    for namespace in &asked {
        let path = namespace["path"].as_str().unwrap_or_default();
        match namespace["type"].as_str().unwrap_or_default() {
            "pid" if path.is_empty() => inside.push(json!({"type": "pid"})),
            "pid" if path == format!("/proc/{}/ns/pid", context.sandbox_pid) => {
                shared_pid = true;
                inside.push(json!({"type": "pid", "path": api::PID_NAMESPACE}));
            }
            "pid" => {
                return Err(Error::unimplemented(
                    "the container asks to share the process ids of another one: in a virtual machine only a whole pod can share them",
                ));
            }
            "user" => {
                return Err(Error::unimplemented(
                    "a pod in a virtual machine has no user namespace on the host: leave out hostUsers: false",
                ));
            }
            // The guest's own namespaces are the pod's.
            "network" | "ipc" | "uts" | "mount" | "cgroup" | "time" => {}
            other => return Err(Error::unimplemented(format!("the specification has a namespace of the type {other:?}"))),
        }
    }
    if !asked.iter().any(|namespace| namespace["type"] == "pid") {
        return Err(Error::unimplemented("the container asks for the host's process ids, which a virtual machine cannot give it"));
    }
    linux.insert("namespaces".into(), inside.into());
    Ok(shared_pid)
}

/// Returns the block devices that become disks: those that a rule allows by their numbers. A device
/// without such a rule is one of the many that containerd gives a privileged container, only
/// because the host has them.
fn devices(linux: &mut Map<String, Value>) -> Result<Vec<WantedDisk>> {
    let none = Vec::new();
    let rules = linux.get("resources").and_then(|resources| resources["devices"].as_array()).unwrap_or(&none);
    let mut disks = Vec::<WantedDisk>::new();
    for device in linux.get("devices").and_then(Value::as_array).into_iter().flatten() {
        let numbers = (device["major"].as_i64().unwrap_or(-1), device["minor"].as_i64().unwrap_or(-1));
        let is_block = device["type"] == "b";
        if !is_block && SAME_IN_EVERY_KERNEL.contains(&numbers) {
            continue;
        }
        let path = device["path"].as_str().unwrap_or_default();
        let mut allowing = rules.iter().filter(|rule| is_block && allows(rule, numbers)).peekable();
        if allowing.peek().is_none() {
            return Err(Error::unimplemented(format!(
                "the container is to have the host's device {path} ({}:{}), which its virtual machine has not. \
                 For privileged containers, set privileged_without_host_devices of the runtime handler in containerd's configuration",
                numbers.0, numbers.1
            )));
        }
        let number = |number: i64| u32::try_from(number).map_err(|_| Error::invalid(format!("{number} is no number of a device: {path}")));
        let device = DeviceNumbers { major: number(numbers.0)?, minor: number(numbers.1)? };
        let read_only = !allowing.any(|rule| rule["access"].as_str().is_none_or(|access| access.contains('w')));
        if !disks.iter().any(|disk| disk.device == device) {
            disks.push(WantedDisk { device, read_only });
        }
    }
    // In the guest, the same numbers may belong to another container's disk, so drop the other
    // rules.
    let rules = linux.get_mut("resources").and_then(|resources| resources.get_mut("devices")).and_then(Value::as_array_mut);
    if let Some(rules) = rules {
        let wanted = |rule: &Value| disks.iter().any(|disk| allows(rule, (disk.device.major.into(), disk.device.minor.into())));
        rules.retain(|rule| rule["allow"] != true || rule["type"] != "b" || rule["major"].as_i64().is_none_or(|n| n < 0) || wanted(rule));
    }
    Ok(disks)
}

fn huge_pages(linux: &Map<String, Value>) -> Result<u32> {
    let limits = linux.get("resources").and_then(|resources| resources["hugepageLimits"].as_array());
    huge_pages::pages(limits.into_iter().flatten().filter_map(|limit| Some((limit["pageSize"].as_str()?, limit["limit"].as_u64()?))))
}

/// Whether a rule allows exactly this block device.
fn allows(rule: &Value, (major, minor): (i64, i64)) -> bool {
    rule["allow"] == true && rule["type"] == "b" && rule["major"] == major && rule["minor"] == minor
}

#[cfg(test)]
mod tests;
