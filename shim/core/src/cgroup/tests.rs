// SPDX-License-Identifier: Apache-2.0
//! Tests on the cgroup filesystem of the machine, of either version. They need root, and say so
//! when they are skipped.

use super::*;
use crate::error::Code;
use std::io::Write as _;
use std::process::{Child, Command};
use std::time::Duration;

/// A cgroup that is removed with the test; `None` without the privilege to make one.
pub(super) struct Scratch(pub(super) OwnedCgroup);

impl Scratch {
    pub(super) fn make(name: &str) -> Option<Scratch> {
        Self::of(Cgroup::at(&format!("/magnetar-test-{}-{name}/inner", std::process::id())).unwrap())
    }

    /// A cgroup of the machine's version; on a hybrid system also one of v2, without controllers.
    fn of_each_version(name: &str) -> Vec<Scratch> {
        let machines = Self::make(name);
        let unified = machines.as_ref().and_then(|scratch| match &*scratch.0 {
            Cgroup::V1 { dirs } => Some(dirs.get(UNIFIED)?.parent()?.with_extension("v2").join("inner")),
            Cgroup::V2 { .. } => None,
        });
        machines.into_iter().chain(unified.and_then(|dir| Self::of(Cgroup::V2 { dir }))).collect()
    }

    fn of(cgroup: Cgroup) -> Option<Scratch> {
        match cgroup.create() {
            Ok(()) => Some(Scratch(OwnedCgroup::made(cgroup))),
            Err(error) => {
                // Written past libtest's capture, so that the log shows that this test ran nothing.
                let _unheard = writeln!(std::io::stderr(), "skipped: a cgroup of our own needs root ({error})");
                None
            }
        }
    }

    /// Runs a shell command inside the cgroup.
    pub(super) fn run(&self, script: &str) -> Child {
        let child = Command::new("sh").args(["-c", &format!("read go; {script}")]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        self.0.join(child.id()).unwrap();
        std::io::Write::write_all(&mut child.stdin.as_ref().unwrap(), b"go\n").unwrap();
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Processes that a failed test left running hold the output open, for which its reader
        // waits.
        for _ in 0..200 {
            if matches!(self.0.kill_once(), Ok(true)) && matches!(self.0.remove_once(), Ok(true)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for dir in self.0.paths() {
            let _ = fs::remove_dir(dir.parent().unwrap());
        }
    }
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_cgroup_is_made_frozen_killed_and_removed() {
    for scratch in Scratch::of_each_version("life") {
        live(&scratch);
    }
}

fn live(scratch: &Scratch) {
    let cgroup = &scratch.0;
    cgroup.create().unwrap();
    assert!(cgroup.exists());
    assert!(cgroup.pids(true).unwrap().is_empty());

    // It leaves a child behind that ignores signals.
    let mut child = scratch.run("trap '' TERM HUP; sleep 100 & sleep 100");
    while cgroup.pids(true).unwrap().len() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(cgroup.pids(false).unwrap().contains(&child.id()));
    let machines = Cgroup::of_process(child.id()).unwrap();
    if std::mem::discriminant(&machines) == std::mem::discriminant(&**cgroup) {
        assert_eq!(machines.paths(), cgroup.paths());
    }

    block_on(async {
        cgroup.freeze(SOON).await.unwrap();
        assert!(cgroup.is_frozen().unwrap());
        cgroup.thaw().unwrap();
        cgroup.thaw().unwrap();
        assert!(!cgroup.is_frozen().unwrap());

        let busy = cgroup.remove(Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(busy.code(), Code::DeadlineExceeded, "{busy}");
        let reaped = std::thread::spawn(move || child.wait().unwrap());
        cgroup.kill_all(SOON).await.unwrap();
        assert!(!reaped.join().unwrap().success());

        for dir in cgroup.paths() {
            fs::create_dir_all(dir.join("below/deeper")).unwrap();
        }
        cgroup.remove(SOON).await.unwrap();
        assert!(!cgroup.exists());
        cgroup.remove(SOON).await.unwrap();
        cgroup.kill_all(SOON).await.unwrap();
        assert!(cgroup.pids(true).unwrap().is_empty());
    });
}

#[test]
fn a_limit_is_read_as_it_was_written() {
    for scratch in Scratch::of_each_version("limit") {
        assert_eq!(scratch.0.memory_limit(), None);
        // On a hybrid system v2 has no controllers.
        let files = [("memory.limit_in_bytes", true), ("memory.max", false)].map(|(file, v1)| {
            let dir = scratch.0.controller_dir("memory").map(|dir| dir.join(file));
            dir.filter(|path| path.exists() && v1 == matches!(*scratch.0, Cgroup::V1 { .. }))
        });
        let Some(file) = files.into_iter().flatten().next() else { continue };
        fs::write(file, "67108864").unwrap();
        assert_eq!(scratch.0.memory_limit(), Some(64 << 20));
    }
}

#[test]
fn memory_in_use_is_counted() {
    for scratch in Scratch::of_each_version("used") {
        // On a hybrid system v2 has no controllers.
        let Some(before) = scratch.0.working_set() else { continue };
        let mut child = scratch.run("text=$(head -c 8388608 /dev/zero | tr '\\0' x); read never");
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while scratch.0.working_set().unwrap() < before + (8 << 20) {
            assert!(std::time::Instant::now() < end && child.try_wait().unwrap().is_none(), "{:?}", scratch.0.working_set());
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn fork_bombs_are_killed() {
    for scratch in Scratch::of_each_version("forks") {
        let mut child = scratch.run("while :; do sleep 0.01 & sleep 100 & sleep 0.001; done");
        std::thread::sleep(Duration::from_millis(100));
        let reaped = std::thread::spawn(move || child.wait().unwrap());
        block_on(async {
            scratch.0.kill_all(SOON).await.unwrap();
            scratch.0.remove(SOON).await.unwrap();
        });
        reaped.join().unwrap();
    }
}

#[test]
fn a_frozen_cgroup_can_be_killed() {
    for scratch in Scratch::of_each_version("paused") {
        let mut child = scratch.run("sleep 100");
        block_on(scratch.0.freeze(SOON)).unwrap();
        let reaped = std::thread::spawn(move || child.wait().unwrap());
        block_on(scratch.0.kill_all(SOON)).unwrap();
        reaped.join().unwrap();
    }
}

#[test]
fn the_root_cgroup_is_not_killed_or_removed() {
    let root = OwnedCgroup::made(Cgroup::at("/").unwrap());
    assert!(root.exists());
    for result in [root.kill_once(), root.signal(9).map(|()| false)] {
        assert_eq!(result.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert!(root.remove_once().unwrap());
    assert!(root.exists(), "the root is not removed");
    assert!(root.thaw().is_err());
    assert!(block_on(root.freeze(SOON)).is_err());
}

#[test]
fn a_cgroup_with_processes_cannot_be_claimed() {
    let Some(scratch) = Scratch::make("claim") else { return };
    let path = format!("/magnetar-test-{}-claim/inner", std::process::id());
    assert_eq!(OwnedCgroup::claim(&path).unwrap(), scratch.0, "an empty cgroup can be claimed");
    // One process: a shell's children would take more time to end.
    let mut child = scratch.run("exec sleep 100");
    let error = OwnedCgroup::claim(&path).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.to_string().contains(&child.id().to_string()), "{error}");
    scratch.0.signal(libc::SIGTERM as u32).unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(scratch.0.signal(4711).map_err(|error| error.code()), Ok(()), "no process is left to signal");
}

#[test]
fn a_cgroup_is_found_by_its_name() {
    let name = format!("{:064}", std::process::id());
    let cgroup = Cgroup::at(&format!("/magnetar-test-{}-find/test-{name}.scope", std::process::id())).unwrap();
    let Some(scratch) = Scratch::of(cgroup) else { return };
    assert_eq!(OwnedCgroup::find(&name).unwrap(), vec![scratch.0.clone()]);
    assert!(OwnedCgroup::find(&"7".repeat(64)).unwrap().is_empty());
}

#[test]
fn a_cgroup_that_does_not_exist_is_empty() {
    let nowhere = OwnedCgroup::claim("/magnetar-test-nowhere/at/all").unwrap();
    assert!(!nowhere.exists());
    assert!(nowhere.pids(true).unwrap().is_empty());
    assert_eq!(nowhere.join(std::process::id()).unwrap_err().code(), Code::NotFound);
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    assert_eq!(Cgroup::at("/").unwrap().join(gone.id()).unwrap_err().code(), Code::NotFound);
    assert!(nowhere.kill_once().unwrap() && nowhere.remove_once().unwrap());
    assert_eq!(block_on(nowhere.freeze(SOON)).unwrap_err().code(), Code::NotFound);
}

#[test]
fn the_cgroup_of_an_ended_process_is_not_found() {
    assert_eq!(Cgroup::of_process(u32::MAX).unwrap_err().code(), Code::NotFound);
    Cgroup::of_process(std::process::id()).unwrap();
}

#[test]
fn a_cgroup_survives_serialization() {
    let cgroup = Cgroup::at("/k8s.io/x").unwrap();
    assert_eq!(serde_json::from_str::<Cgroup>(&serde_json::to_string(&cgroup).unwrap()).unwrap(), cgroup);
}
