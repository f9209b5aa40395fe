// SPDX-License-Identifier: Apache-2.0
//! Makes a process that aborts say why, and end.
//!
//! A C++ library calls abort(3) when an allocation fails. Process 1 of a PID namespace does not end
//! that way: the kernel does not kill it by a signal that it sent to itself.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

/// What a process writes before it ends, where, and its exit code.
pub(crate) struct Last {
    pub(crate) text: String,
    pub(crate) files: Vec<OwnedFd>,
    pub(crate) code: i32,
}

impl Last {
    /// Ends the process. Makes only system calls, on values prepared before, as signal-safety(7)
    /// requires.
    pub(crate) fn end(&self) -> ! {
        let write = |file: RawFd| {
            // SAFETY: the text lives as long as the process.
            unsafe { libc::write(file, self.text.as_ptr().cast(), self.text.len()) };
        };
        write(libc::STDERR_FILENO);
        self.files.iter().map(AsRawFd::as_raw_fd).for_each(write);
        // SAFETY: it ends the process at once.
        unsafe { libc::_exit(self.code) }
    }
}

static LAST: OnceLock<Last> = OnceLock::new();

/// From now on, if this process aborts, it writes `text` to its standard error and to `files`, and
/// exits with `code`. Only the first call in a process sets these.
///
/// # Errors
/// The kernel's error of sigaction(2).
pub fn explain(text: String, files: Vec<OwnedFd>, code: i32) -> io::Result<()> {
    LAST.get_or_init(|| Last { text, files, code });
    // SAFETY: a `sigaction` of zeros is a valid one: no flags, no signal in its mask.
    let mut action = unsafe { std::mem::zeroed::<libc::sigaction>() };
    action.sa_sigaction = on_abort as *const () as usize;
    // SAFETY: the structure lives through the call, and the handler does only what handlers may
    // (below).
    let set = unsafe { libc::sigaction(libc::SIGABRT, &action, std::ptr::null_mut()) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

extern "C" fn on_abort(_: libc::c_int) {
    if let Some(last) = LAST.get() {
        last.end();
    }
}
