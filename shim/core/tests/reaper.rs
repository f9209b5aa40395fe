// SPDX-License-Identifier: Apache-2.0
//! The reaper reaps every child of its process, so it is tested in a process of its own.

#![allow(clippy::unwrap_used, reason = "tests")]

use magnetar_core::reaper::Reaper;
use std::process::Command;
use std::time::Duration;

#[tokio::test(flavor = "current_thread")]
async fn an_exit_is_received_whether_watched_before_or_after_it() {
    let (reaper, run) = Reaper::start().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(run);

    let early = Command::new("true").spawn().unwrap().id();
    // Reaped before it is watched: the exit must be kept.
    let reaped = async {
        while std::path::Path::new(&format!("/proc/{early}")).exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reaped).await.unwrap();
    assert_eq!(reaper.watch(early).await.unwrap().code, 0);

    let late = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap().id();
    assert_eq!(reaper.watch(late).await.unwrap().code, 7);
    let killed = Command::new("sh").args(["-c", "kill -9 $$"]).spawn().unwrap().id();
    assert_eq!(reaper.watch(killed).await.unwrap().code, 137);
    assert!(reaper.watch(1).await.is_err(), "not a child");
}
