// SPDX-License-Identifier: Apache-2.0
//! Tests with the files of real systems.

use super::*;
use crate::error::Code;

fn hierarchies(mounts: &[(&str, &str, &str, &str)]) -> Hierarchies {
    let mut found = Hierarchies::default();
    for (root, target, fs_type, options) in mounts {
        let (root, target) = (PathBuf::from(root), PathBuf::from(target));
        found.add(&MountEntry { root, target, fs_type: (*fs_type).into(), super_options: (*options).into() });
    }
    found
}

fn hybrid() -> Hierarchies {
    hierarchies(&[
        ("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,release_agent=/lib/agent,name=systemd"),
        ("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
        ("/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
        ("/", "/sys/fs/cgroup/freezer", "cgroup", "rw,freezer"),
        ("/", "/sys/fs/cgroup/unified", "cgroup2", "rw,nsdelegate"),
        ("/", "/tmp", "tmpfs", "rw"),
    ])
}

fn v2() -> Hierarchies {
    hierarchies(&[("/", "/sys/fs/cgroup", "cgroup2", "rw"), ("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,name=systemd")])
}

fn v1_dirs(result: Result<Cgroup>) -> Vec<(String, String)> {
    match result.unwrap() {
        Cgroup::V1 { dirs } => dirs.into_iter().map(|(key, dir)| (key, dir.display().to_string())).collect(),
        Cgroup::V2 { dir } => panic!("v2: {dir:?}"),
    }
}

fn v2_dir(result: Result<Cgroup>) -> String {
    match result.unwrap() {
        Cgroup::V2 { dir } => dir.display().to_string(),
        Cgroup::V1 { dirs } => panic!("v1: {dirs:?}"),
    }
}

#[test]
fn a_hybrid_system_is_v1() {
    let dirs = v1_dirs(hybrid().at("/k8s.io/x"));
    let keys: Vec<_> = dirs.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["cpu", "cpuacct", "freezer", "memory", "name=systemd", "unified"]);
    assert_eq!(dirs[0].1, "/sys/fs/cgroup/cpu,cpuacct/k8s.io/x");
    assert_eq!(dirs[0].1, dirs[1].1);
}

#[test]
fn a_system_with_v2_and_a_named_hierarchy_is_v2() {
    assert_eq!(v2_dir(v2().at("/k8s.io/x/")), "/sys/fs/cgroup/k8s.io/x");
    assert_eq!(v2_dir(v2().at("/")), "/sys/fs/cgroup");
    assert_eq!(v2_dir(v2().of_process("1:name=systemd:/init.scope\n0::/user.slice/a:b.scope\n")), "/sys/fs/cgroup/user.slice/a:b.scope");
    assert_eq!(v2_dir(v2().of_process("0::/\n")), "/sys/fs/cgroup");
}

#[test]
fn a_process_owns_the_v1_hierarchies_in_which_it_has_the_same_place() {
    let membership = "9:name=systemd:/system.slice/containerd.service\n6:freezer:/pod/c\n4:memory:/pod/c\n2:cpu,cpuacct:/pod/c\n0::/\n";
    let keys: Vec<_> = v1_dirs(hybrid().of_process(membership)).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["cpu", "cpuacct", "freezer", "memory"]);
    // From the machine on which this was written: only memory is not at the root.
    let dirs = v1_dirs(hybrid().of_process("9:name=systemd:/\n6:freezer:/\n4:memory:/api/x\n1:cpu:/\n0::/\n"));
    assert_eq!(dirs, [("memory".to_owned(), "/sys/fs/cgroup/memory/api/x".to_owned())]);
}

#[test]
fn paths_are_found_if_part_of_a_hierarchy_is_mounted() {
    let inside = hierarchies(&[("/docker/1", "/sys/fs/cgroup", "cgroup2", "rw")]);
    assert_eq!(v2_dir(inside.of_process("0::/docker/1/sub")), "/sys/fs/cgroup/sub");
    assert_eq!(v2_dir(inside.of_process("0::/docker/1")), "/sys/fs/cgroup");
    assert_eq!(v2_dir(inside.at("/sub")), "/sys/fs/cgroup/sub");
    assert_eq!(inside.of_process("0::/docker/12").unwrap_err().code(), Code::NotFound);
    let later = hierarchies(&[("/a", "/elsewhere", "cgroup2", "rw"), ("/", "/sys/fs/cgroup", "cgroup2", "rw")]);
    assert_eq!(v2_dir(later.of_process("0::/b")), "/sys/fs/cgroup/b");
}

#[test]
fn cgroups_outside_of_the_mount_or_removed_are_not_found() {
    for line in ["0::/../other", "0::/a/../../b", "0::/gone (deleted)", "0::", "", "garbage"] {
        assert_eq!(v2().of_process(line).unwrap_err().code(), Code::NotFound, "{line:?}");
    }
}

#[test]
fn systemd_paths_expand() {
    let at = |path: &str| v2_dir(v2().at(path)).replacen("/sys/fs/cgroup", "", 1);
    assert_eq!(
        at("kubepods-besteffort-pod1_2.slice:cri-containerd:abc"),
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-abc.scope"
    );
    assert_eq!(at("a.slice::b"), "/a.slice/b.scope");
    assert_eq!(at(":p:n"), "/system.slice/p-n.scope");
    assert_eq!(at("-.slice:p:n"), "/p-n.scope");
    assert_eq!(at("a.slice:p:a-b.slice"), "/a.slice/a-b.slice");
    assert_eq!(at("a-b.slice"), "/a.slice/a-b.slice");
    assert_eq!(at("a.slice:p:x:y"), "/a.slice/p-x:y.scope");
}

#[test]
fn other_paths_are_refused() {
    for path in [
        "",
        "relative",
        "a/b.slice",
        "/a/../b",
        "/..",
        "a.slice:p",
        "a.slice:p:",
        "a:p:n",
        "a--b.slice:p:n",
        "-a.slice:p:n",
        "a.slice:p:/etc",
        "a.slice:..:x",
        "../x.slice:p:n",
        ".slice",
        "/a\0b",
    ] {
        assert_eq!(v2().at(path).unwrap_err().code(), Code::InvalidArgument, "{path:?}");
    }
    assert_eq!(Hierarchies::default().at("/a").unwrap_err().code(), Code::FailedPrecondition);
}
