// SPDX-License-Identifier: Apache-2.0
//! Tests what is left after a crash, and that a second owner is refused.

use super::*;

fn pod() -> (tempfile::TempDir, PodDir) {
    let state = tempfile::tempdir().unwrap();
    let dir = PodDir::new(state.path(), &Namespace::parse("k8s.io").unwrap(), &SandboxId::parse("p1").unwrap()).unwrap();
    (state, dir)
}

fn record() -> PodRecord {
    PodRecord::new(Namespace::parse("k8s.io").unwrap(), SandboxId::parse("p1").unwrap(), HandlerConfig::default())
}

#[test]
fn a_second_make_is_refused() {
    let (_state, dir) = pod();
    dir.make().unwrap();
    assert_eq!(dir.make().unwrap_err().code(), Code::AlreadyExists);
    dir.remove().unwrap();
    dir.remove().unwrap();
    dir.make().unwrap();
}

#[test]
fn records_survive_the_writer() {
    let (state, dir) = pod();
    dir.make().unwrap();
    let mut written = record();
    written.mounts.push("/run/x/shm".into());
    dir.write_pod(&written).unwrap();
    let read = dir.pod().unwrap();
    assert_eq!(read.mounts, written.mounts);
    assert_eq!(read.sandbox, written.sandbox);
    assert_eq!(PodDir::all(state.path()).unwrap().len(), 1);
    assert!(PodDir::all(&state.path().join("nowhere")).unwrap().is_empty());
}

#[test]
fn containers_are_listed_until_removed() {
    let (_state, dir) = pod();
    dir.make().unwrap();
    let id = ContainerId::parse("c1").unwrap();
    let container = ContainerRecord::new(id.clone(), "/b".into(), None, Some("/k8s.io/c1".into()));
    dir.write_container(&container).unwrap();
    assert!(dir.has_container(&id));
    assert_eq!(dir.container_records().unwrap(), vec![container]);
    dir.remove_container(&id).unwrap();
    dir.remove_container(&id).unwrap();
    assert!(dir.container_records().unwrap().is_empty());
}

#[test]
fn a_damaged_or_later_record_is_an_error() {
    let (_state, dir) = pod();
    dir.make().unwrap();
    std::fs::write(dir.path().join("pod.json"), b"{").unwrap();
    assert!(dir.pod().unwrap_err().to_string().contains("damaged"));
    let mut later = record();
    later.version = VERSION + 1;
    dir.write_pod(&later).unwrap();
    assert!(dir.pod().unwrap_err().to_string().contains("version"));
    // A record of an earlier version is read: its pods live on when this program replaces that
    // version.
    let mut earlier = serde_json::to_value(record()).unwrap();
    earlier["version"] = 1.into();
    earlier.as_object_mut().unwrap().remove("parent");
    std::fs::write(dir.path().join("pod.json"), earlier.to_string()).unwrap();
    assert_eq!(dir.pod().unwrap().parent, None);
    std::fs::remove_file(dir.path().join("pod.json")).unwrap();
    assert_eq!(dir.pod().unwrap_err().code(), Code::NotFound);
}

#[test]
fn the_lock_has_one_holder() {
    let (_state, dir) = pod();
    dir.make().unwrap();
    let held = dir.try_lock().unwrap();
    assert!(held.is_some());
    assert!(dir.try_lock().unwrap().is_none());
    drop(held);
    assert!(dir.try_lock().unwrap().is_some());
}

#[test]
fn a_socket_path_that_does_not_fit_is_refused() {
    let long = SandboxId::parse("a".repeat(76)).unwrap();
    let namespace = Namespace::parse("n".repeat(30)).unwrap();
    assert_eq!(PodDir::new(Path::new(DEFAULT_STATE_DIR), &namespace, &long).unwrap_err().code(), Code::InvalidArgument);
}
