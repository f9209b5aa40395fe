// SPDX-License-Identifier: Apache-2.0
//! Programs within their bounds, seen by a shell that runs in them.

use super::*;
use std::io::Read;
use std::process::Stdio;

/// The output of a shell that runs within these bounds.
fn output_within(bounds: Bounds, script: &str) -> String {
    let mut command = Command::new("/bin/sh");
    bind(command.args(["-c", script]).stdout(Stdio::piped()), bounds).unwrap();
    let mut child = command.spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    text
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_bound_program_dies_with_the_thread_that_ran_it() {
    for user in [None, root().then_some(2_000_000_001)] {
        let mut child = std::thread::spawn(move || {
            let mut command = Command::new("/bin/sh");
            let script = "grep NoNewPrivs /proc/self/status; exec sleep 1000";
            bind(command.args(["-c", script]).stdout(Stdio::piped()), Bounds { user, ..Bounds::default() }).unwrap();
            let mut child = command.spawn().unwrap();
            let mut line = [0; 14];
            child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
            assert_eq!(&line, b"NoNewPrivs:\t1\n");
            child
        })
        .join()
        .unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }
}

#[test]
fn another_user_has_no_capabilities_and_can_get_none() {
    if !root() {
        return eprintln!("skipped: another_user_has_no_capabilities_and_can_get_none: only root can become somebody else");
    }
    let bounds = Bounds { user: Some(2_000_000_001), capabilities: CapabilitySet::NONE, ..Bounds::default() };
    let text = output_within(bounds, "id -u; id -G; grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status");
    let none = "0000000000000000";
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..2], ["2000000001", "2000000001"]);
    assert_eq!(lines.len(), 7);
    assert!(lines[2..].iter().all(|line| line.ends_with(none)), "{text}");
}

#[test]
fn root_keeps_the_capabilities_that_are_named() {
    if !root() {
        return eprintln!("skipped: root_keeps_the_capabilities_that_are_named: only root has any");
    }
    let bounds = Bounds { capabilities: CapabilitySet::of(&[18]), ..Bounds::default() };
    let text = output_within(bounds, "grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status");
    assert_eq!(text, "CapPrm:\t0000000000040000\nCapEff:\t0000000000040000\nCapBnd:\t0000000000040000\n");
}

#[test]
fn a_program_spawned_alone_is_process_1() {
    if !root() {
        return eprintln!("skipped: a_program_spawned_alone_is_process_1: only root can make a PID namespace");
    }
    // On a thread of its own, so that no other test's child is in there.
    let (alone, after) = std::thread::spawn(|| {
        let mut command = Command::new("/bin/sh");
        bind(command.args(["-c", "echo $$"]).stdout(Stdio::piped()), Bounds::default()).unwrap();
        let alone = spawn_alone(&mut command).unwrap().wait_with_output().unwrap();
        (alone, Command::new("/bin/sh").args(["-c", "echo $$"]).output().unwrap())
    })
    .join()
    .unwrap();
    assert_eq!(alone.stdout, b"1\n");
    assert_ne!(after.stdout, b"1\n", "children are made where they were before");
}

#[test]
fn a_program_finds_only_the_devices_of_its_own_mount() {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    if !root() {
        return eprintln!("skipped: a_program_finds_only_the_devices_of_its_own_mount: only root can mount");
    }
    let config = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_create(&config).unwrap();
    let devices = fsmount(&config, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    rustix::fs::openat(&devices, c"marker", OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR).unwrap();
    let text = output_within(Bounds { devices: Some(devices), ..Bounds::default() }, "ls /dev");
    assert_eq!(text, "marker\n");
    assert!(!std::path::Path::new("/dev/marker").exists(), "the host's /dev is as it was");
}

#[test]
fn a_filter_is_in_force_from_the_first_instruction_on() {
    // The filter allows everything; /proc shows that it is installed.
    let allow = FilterInstruction { code: 0x06, jump_true: 0, jump_false: 0, operand: 0x7fff_0000 };
    let text = output_within(Bounds { filters: vec![vec![allow]], ..Bounds::default() }, "grep Seccomp: /proc/self/status");
    assert_eq!(text, "Seccomp:\t2\n");
}
