// SPDX-License-Identifier: Apache-2.0
//! Forks a process that has one thread, and resets what a child must not inherit before it runs
//! another program.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Forks and runs `child` in the new process, which exits with the code that `child` returns.
/// Returns the new process's id as the caller sees it.
///
/// The calling process must have one thread. In the copy of any other, locks that another thread
/// held stay locked for ever.
///
/// # Errors
/// The kernel's error, for example `EAGAIN` when the cgroup or the user has reached its limit of
/// processes.
pub fn spawn(child: impl FnOnce() -> i32) -> io::Result<u32> {
    // SAFETY: the process has one thread (contract), so the child may do whatever its parent could.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = child();
            // SAFETY: `_exit` ends the process without running what the parent has registered.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid as u32),
    }
}

/// Like [`spawn`], but the new process is a sibling of the caller: the caller's parent waits for
/// it. It is in the PID namespace in which the caller makes its children.
///
/// The contract is that of [`spawn`].
///
/// # Errors
/// The kernel's error.
pub fn sibling(child: impl FnOnce() -> i32) -> io::Result<u32> {
    let mut args: [u64; 8] = [0; 8];
    args[0] = libc::CLONE_PARENT as u64;
    // SAFETY: `args` is a `clone_args` of the first published size (64 bytes, linux/sched.h) with
    // no pointers in it; without CLONE_VM this is a fork, and the process has one thread
    // (contract).
    match unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) } {
        ..0 => Err(io::Error::last_os_error()),
        0 => {
            let code = child();
            // SAFETY: `_exit` ends the process without running what the parent has registered.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid as u32),
    }
}

/// Gives every signal its default action. Rust ignores SIGPIPE from the start, ignored signals stay
/// ignored over `execve`, and a program that ignores SIGPIPE does not end with its reader.
pub fn default_signals() {
    // System calls, because the C library refuses to set the two signals that it reserves for
    // itself. A parent may have ignored those as well.
    let default = [0u64; 4];
    for signal in 1..=64_i64 {
        // SAFETY: the kernel's own form of `sigaction`, all zeroes: the default action, no flags,
        // nothing blocked. It runs no code of ours. SIGKILL and SIGSTOP are refused without effect.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), size_of::<u64>()) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is read.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Closes every descriptor of the process but standard input, output and error, and `keep`.
///
/// After this call, values that own a closed descriptor must not be used. So call it only in a
/// process that never returns to earlier code: a child made by [`spawn`], or a process that becomes
/// a container's program without `execve`.
pub fn keep_only(keep: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.into_iter().map(Some).chain([None]) {
        let before = last.map_or(u32::MAX, |fd| fd.saturating_sub(1));
        if first <= before {
            // SAFETY: closes descriptors that nothing uses any more (contract). A kernel without
            // the call (before 5.9) closes none, and the process holds them until it ends.
            unsafe { libc::syscall(libc::SYS_close_range, first, before, 0) };
        }
        first = last.map_or(u32::MAX, |fd| fd.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn a_copy_keeps_only_the_named_descriptors() {
        let (mut kept, pipe) = std::io::pipe().unwrap();
        let (mut lost, other) = std::io::pipe().unwrap();
        // Other threads of the test runner do not matter to what this copy does.
        let pid = spawn(|| {
            keep_only(&[pipe.as_fd()]);
            let is_open = |fd: BorrowedFd<'_>| rustix::io::fcntl_getfd(fd).is_ok();
            i32::from(!is_open(pipe.as_fd()) || is_open(other.as_fd()))
        })
        .unwrap();
        drop((pipe, other));
        let status = rustix::process::waitpid(rustix::process::Pid::from_raw(pid as i32), rustix::process::WaitOptions::empty());
        assert_eq!(status.unwrap().unwrap().1.exit_status(), Some(0));
        let mut byte = [0];
        assert_eq!((kept.read(&mut byte).unwrap(), lost.read(&mut byte).unwrap()), (0, 0));
    }
}
