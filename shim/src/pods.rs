// SPDX-License-Identifier: Apache-2.0
//! `pods`: which pods there are on this node, from their records alone, so that it works while
//! containerd or `serve` is down.
//!
//! It only looks: it takes no lock, and asks no pod.

use magnetar_core::cgroup::Cgroup;
use magnetar_core::config::HandlerConfig;
use magnetar_core::error::Result;
use magnetar_core::record::{Found, PodDir};
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// How many letters of an id are shown, as crictl does it.
const SHORT: usize = 13;

/// Spaces between columns.
const GAP: usize = 2;

/// A pod with a directory on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pod {
    /// containerd's namespace.
    pub namespace: String,
    /// Its id.
    pub id: String,
    /// Its name in Kubernetes, `NAMESPACE/NAME`; none for a container without a pod, and for a pod
    /// that is starting.
    pub name: Option<String>,
    /// Its kind of sandbox; none if its record cannot be read.
    pub kind: Option<String>,
    /// Whether its sandbox process lives.
    pub state: State,
    /// The id of its sandbox process, if that lives.
    pub pid: Option<u32>,
    /// How long ago it was made, in seconds; none if it has no socket yet, or the clock was set
    /// back since.
    pub age: Option<u64>,
    /// How many containers it has, whatever their state.
    pub containers: usize,
    /// The memory of its containers, or of its virtual machine, in bytes: what is in use and cannot
    /// be given up at once. None if nothing of it can be read.
    pub memory: Option<u64>,
    /// What is wrong with its record.
    pub damage: Option<String>,
}

/// Whether a pod's sandbox process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has not begun yet.
    Starting,
    /// It lives.
    Running,
    /// It has ended, and what is left of the pod was not removed yet.
    Dead,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Dead => "dead",
        }
    }
}

/// Prints the pods of this node as a table, or as JSON.
pub fn run(json: bool, state_dir: &Path) -> anyhow::Result<ExitCode> {
    let pods = all(state_dir)?;
    crate::cli::print(&if json { serde_json::to_string_pretty(&pods)? + "\n" } else { table(&pods) })
}

/// Every pod with a directory in `state_dir`, in the order of their age.
///
/// # Errors
/// When a directory cannot be read.
fn all(state_dir: &Path) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for (namespace, id, dir) in PodDir::all(state_dir)? {
        // It may be removed meanwhile.
        if let Some(pod) = look(&dir, namespace.as_str(), id.as_str())? {
            pods.push(pod);
        }
    }
    pods.sort_by(|one, other| (other.age, &one.id).cmp(&(one.age, &other.id)));
    Ok(pods)
}

/// What is on record about a pod; `None` if it is gone.
fn look(dir: &PodDir, namespace: &str, id: &str) -> Result<Option<Pod>> {
    let (found, containers) = (dir.find_pod()?, dir.find_containers()?);
    let pid = match dir.holder() {
        Ok(holder) => holder.map(|holder| holder.pid),
        Err(_) if !dir.exists()? => return Ok(None),
        Err(error) => return Err(error),
    };
    let record = found.record();
    let own = record.and_then(|record| record.cgroup.as_deref());
    let of_containers = containers.values().filter_map(|found| found.record()?.cgroup.as_deref());
    let memory = own.into_iter().chain(of_containers).filter_map(|path| Cgroup::at(path).ok()?.working_set());
    Ok(Some(Pod {
        namespace: namespace.to_owned(),
        id: id.to_owned(),
        name: record.and_then(|record| record.name.clone()),
        kind: record.map(|record| kind(&record.config)),
        state: match &found {
            _ if pid.is_some() => State::Running,
            Found::Absent => State::Starting,
            Found::Record(record) if record.pid == 0 => State::Starting,
            Found::Record(_) | Found::Damaged(_) => State::Dead,
        },
        pid,
        // It was bound when the pod was made, and nothing has changed it since.
        age: std::fs::symlink_metadata(dir.socket()).and_then(|socket| socket.modified()).ok().and_then(age),
        containers: containers.len(),
        memory: memory.reduce(u64::saturating_add),
        damage: match &found {
            Found::Damaged(why) => Some(why.clone()),
            Found::Record(_) | Found::Absent => None,
        },
    }))
}

/// The kind of sandbox that these options ask for.
fn kind(config: &HandlerConfig) -> String {
    match config.sandboxer.as_str() {
        "wasm" if config.runtime.name == "auto" => "wasmtime".into(),
        "wasm" => config.runtime.name.clone(),
        "vmm" => config.vm.get("hypervisor").and_then(|name| name.as_str()).unwrap_or("qemu").into(),
        other => other.into(),
    }
}

fn age(since: SystemTime) -> Option<u64> {
    SystemTime::now().duration_since(since).ok().as_ref().map(Duration::as_secs)
}

fn table(pods: &[Pod]) -> String {
    if pods.is_empty() {
        return "There is no pod of Magnetar on this node.\n".into();
    }
    let dash = || "-".to_owned();
    let row = |pod: &Pod| {
        [
            pod.id.chars().take(SHORT).collect(),
            pod.name.clone().unwrap_or_else(dash),
            pod.kind.clone().unwrap_or_else(dash),
            pod.state.name().to_owned(),
            pod.age.map_or_else(dash, in_words),
            pod.containers.to_string(),
            pod.memory.map_or_else(dash, |bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))),
            pod.pid.map_or_else(dash, |pid| pid.to_string()),
            pod.namespace.clone(),
            pod.damage.as_ref().map(|why| format!("its record is damaged: {why}")).unwrap_or_default(),
        ]
    };
    let head = ["POD ID", "NAME", "KIND", "STATE", "AGE", "CONTAINERS", "MEMORY", "PID", "NAMESPACE", ""].map(str::to_owned);
    let rows: Vec<_> = [head].into_iter().chain(pods.iter().map(row)).collect();
    let widths: Vec<usize> =
        (0..rows[0].len()).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + GAP).collect();
    let mut text = String::new();
    for row in &rows {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// An age as kubectl writes it: the two largest units.
fn in_words(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::ids::{ContainerId, Namespace, SandboxId};
    use magnetar_core::record::{ContainerRecord, PodRecord};

    fn made(state: &Path, id: &str, change: impl FnOnce(&mut PodRecord)) -> PodDir {
        let (namespace, sandbox) = (Namespace::parse("k8s.io").unwrap(), SandboxId::parse(id).unwrap());
        let dir = PodDir::new(state, &namespace, &sandbox).unwrap();
        dir.make().unwrap();
        let mut record = PodRecord::new(namespace, sandbox, HandlerConfig::default());
        change(&mut record);
        dir.write_pod(&record).unwrap();
        dir
    }

    #[test]
    fn pods_are_shown_by_their_records_alone() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(table(&all(&state.path().join("none")).unwrap()), "There is no pod of Magnetar on this node.\n");
        let dir = made(state.path(), "0123456789abcdef", |record| {
            record.name = Some("default/web".into());
            record.config.sandboxer = "wasm".into();
            record.config.runtime.name = "wasmedge".into();
            record.pid = 1;
        });
        let container = ContainerRecord::new(ContainerId::parse("c").unwrap(), "/bundle".into(), None, None);
        dir.write_container(&container).unwrap();
        std::fs::write(made(state.path(), "damaged", |_| ()).path().join("pod.json"), "{").unwrap();
        made(state.path(), "new", |_| ());
        let pods = all(state.path()).unwrap();
        let [web, damaged, new] = &pods[..] else { panic!("{pods:?}") };
        assert_eq!(new.state, State::Starting);
        assert_eq!((web.kind.as_deref(), web.containers, web.state, web.pid), (Some("wasmedge"), 1, State::Dead, None));
        assert!(damaged.damage.is_some() && damaged.kind.is_none(), "{damaged:?}");
        let text = table(&pods);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("POD ID         NAME         KIND      STATE     AGE  CONTAINERS"), "{text}");
        assert!(lines[1].starts_with("0123456789abc  default/web  wasmedge  dead      -    1 "), "{text}");
        assert!(lines[2].contains("k8s.io") && lines[2].contains("its record is damaged: "), "{text}");
    }

    #[test]
    fn a_kind_is_named_for_what_runs_the_pod() {
        let of = |text: &str| kind(&HandlerConfig::parse(text).unwrap());
        assert_eq!(of("sandboxer = \"runc\""), "runc");
        assert_eq!(of("sandboxer = \"wasm\""), "wasmtime");
        assert_eq!(of("sandboxer = \"vmm\""), "qemu");
        assert_eq!(of("sandboxer = \"vmm\"\n[vm]\nhypervisor = \"cloud-hypervisor\""), "cloud-hypervisor");
    }

    #[test]
    fn ages_have_their_two_largest_units() {
        assert_eq!([5, 65, 3700, 90_000].map(in_words), ["5s", "1m5s", "1h1m", "1d1h"]);
    }
}
