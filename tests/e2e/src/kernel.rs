// SPDX-License-Identifier: Apache-2.0
//! What the kernel says of one process: its cgroup's limits, its namespaces, its status. Of a
//! container in a virtual machine the node's kernel knows nothing; its own, which has cgroup
//! version 2, is asked through a command in the container.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use magnetar_cri::Container;
pub use magnetar_observe::cgroup;

use crate::{Case, eventually};

/// Gives a pod's cgroup limits, as a kubelet does before it makes or resizes the pod. `name` is
/// below the root.
pub fn limit_pod(name: &str, memory: i64, quota: i64, period: i64) -> Result<()> {
    let write = |controller: &str, file: &str, text: String| {
        let dir = Path::new(cgroup::ROOT).join(if cgroup::unified() { "" } else { controller });
        if cgroup::unified() {
            fs::write(dir.join("cgroup.subtree_control"), "+memory +cpu").context("controllers")?;
        }
        let dir = dir.join(name.trim_start_matches('/'));
        fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join(file), &text)).with_context(|| format!("{text} to {file} of {name}"))
    };
    if cgroup::unified() {
        write("", "memory.max", memory.to_string())?;
        return write("", "cpu.max", format!("{quota} {period}"));
    }
    write("memory", "memory.limit_in_bytes", memory.to_string())?;
    write("cpu", "cpu.cfs_period_us", period.to_string())?;
    write("cpu", "cpu.cfs_quota_us", quota.to_string())
}

/// The folder of a process's cgroup; with version 1 that of `controller`.
pub fn cgroup_of(pid: i32, controller: &str) -> Result<PathBuf> {
    let text = read(&format!("/proc/{pid}/cgroup"))?;
    let wanted = if cgroup::unified() { "" } else { controller };
    let path = text
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            Some((parts.next()?, parts.next()?))
        })
        .find(|(names, _)| names.split(',').any(|name| name == wanted))
        .map(|(_, path)| path.trim_start_matches('/').to_owned())
        .with_context(|| format!("process {pid} is in no cgroup of {controller}: {text}"))?;
    Ok(Path::new(cgroup::ROOT).join(wanted).join(path))
}

/// A file of a process's cgroup: `v1` is the controller and its file, `v2` the file.
pub fn cgroup_file(pid: i32, v1: (&str, &str), v2: &str) -> Result<String> {
    let name = if cgroup::unified() { v2 } else { v1.1 };
    let file = cgroup_of(pid, v1.0)?.join(name);
    Ok(fs::read_to_string(&file).with_context(|| file.display().to_string())?.trim().to_owned())
}

/// A file of a running container's cgroup, as [`cgroup_file`].
pub async fn container_file(case: &Case, container: &Container, v1: (&str, &str), v2: &str) -> Result<String> {
    if case.is_vm() {
        return asked(container, &["cat", &format!("/sys/fs/cgroup/{v2}")]).await;
    }
    cgroup_file(container.pid().await?, v1, v2)
}

/// Which namespace of a kind a running container is in. The numbers of different kernels cannot be
/// compared.
pub async fn container_namespace(case: &Case, container: &Container, kind: &str) -> Result<String> {
    if case.is_vm() {
        return asked(container, &["readlink", &format!("/proc/self/ns/{kind}")]).await;
    }
    namespace(container.pid().await?, kind)
}

async fn asked(container: &Container, command: &[&str]) -> Result<String> {
    let output = container.exec(command.iter().copied()).await?;
    ensure!(output.code == 0, "{}: {}", command.join(" "), output.stderr);
    Ok(output.stdout.trim().to_owned())
}

/// Which namespace of a kind (`net`, `pid`, …) a process is in.
pub fn namespace(pid: i32, kind: &str) -> Result<String> {
    let link = format!("/proc/{pid}/ns/{kind}");
    Ok(fs::read_link(&link).context(link)?.to_string_lossy().into_owned())
}

/// A line of a process's status, without its key.
pub fn status(pid: i32, key: &str) -> Result<String> {
    field(&read(&format!("/proc/{pid}/status"))?, key)
}

/// A line of a status text, without its key.
pub fn field(status: &str, key: &str) -> Result<String> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
        .with_context(|| format!("no {key} in {status}"))
}

/// Removes a cgroup that a test had made in the kubelet's place, once nobody is in it.
pub async fn remove_cgroups(case: &Case, name: &str) -> Result<()> {
    eventually("the pod's cgroup can be removed", case.soon(), async || Ok(cgroup::remove(name).then_some(()))).await
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.to_owned())
}
