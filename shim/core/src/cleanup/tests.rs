// SPDX-License-Identifier: Apache-2.0
//! Tests with damaged and lying records: the pod must be removed, and no other pod be harmed.

use super::*;
use crate::config::HandlerConfig;
use crate::ids::{Namespace, SandboxId};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A pod on disk, with names that only this test uses.
struct Pod {
    state: tempfile::TempDir,
    dir: PodDir,
    record: PodRecord,
    container: ContainerRecord,
}

const DAMAGES: [&str; 8] = ["empty", "cut", "noise", "later", "directory", "fifo", "link", "another's"];

/// A name that no other test uses: tests run at the same time, and make cgroups.
fn name(of: &str, kind: char) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}{count:08x}{:>48}", std::process::id(), format!("{kind}{of}")).replace([' ', '\''], "0")
}

fn pod(of: &str) -> Pod {
    let state = tempfile::tempdir().unwrap();
    let (namespace, sandbox) = (Namespace::parse("k8s.io").unwrap(), SandboxId::parse(name(of, 'p')).unwrap());
    let dir = PodDir::new(state.path(), &namespace, &sandbox).unwrap();
    dir.make().unwrap();
    let mut config = HandlerConfig::default();
    (config.containerd.root, config.containerd.state) = (state.path().join("root"), state.path().join("state"));
    let record = PodRecord::new(namespace, sandbox, config);
    dir.write_pod(&record).unwrap();
    let id = ContainerId::parse(name(of, 'c')).unwrap();
    let cgroup = format!("/{id}");
    let container = ContainerRecord::new(id, state.path().join("bundle"), None, Some(cgroup));
    dir.write_container(&container).unwrap();
    Pod { state, dir, record, container }
}

fn damage(path: &Path, how: &str, anothers: &Path) {
    let text = std::fs::read(path).unwrap();
    std::fs::remove_file(path).unwrap();
    match how {
        "empty" => std::fs::write(path, "").unwrap(),
        "cut" => std::fs::write(path, &text[..text.len() / 2]).unwrap(),
        "noise" => std::fs::write(path, text.iter().map(|byte| byte ^ 0x55).collect::<Vec<_>>()).unwrap(),
        "later" => {
            let mut later: serde_json::Value = serde_json::from_slice(&text).unwrap();
            later["version"] = 4711.into();
            std::fs::write(path, later.to_string()).unwrap();
        }
        "directory" => std::fs::create_dir(path).unwrap(),
        "fifo" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "link" => std::os::unix::fs::symlink(anothers, path).unwrap(),
        "another's" => std::fs::write(path, std::fs::read(anothers).unwrap()).unwrap(),
        other => panic!("no such damage: {other}"),
    }
}

/// Starts a process in the container's cgroup; none if cgroups cannot be made.
fn process_in(container: &ContainerRecord) -> Option<Child> {
    let cgroup = crate::cgroup::Cgroup::at(container.cgroup.as_deref().unwrap()).unwrap();
    if let Err(error) = cgroup.create() {
        let _unheard =
            std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: a cgroup of our own needs root ({error})\n"));
        return None;
    }
    let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    cgroup.join(child.id()).unwrap();
    Some(child)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Makes two pods and damages the record of one. That pod and its process must be removed; the
/// other pod's must stay.
fn removes_one_and_spares_the_other(how: &str, file_of: impl Fn(&Pod) -> PathBuf) {
    let (damaged, other) = (pod(&format!("{}a", &how[..3])), pod(&format!("{}b", &how[..3])));
    let Some(mut own) = process_in(&damaged.container) else { return };
    let mut others = process_in(&other.container).unwrap();
    damage(&file_of(&damaged), how, &file_of(&other));
    // The state of an OCI runtime is a trace of the container as well.
    std::fs::create_dir(damaged.dir.runtime_root().join(damaged.container.container.as_str())).unwrap();
    block_on(async {
        let reaped = std::thread::spawn(move || own.wait().unwrap());
        clean_pod(&damaged.dir).await.unwrap_or_else(|error| panic!("{how}: {error}"));
        assert!(!reaped.join().unwrap().success(), "{how}");
        assert!(!damaged.dir.path().exists(), "{how}");
        assert!(others.try_wait().unwrap().is_none(), "{how}: another pod's process has ended");
        assert_eq!(other.dir.pod().unwrap().sandbox, other.record.sandbox);
        let reaped = std::thread::spawn(move || others.wait().unwrap());
        clean_pod(&other.dir).await.unwrap();
        reaped.join().unwrap();
    });
    drop((damaged.state, other.state));
}

#[test]
fn a_pod_with_a_damaged_record_is_removed_and_no_other() {
    for how in DAMAGES {
        removes_one_and_spares_the_other(how, |pod| pod.dir.path().join("pod.json"));
    }
}

#[test]
fn a_pod_with_a_damaged_record_of_a_container_is_removed_and_no_other() {
    for how in DAMAGES {
        removes_one_and_spares_the_other(how, |pod| pod.dir.path().join(format!("containers/{}.json", pod.container.container)));
    }
}

#[test]
fn a_record_with_another_container_s_cgroup_does_not_kill_its_processes() {
    let (liar, other) = (pod("liar"), pod("victim"));
    let Some(mut child) = process_in(&other.container) else { return };
    // As an earlier version wrote it, which did not claim cgroups.
    let path = liar.dir.path().join(format!("containers/{}.json", liar.container.container));
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    (text["version"], text["claimed"], text["cgroup"]) = (1.into(), false.into(), other.container.cgroup.clone().into());
    std::fs::write(path, text.to_string()).unwrap();
    let mut record = liar.record.clone();
    record.cgroup = other.container.cgroup.clone();
    record.mounts.push("/proc".into());
    liar.dir.write_pod(&record).unwrap();
    block_on(async {
        clean_pod(&liar.dir).await.unwrap();
        assert!(!liar.dir.path().exists());
        assert!(child.try_wait().unwrap().is_none(), "a process of another pod has ended");
        assert!(Path::new("/proc/self").exists());
        let reaped = std::thread::spawn(move || child.wait().unwrap());
        clean_pod(&other.dir).await.unwrap();
        reaped.join().unwrap();
    });
}
