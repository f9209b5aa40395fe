// SPDX-License-Identifier: Apache-2.0
//! Logging programs are children of the process that runs them, and the reaper reaps every one: so they are tested in a process of
//! their own.

#![allow(clippy::unwrap_used, reason = "tests")]

use magnetar_core::logger::{LogProgram, Logged};
use magnetar_core::reaper::Reaper;
use std::fs::File;
use std::io::Write;

#[tokio::test(flavor = "current_thread")]
async fn a_logging_program_reads_both_outputs_to_their_end_and_knows_whose_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let script = format!("exec 5>&-; {{ echo $CONTAINER_NAMESPACE/$CONTAINER_ID; cat <&3; cat <&4; }} >{}", said.display());
    // A query can say all of that: a space is a plus, and the signs that it uses itself are written by their numbers.
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
