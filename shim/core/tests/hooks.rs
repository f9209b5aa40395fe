// SPDX-License-Identifier: Apache-2.0
//! Tests hooks in a process of their own, because the reaper reaps all children of its process.

#![allow(clippy::unwrap_used, reason = "tests")]

use magnetar_core::error::Code;
use magnetar_core::hooks::{Hook, run};
use magnetar_core::reaper::Reaper;
use serde_json::json;
use std::os::fd::OwnedFd;

fn shell(script: &str, timeout: Option<u64>) -> Hook {
    Hook { path: "/bin/sh".into(), args: ["sh", "-c", script].map(String::from).into(), env: vec!["WORD=here".into()], timeout }
}

#[tokio::test(flavor = "current_thread")]
async fn hooks_get_state_and_environment_and_stop_at_the_first_failure() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: entering a network namespace needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("said");
    let (reaper, reap) = Reaper::start().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(reap);
    let network = OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap());
    let write = |script: &str| shell(&format!("{{ cat; echo \" $WORD {script}\"; }} >>{}", file.display()), None);
    let hooks = [write("one"), shell("echo so it is >&2; exit 7", None), write("two")];
    let failed = run(&hooks, &json!({"id": "c"}), &network, &reaper).await.unwrap_err();
    assert_eq!(failed.to_string(), "the hook /bin/sh: it ended with code 7: so it is");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"id\":\"c\"} here one\n");
    let late = run(&[shell("exec sleep 1000", Some(0))], &json!({}), &network, &reaper).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
}
