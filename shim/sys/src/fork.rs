// SPDX-License-Identifier: Apache-2.0
//! A copy of a process that has one thread, and what must be undone before a foreign program runs.

use std::io;

/// Forks; `child` runs in the copy, whose exit code it returns. Returns the copy's process id as the
/// caller sees it.
///
/// The calling process must have one thread: in the copy of any other, locks that another thread
/// held stay locked for ever.
///
/// # Errors
/// What the kernel says, as `EAGAIN` where the cgroup or the user has no process to spare.
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

/// Gives every signal its default action. Rust ignores SIGPIPE from the start, ignored signals stay
/// ignored over `execve`, and a program that ignores SIGPIPE does not end with its reader.
pub fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: sets a default action, which runs no code of ours; numbers that cannot be set
        // (SIGKILL, SIGSTOP, those of the C library) are refused without effect.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is read.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}
