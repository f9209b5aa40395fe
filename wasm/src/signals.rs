// SPDX-License-Identifier: Apache-2.0
//! Signals end a module, whatever it is doing.
//!
//! The kernel ignores signals to a process 1 that has no handler for them, and a module cannot have one. So a thread takes
//! those by which containers are stopped, and ends the process as the signal would have.

use magnetar_core::error::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// Those that end a process which does not handle them, and by which people stop containers.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// Ends the process when it is asked to. Call it before other threads exist: they inherit that the signals are not theirs.
///
/// # Errors
/// Where there can be no further thread.
pub fn end_when_asked() -> Result<()> {
    let what = || "cannot wait for signals".to_string();
    let signals: SigSet = ENDING.into_iter().collect();
    signals.thread_block().context(what)?;
    let wait = move || match signals.wait() {
        // A shell's way to tell that it was a signal, and what containerd reports for a native program.
        Ok(signal) => std::process::exit(128 + signal as i32),
        // It fails only for a set that is none.
        Err(error) => std::process::exit(error as i32),
    };
    std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(wait).map(drop).context(what)
}
