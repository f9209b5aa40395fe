// SPDX-License-Identifier: Apache-2.0
//! A process that does nothing but hold namespaces that its parent cannot be in.
//!
//! Two kinds of pod need one: a pod that shares its PID namespace needs a process 1 that reaps, and
//! a pod with a user namespace needs its namespaces to be owned by it. The holder is forked, not
//! executed, so it shares the pages of the sandbox process; it dies with its parent.

use rustix::process::{Pid, Signal};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// How [`spawn`] failed.
#[derive(Debug)]
pub enum HolderError {
    /// Pipe, fork or clone.
    Fork(io::Error),
    /// What `prepare` said, in the child.
    Prepare(String),
}

/// Forks a holder. `prepare` runs in the child and enters or makes the namespaces; where
/// `new_pid_namespace` is set, the holder becomes process 1 of a new one made after that.
///
/// Returns the holder's process id as the caller sees it. The holder is a child of the caller and
/// is killed by the kernel when the calling thread ends.
///
/// # Errors
/// [`HolderError`]; then no process is left.
///
/// Must be called while the process has one thread.
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
                let pid = Pid::from_raw(child);
                if let Some(pid) = pid {
                    let _ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                }
            }
            outcome
        }
    }
}

fn parse_report(report: &str) -> Result<u32, HolderError> {
    match report.strip_prefix("pid ").and_then(|pid| pid.parse().ok()) {
        Some(pid) => Ok(pid),
        None if report.is_empty() => Err(HolderError::Prepare("the child ended without a word".into())),
        None => Err(HolderError::Prepare(report.into())),
    }
}

fn child(writer: OwnedFd, new_pid_namespace: bool, prepare: impl FnOnce() -> Result<(), String>) -> ! {
    if let Err(message) = prepare() {
        report(&writer, &message);
        exit(1);
    }
    if !new_pid_namespace {
        report(&writer, &format!("pid {}", std::process::id()));
        hold();
    }
    match clone_sibling_in_new_pid_namespace() {
        Err(e) => {
            report(&writer, &format!("cannot make a PID namespace: {e}"));
            exit(1);
        }
        Ok(0) => hold(),
        Ok(pid) => {
            report(&writer, &format!("pid {pid}"));
            exit(0);
        }
    }
}

/// The new process is a child of our parent, not ours: the parent can wait for it, and its death
/// signal follows the parent and not this short-lived process.
fn clone_sibling_in_new_pid_namespace() -> io::Result<libc::pid_t> {
    let flags = (libc::CLONE_PARENT | libc::CLONE_NEWPID) as u64;
    let mut args: [u64; 8] = [0; 8];
    args[0] = flags;
    // SAFETY: `args` is a `clone_args` of the first published size (64 bytes, linux/sched.h) with no
    // pointers in it; without CLONE_VM this is a fork, and this process has one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as libc::pid_t) }
}

fn report(writer: &OwnedFd, text: &str) {
    // A parent that is gone reads nothing; the death signal ends us.
    let _unread = writer.as_fd().try_clone_to_owned().map(std::fs::File::from).and_then(|mut file| file.write_all(text.as_bytes()));
}

fn exit(code: i32) -> ! {
    // SAFETY: `_exit` ends the process without running what the parent has registered.
    unsafe { libc::_exit(code) }
}

/// Reaps whatever is handed to process 1, for ever. Owns no descriptor: neither the pod's lock nor
/// a socket may live on in here.
fn hold() -> ! {
    let _dies_with_parent = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let _named = rustix::thread::set_name(c"magnetar-holder");
    // SAFETY: closes every descriptor of this process, which from here on uses none; the owners in
    // this copy of the parent's memory never run again.
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
