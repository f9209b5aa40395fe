// SPDX-License-Identifier: Apache-2.0
//! A container's specification for the host, as one for the guest. Nothing but a function: what it needs to know of the host
//! it is told, and what is to be done there it returns.
//!
//! - Root and volumes are in the share. /dev/shm is the guest's. An emptyDir in memory is in the guest's memory.
//! - Namespaces of the pod are those of the guest itself; those of the container are made there.
//! - A block device that the container was given becomes a disk of the machine. It keeps the host's numbers here, for which the
//!   agent puts those that its kernel has given the disk.
//! - The host's other devices, processors, labels and hooks mean nothing there. What the container would miss is refused;
//!   what only restricts it on the host (AppArmor, SELinux, CPU sets) is left out.

use crate::host::block::Numbers;
use crate::host::huge_pages;
use crate::host::share::{ROOTFS, Volume};
use crate::hypervisor::connection::Wanted;
use magnetar_core::error::{Error, Result};
use magnetar_core::ids::ContainerId;
use magnetar_vm_agent_api as api;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What there is to know of the pod.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The process whose PID namespace on the host stands for the pod's.
    pub sandbox_pid: u32,
    /// The pod's /dev/shm on the host.
    pub shm: &'a Path,
    /// The number of the volume in memory that a directory of the host stands for, if it does.
    pub memory: &'a (dyn Fn(&Path) -> Option<u32> + Sync),
    /// Whether the container has no pod. Its hooks and sysctls are the sandbox's then.
    pub is_single: bool,
}

/// What comes of it.
#[derive(Debug)]
pub struct Translated {
    /// For the guest.
    pub spec: Value,
    /// What the guest must be shown.
    pub volumes: Vec<Volume>,
    /// What must be attached: no device twice.
    pub disks: Vec<Wanted>,
    /// How many huge pages it may use.
    pub huge_pages: u32,
    /// Whether it joins the pod's PID namespace.
    pub shared_pid: bool,
}

/// Devices that are the same in every kernel, by their numbers (Documentation/admin-guide/devices.txt in the kernel).
const EVERYWHERE: [(i64, i64); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 229)];

/// Translates.
///
/// # Errors
/// `Unimplemented` for what a container in a virtual machine cannot have, `InvalidArgument` for what is no specification.
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
    // The guest has the pod's name, and no namespace for a container's own.
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

/// Limits for the guest: without what names the host's processors, memory nodes and devices, and sizes of huge pages that only the
/// host has.
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
        // There is nothing to be limited, and no file to write a limit to.
        if let Some(huge) = limits.get_mut("hugepageLimits").and_then(Value::as_array_mut) {
            huge.retain(|limit| limit["pageSize"].as_str().is_some_and(huge_pages::is_guests));
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
            // containerd leaves a container the one of its default specification where it finds none of the pod's on the host.
            // As in other pods, where the container has a part of the pod's: programs may be mapped from it.
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
        // What is mounted on the host may appear through the share; within the guest nothing is to spread.
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| !matches!(option.as_str(), Some("rslave" | "slave" | "rprivate" | "private")));
            options.push("rprivate".into());
        }
    }
    Ok(volumes)
}

/// Says whether the pod's PID namespace is one of them.
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
                    "the container is to share the process ids of another one: in a virtual machine only a whole pod can share them",
                ));
            }
            "user" => {
                return Err(Error::unimplemented(
                    "a pod in a virtual machine has no user namespace on the host: leave out hostUsers: false",
                ));
            }
            // The guest's own are the pod's.
            "network" | "ipc" | "uts" | "mount" | "cgroup" | "time" => {}
            other => return Err(Error::unimplemented(format!("the specification has a namespace of the type {other:?}"))),
        }
    }
    if !asked.iter().any(|namespace| namespace["type"] == "pid") {
        return Err(Error::unimplemented("the container is to have the host's process ids, which a virtual machine keeps it from"));
    }
    linux.insert("namespaces".into(), inside.into());
    Ok(shared_pid)
}

/// Returns those that are to be disks: block devices that a rule allows by their numbers. Without such a rule a device is one
/// of the many that containerd gives to a privileged container, of which it knows no more than that the host has them.
fn devices(linux: &mut Map<String, Value>) -> Result<Vec<Wanted>> {
    let none = Vec::new();
    let rules = linux.get("resources").and_then(|resources| resources["devices"].as_array()).unwrap_or(&none);
    let mut disks = Vec::<Wanted>::new();
    for device in linux.get("devices").and_then(Value::as_array).into_iter().flatten() {
        let numbers = (device["major"].as_i64().unwrap_or(-1), device["minor"].as_i64().unwrap_or(-1));
        let is_block = device["type"] == "b";
        if !is_block && EVERYWHERE.contains(&numbers) {
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
        let device = Numbers { major: number(numbers.0)?, minor: number(numbers.1)? };
        let read_only = !allowing.any(|rule| rule["access"].as_str().is_none_or(|access| access.contains('w')));
        if !disks.iter().any(|disk| disk.device == device) {
            disks.push(Wanted { device, read_only });
        }
    }
    // The guest's kernel may have given the same numbers to a disk of another container.
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

/// Whether a rule allows this block device, and no other.
fn allows(rule: &Value, (major, minor): (i64, i64)) -> bool {
    rule["allow"] == true && rule["type"] == "b" && rule["major"] == major && rule["minor"] == minor
}

#[cfg(test)]
mod tests;
