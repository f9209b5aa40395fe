// SPDX-License-Identifier: Apache-2.0
//! Tests logging programs in a process of their own, because the reaper reaps all children of its
//! process.

#![allow(clippy::unwrap_used, reason = "tests")]

use magnetar_core::logger::{LogProgram, Logged};
use magnetar_core::reaper::Reaper;
use std::fs::File;
use std::io::Write;

#[tokio::test(flavor = "current_thread")]
async fn a_logging_program_reads_both_outputs_and_gets_the_container_s_names() {
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let script = format!("exec 5>&-; {{ echo $CONTAINER_NAMESPACE/$CONTAINER_ID; cat <&3; cat <&4; }} >{}", said.display());
    // Percent-encoded, because a query gives some characters of the script a meaning of their own.
    let script: String = script.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let program = LogProgram::parse(&format!("binary:///bin/sh?-c={script}")).unwrap();
    let (reaper, reap) = Reaper::start().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(reap);
    let (logger, pipes) = program.start(Logged { id: "web", namespace: "default", reaper: &reaper }).await.unwrap();
    File::from(pipes.stdout).write_all(b"out\n").unwrap();
    File::from(pipes.stderr).write_all(b"err\n").unwrap();
    logger.finish().await;
    assert_eq!(std::fs::read_to_string(said).unwrap(), "default/web\nout\nerr\n");

    let error = LogProgram::parse("binary:///no/such").unwrap().start(Logged { id: "web", namespace: "n", reaper: &reaper }).await;
    assert!(error.unwrap_err().to_string().contains("/no/such"));
}
