// SPDX-License-Identifier: Apache-2.0
//! Adapts a bundle for libcontainer 0.7. What libcontainer would get wrong is done here, or
//! expressed differently.
//!
//! - An `oomScoreAdj` that the kernel refuses is fatal in libcontainer. A sandbox process without
//!   CAP_SYS_RESOURCE cannot lower its own, and a container without the setting is better than
//!   none.
//! - With `noNewPrivileges: false` it loads the seccomp filter when the privileges for that are
//!   gone. Without the field, which means the same, it works.
//! - Without `HOME` it asks the C library for the user, inside the container. There the C library
//!   may load the container's own name service modules into a static program. We read `passwd` from
//!   outside: see [`mod@env`].
//! - It refuses a specification with a capability that it does not know.
//! - With v1, a mount of type `cgroup` fails if the container joins a PID namespace by its path,
//!   and it is writable where it should not be. We bind the directories instead.
//! - It knows `rootfsPropagation` without the leading `r`, and always applies it recursively. It
//!   ignores the propagation of single mounts, and without any it uses "slave". If the container
//!   must not get the host's later mounts, we set "private".
//! - Mounts with mapped ids: see [`binds`].
//! - If the container has a user namespace, libcontainer enters that before it opens other
//!   namespaces by path, and then may not reach the paths. We open them before, and name the
//!   descriptors.

use super::executor::Prepared;
use super::{binds, env, init};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use libcontainer::oci_spec::runtime::{Capability, LinuxIdMapping, Spec};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The v1 controllers in which libcontainer makes a container's cgroup.
pub const CONTROLLERS: [&str; 12] =
    ["cpu", "cpuacct", "cpuset", "devices", "hugetlb", "memory", "pids", "perf_event", "blkio", "net_prio", "net_cls", "freezer"];

/// An adapted bundle.
#[derive(Debug)]
pub struct Adapted {
    /// The specification.
    pub spec: Spec,
    /// The same as JSON, with the fields that libcontainer does not read.
    pub json: Value,
    /// Whether the container is made by [`init`], and not by libcontainer's builder.
    pub is_plain: bool,
    /// The value for `oom_score_adj`.
    pub oom_score_adj: Option<i64>,
    /// The namespaces to which the specification refers, kept open until the container is made.
    _namespaces: Vec<OwnedFd>,
}

/// Adapts the specification of `bundle`, changes it by `prepare`, and writes it to `to`. Returns
/// `None` if another maker is to do it.
///
/// # Errors
/// When the specification cannot be read or written, or has no `root`, and those of `prepare`.
pub fn write(bundle: &Path, to: &Path, prepare: impl FnOnce(&mut Value) -> Result<Prepared>) -> Result<Option<Adapted>> {
    let path = bundle.join("config.json");
    let text = std::fs::read(&path).context(|| format!("cannot read {}", path.display()))?;
    let mut spec: Value =
        serde_json::from_slice(&text).map_err(|e| Error::invalid(format!("{} is no OCI specification: {e}", path.display())))?;
    if prepare(&mut spec)? == Prepared::ByOther {
        return Ok(None);
    }
    let oom_score_adj = adapt(&mut spec, bundle, env::home_in)?;
    let invalid = |e: serde_json::Error| Error::invalid(format!("{} is no OCI specification: {e}", path.display()));
    let is_plain = init::is_for(&serde_json::from_value(spec.clone()).map_err(invalid)?);
    if !is_plain {
        // In the bundle and not beside the specification, because the container's root can enter
        // only the bundle.
        binds::prepare(&mut spec, &bundle.join(".binds"))?;
    }
    if let Some(path) = spec.pointer("/linux/cgroupsPath").and_then(Value::as_str)
        && let Cgroup::V1 { dirs } = Cgroup::at(path)?
    {
        bind_cgroups(&mut spec, dirs.iter().map(|(controller, dir)| (controller.as_str(), dir)));
    }
    let namespaces = if is_plain { Vec::new() } else { open_namespaces(&mut spec)? };
    std::fs::create_dir_all(to).context(|| format!("cannot make {}", to.display()))?;
    std::fs::write(to.join("config.json"), spec.to_string()).context(|| format!("cannot write to {}", to.display()))?;
    let parsed = serde_json::from_value(spec.clone()).map_err(invalid)?;
    Ok(Some(Adapted { spec: parsed, json: spec, is_plain, oom_score_adj, _namespaces: namespaces }))
}

/// Opens all namespaces that are given by path, if a user namespace is one of them.
fn open_namespaces(spec: &mut Value) -> Result<Vec<OwnedFd>> {
    let namespaces = spec.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default();
    let path = |namespace: &Value| namespace["path"].as_str().filter(|path| !path.is_empty()).map(String::from);
    if !namespaces.iter().any(|namespace| namespace["type"] == "user" && path(namespace).is_some()) {
        return Ok(Vec::new());
    }
    let mut open = Vec::new();
    for namespace in namespaces {
        let Some(path) = path(namespace) else { continue };
        let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let fd = fd.context(|| format!("cannot open the namespace {path}"))?;
        namespace["path"] = Value::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        open.push(fd);
    }
    Ok(open)
}

fn adapt(spec: &mut Value, bundle: &Path, home_in: impl FnOnce(&Path, u64) -> Option<String>) -> Result<Option<i64>> {
    let root =
        spec.get_mut("root").and_then(|root| root.get_mut("path")).ok_or_else(|| Error::invalid("the specification has no root.path"))?;
    let rootfs = bundle.join(root.as_str().unwrap_or_default());
    *root = Value::from(rootfs.to_string_lossy());
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) {
        let propagation = linux.get("rootfsPropagation").and_then(Value::as_str).unwrap_or_default();
        let plain = propagation.strip_prefix('r').unwrap_or(propagation);
        let plain = Value::from(if plain.is_empty() { "private" } else { plain });
        linux.insert("rootfsPropagation".into(), plain);
    }
    let Some(process) = spec.get_mut("process").and_then(Value::as_object_mut) else {
        return Err(Error::invalid("the specification has no process"));
    };
    if process.get("noNewPrivileges") == Some(&Value::Bool(false)) {
        process.remove("noNewPrivileges");
    }
    let oom_score_adj = process.remove("oomScoreAdj").and_then(|value| value.as_i64());
    let uid = process.get("user").and_then(|user| user.get("uid")).and_then(Value::as_u64).unwrap_or_default();
    let given = process.get("env").and_then(Value::as_array).into_iter().flatten();
    let given = given.filter_map(|variable| variable.as_str().map(String::from)).collect();
    process.insert("env".into(), env::settled(given, || home_in(&rootfs, uid).unwrap_or_else(env::default_home))?.into());
    let cwd = process.get("cwd").and_then(Value::as_str).unwrap_or_default();
    if !cwd.is_empty() && !cwd.starts_with('/') {
        return Err(Error::invalid(format!("the working directory {cwd:?} is not an absolute path")));
    }
    leave_out_unknown(process);
    Ok(oom_score_adj)
}

/// Leaves out a process's capabilities that libcontainer does not know, because it would refuse the
/// specification. runc only warns about them, and a client may ask for capabilities of a newer
/// kernel.
pub fn leave_out_unknown(process: &mut serde_json::Map<String, Value>) {
    let known = |capability: &Value| serde_json::from_value::<Capability>(capability.clone()).is_ok();
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
        set.retain(known);
    }
}

/// Replaces mounts of type `cgroup` by their meaning with v1: a directory in which the container's
/// own cgroup of each controller is bound.
fn bind_cgroups<'a>(spec: &mut Value, dirs: impl Iterator<Item = (&'a str, &'a PathBuf)> + Clone) {
    let Some(mounts) = spec.get_mut("mounts").and_then(Value::as_array_mut) else { return };
    let mut adapted = Vec::new();
    for mount in std::mem::take(mounts) {
        let (Some("cgroup"), Some(destination)) = (mount["type"].as_str(), mount["destination"].as_str()) else {
            adapted.push(mount);
            continue;
        };
        let read_only = mount["options"].as_array().is_some_and(|options| options.iter().any(|option| option == "ro"));
        adapted.push(json!({
            "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "nodev", "mode=755"],
        }));
        // A hierarchy without controllers, such as systemd's, is mounted by its name.
        let names = dirs.clone().filter_map(|(controller, dir)| match controller.strip_prefix("name=") {
            Some(name) => Some((name, dir)),
            None => CONTROLLERS.contains(&controller).then_some((controller, dir)),
        });
        let binds = names.map(|(controller, dir)| {
            json!({
                "destination": format!("{}/{controller}", destination.trim_end_matches('/')), "type": "bind", "source": dir,
                "options": ["bind", "nosuid", "noexec", "nodev", if read_only { "ro" } else { "rw" }],
            })
        });
        adapted.extend(binds);
    }
    *mounts = adapted;
}

/// The host's id of the user as whom the container's program runs. A user that is not mapped is
/// nobody (65534).
pub fn owner(spec: &Spec) -> u32 {
    let uid = spec.process().as_ref().map(|process| process.user().uid()).unwrap_or_default();
    let mappings = spec.linux().as_ref().and_then(|linux| linux.uid_mappings().as_deref()).unwrap_or_default();
    if mappings.is_empty() {
        return uid;
    }
    let host = |mapping: &LinuxIdMapping| {
        let offset = uid.checked_sub(mapping.container_id()).filter(|offset| *offset < mapping.size())?;
        mapping.host_id().checked_add(offset)
    };
    mappings.iter().find_map(host).unwrap_or(65534)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(spec: &str, home: Option<&str>) -> (Value, Option<i64>) {
        let mut spec = serde_json::from_str(spec).unwrap();
        let oom_score_adj = adapt(&mut spec, Path::new("/bundle"), |_, _| home.map(String::from)).unwrap();
        (spec, oom_score_adj)
    }

    #[test]
    fn fields_that_libcontainer_gets_wrong_are_replaced() {
        let text = r#"{"root":{"path":"rootfs"},"process":{"noNewPrivileges":false,"oomScoreAdj":-997,"args":["x"],"env":["A=1"]},"linux":{"rootfsPropagation":"rshared"}}"#;
        let (spec, oom_score_adj) = adapted(text, Some("/house"));
        assert_eq!(oom_score_adj, Some(-997));
        let expected = r#"{"root":{"path":"/bundle/rootfs"},"process":{"args":["x"],"env":["A=1","HOME=/house"]},"linux":{"rootfsPropagation":"shared"}}"#;
        assert_eq!(spec, serde_json::from_str::<Value>(expected).unwrap());
    }

    #[test]
    fn given_values_are_kept() {
        let (spec, _) =
            adapted(r#"{"root":{"path":"/else"},"process":{"noNewPrivileges":true,"env":["HOME=/x"],"user":{"uid":5}}}"#, Some("/y"));
        assert_eq!(spec["root"]["path"], "/else");
        assert_eq!(spec.get("linux"), None);
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        assert_eq!(spec["process"]["env"], serde_json::json!(["HOME=/x"]));
        let (spec, _) = adapted(r#"{"root":{"path":"r"},"process":{},"linux":{}}"#, None);
        assert_eq!(spec["linux"]["rootfsPropagation"], "private");
        assert!(adapt(&mut Value::Null, Path::new("/b"), |_, _| None).is_err());
    }

    #[test]
    fn cgroups_are_bound_one_by_one() {
        let mut spec = serde_json::json!({"mounts": [
            {"destination": "/proc", "type": "proc"},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["nosuid", "ro"]},
        ]});
        let dirs = [("memory", PathBuf::from("/m/x")), ("name=systemd", PathBuf::from("/s/x"))];
        bind_cgroups(&mut spec, dirs.iter().map(|(controller, dir)| (*controller, dir)));
        let mounts = spec["mounts"].as_array().unwrap();
        assert_eq!(mounts.iter().map(|mount| mount["type"].as_str().unwrap()).collect::<Vec<_>>(), ["proc", "tmpfs", "bind", "bind"]);
        assert_eq!(mounts[2]["destination"], "/sys/fs/cgroup/memory");
        assert_eq!(mounts[2]["source"], "/m/x");
        assert_eq!(mounts[3]["destination"], "/sys/fs/cgroup/systemd");
        assert!(mounts[2]["options"].as_array().unwrap().contains(&"ro".into()));
    }

    #[test]
    fn namespaces_are_opened_only_beside_a_user_namespace() {
        let given =
            |kind: &str| serde_json::json!({"linux": {"namespaces": [{"type": kind, "path": "/proc/self/ns/uts"}, {"type": "mount"}]}});
        let mut spec = given("uts");
        assert!(open_namespaces(&mut spec).unwrap().is_empty());
        assert_eq!(spec, given("uts"));
        let mut spec = given("user");
        assert_eq!(open_namespaces(&mut spec).unwrap().len(), 1);
        let path = spec["linux"]["namespaces"][0]["path"].as_str().unwrap();
        assert!(path.starts_with("/proc/self/fd/"), "{path}");
    }

    #[test]
    fn owners_are_ids_of_the_host() {
        let mapped = r#"{"ociVersion":"1.1.0","root":{"path":"r"},"process":{"user":{"uid":5,"gid":5},"args":["x"],"cwd":"/"},
            "linux":{"uidMappings":[{"containerID":0,"hostID":100000,"size":10}]}}"#;
        let spec = |text: &str| serde_json::from_str::<Spec>(text).unwrap();
        assert_eq!(owner(&spec(mapped)), 100_005);
        assert_eq!(owner(&spec(&mapped.replace("\"size\":10", "\"size\":1"))), 65534);
        assert_eq!(owner(&spec(&mapped.replace("uidMappings", "xMappings"))), 5);
    }
}
