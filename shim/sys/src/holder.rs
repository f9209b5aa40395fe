// SPDX-License-Identifier: Apache-2.0
//! The holder: a process that only holds namespaces that its parent cannot be in.
//!
//! Two kinds of pod need one. A pod that shares its PID namespace needs a process 1 that reaps. A
//! pod with a user namespace needs its other namespaces to be owned by that user namespace. The
//! holder is forked, not executed, so it shares the pages of the sandbox process. It dies with its
//! parent.
//!
//! The containers of a pod with a shared PID namespace see the holder as their process 1. A
//! container with CAP_SYS_PTRACE can trace it, and can enter its root through `/proc/1/root`. So
//! the holder has nothing of the host: its mount namespace has an empty, read-only root, it has no
//! capabilities and cannot get any, and it has no open descriptors.

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{DumpableBehavior, Pid, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// How [`spawn`] failed.
#[derive(Debug)]
pub enum HolderError {
    /// Making the pipe or the process failed.
    Fork(io::Error),
    /// `prepare`, or a later step in the child, failed with this message.
    Prepare(String),
}

/// Forks a holder. `prepare` runs in the child and enters or makes the namespaces. If
/// `new_pid_namespace` is set, the holder then becomes process 1 of a new PID namespace.
///
/// Returns the holder's process id as the caller sees it. The holder is a child of the caller, and
/// the kernel kills it when the calling thread ends.
///
/// The calling process must have one thread.
///
/// # Errors
/// [`HolderError`]; no process is left then.
pub fn spawn(new_pid_namespace: bool, prepare: impl FnOnce() -> Result<(), String>) -> Result<u32, HolderError> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| HolderError::Fork(e.into()))?;
    // SAFETY: the process has one thread (contract), so the child may do whatever its parent could.
    match unsafe { libc::fork() } {
        -1 => Err(HolderError::Fork(io::Error::last_os_error())),
        0 => {
            drop(reader);
            child(writer, new_pid_namespace, prepare)
        }
        child => {
            drop(writer);
            let mut report = String::new();
            let read = std::fs::File::from(reader).read_to_string(&mut report).map_err(HolderError::Fork);
            let outcome = read.and_then(|_| parse_report(&report));
            // The first child is the holder unless it forked again or failed; then it has ended.
            if outcome.as_ref().ok() != Some(&(child as u32)) {
                reap(child);
            }
            if outcome.is_err()
                && let Some(second) = pid_in(&report)
            {
                // The second process has failed as well, or waits without being needed.
                let _ended = Pid::from_raw(second).map(|pid| rustix::process::kill_process(pid, Signal::KILL));
                reap(second);
            }
            outcome
        }
    }
}

fn reap(child: i32) {
    if let Some(pid) = Pid::from_raw(child) {
        let _ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}

/// The line that the holder writes once it is complete. The line with its id may come before or
/// after it: the process that knows the id writes that.
const HOLDS: &str = "holds\n";

fn pid_in(report: &str) -> Option<i32> {
    report.lines().find_map(|line| line.strip_prefix("pid ")).and_then(|pid| pid.parse().ok())
}

fn parse_report(report: &str) -> Result<u32, HolderError> {
    match pid_in(report) {
        Some(pid) if report.contains(HOLDS) => Ok(pid as u32),
        _ => {
            let why: Vec<&str> = report.lines().filter(|line| !line.starts_with("pid ") && *line != HOLDS.trim_end()).collect();
            let silent = || "the process that was to hold the pod's namespaces ended without a reason".to_owned();
            Err(HolderError::Prepare(if why.is_empty() { silent() } else { why.join("; ") }))
        }
    }
}

fn child(writer: OwnedFd, new_pid_namespace: bool, prepare: impl FnOnce() -> Result<(), String>) -> ! {
    if let Err(message) = prepare().and_then(|()| leave_root().map_err(|e| format!("cannot leave the host's root: {e}"))) {
        report(&writer, &message);
        exit(1);
    }
    if !new_pid_namespace {
        report(&writer, &format!("pid {}\n", std::process::id()));
        hold(writer);
    }
    match clone_sibling_in_new_pid_namespace() {
        Err(e) => {
            report(&writer, &format!("cannot make a PID namespace: {e}"));
            exit(1);
        }
        Ok(0) => hold(writer),
        Ok(pid) => {
            report(&writer, &format!("pid {pid}\n"));
            exit(0);
        }
    }
}

/// Replaces the host's root by an empty, read-only one in a new mount namespace (pivot_root(2),
/// section "pivot_root(".", ".")").
fn leave_root() -> rustix::io::Result<()> {
    // SAFETY: only the mount namespace changes; descriptors stay as they are.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)? };
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // Any existing directory will do: nobody needs what the mount covers.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("none", "/proc", "tmpfs", flags, Some(c"size=4k,nr_inodes=2,mode=555"))?;
    rustix::process::chdir("/proc")?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    rustix::mount::mount_remount("/", flags | MountFlags::RDONLY, c"")
}

/// Drops every capability, and makes sure that this process can get none again.
fn give_up_capabilities() -> rustix::io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // This kernel does not know the capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Makes process 1 of a new PID namespace as a child of our parent, not of this process. So the
/// parent can wait for it, and its death signal follows the parent and not this short-lived
/// process.
fn clone_sibling_in_new_pid_namespace() -> io::Result<libc::pid_t> {
    let flags = (libc::CLONE_PARENT | libc::CLONE_NEWPID) as u64;
    let mut args: [u64; 8] = [0; 8];
    args[0] = flags;
    // SAFETY: `args` is a `clone_args` of the first published size (64 bytes, linux/sched.h) with
    // no pointers in it; without CLONE_VM this is a fork, and this process has one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as libc::pid_t) }
}

fn report(writer: &OwnedFd, text: &str) {
    // A write fails only when the parent is gone, and then the death signal ends this process.
    let _unread = writer.as_fd().try_clone_to_owned().map(std::fs::File::from).and_then(|mut file| file.write_all(text.as_bytes()));
}

fn exit(code: i32) -> ! {
    // SAFETY: `_exit` ends the process without running what the parent has registered.
    unsafe { libc::_exit(code) }
}

/// Reaps the orphans that the kernel gives to process 1, for ever. Closes all descriptors first:
/// neither the pod's lock nor a socket may stay open in here.
fn hold(writer: OwnedFd) -> ! {
    if let Err(e) = give_up_capabilities() {
        report(&writer, &format!("cannot give up capabilities: {e}"));
        exit(1);
    }
    report(&writer, HOLDS);
    let _dies_with_parent = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let _named = rustix::thread::set_name(c"magnetar-holder");
    // SAFETY: closes every descriptor of this process. It uses none from here on, and the values
    // that own them in this copy of the parent's memory are never used or dropped.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
    // SAFETY: the set is initialised by sigfillset before it is read.
    let set = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        set
    };
    loop {
        let mut signal = 0;
        // SAFETY: both pointers are to live locals.
        unsafe { libc::sigwait(&set, &mut signal) };
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_needs_an_id_and_the_holds_line() {
        for good in ["pid 7\nholds\n", "holds\npid 7\n"] {
            assert_eq!(parse_report(good).unwrap(), 7, "{good}");
        }
        for (bad, said) in
            [("", "without a reason"), ("pid 7\n", "without a reason"), ("pid 7\nno room", "no room"), ("no room", "no room")]
        {
            let HolderError::Prepare(message) = parse_report(bad).unwrap_err() else { panic!("{bad}") };
            assert!(message.contains(said), "{bad:?}: {message}");
        }
    }

    /// A container that may trace the holder finds nothing of the host in it.
    #[test]
    fn a_holder_has_nothing_of_the_host() {
        if !rustix::process::geteuid().is_root() {
            // Written past libtest's capture, so that the log shows that this test ran nothing.
            let _unheard = writeln!(std::io::stderr(), "skipped: namespaces need root");
            return;
        }
        for new_pid_namespace in [false, true] {
            // Other threads of the test runner do not matter to what this copy does; it dies with
            // this thread.
            let pid = spawn(new_pid_namespace, || Ok(())).unwrap();
            let proc = std::path::PathBuf::from(format!("/proc/{pid}"));
            let names = |dir: &str| std::fs::read_dir(proc.join(dir)).unwrap().count();
            assert_eq!((names("root/"), names("cwd/"), names("fd")), (0, 0, 0));
            let written = std::fs::write(proc.join("root/file"), "").unwrap_err();
            assert!([libc::EROFS, libc::EACCES].map(Some).contains(&written.raw_os_error()), "{written}");
            let status = std::fs::read_to_string(proc.join("status")).unwrap();
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{set} in {status}");
            }
            assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
            let mounts = std::fs::read_to_string(proc.join("mountinfo")).unwrap();
            assert_eq!(mounts.lines().count(), 1, "{mounts}");
            let pid = Pid::from_raw(pid as i32).unwrap();
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
            rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
        }
    }

    #[test]
    fn a_failed_preparation_leaves_no_process() {
        let HolderError::Prepare(message) = spawn(true, || Err("no such namespace".into())).unwrap_err() else { panic!("another error") };
        assert_eq!(message, "no such namespace");
    }
}
