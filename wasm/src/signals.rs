// SPDX-License-Identifier: Apache-2.0
//! Ends a module on signals, whatever it is doing.
//!
//! The kernel ignores signals to a process 1 without a handler for them, and a module cannot have
//! handlers. So a thread waits for the signals that stop containers, and ends the process as the
//! signal would have.

use magnetar_core::error::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// The signals by which containers are stopped. By default each of them ends a process.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// Starts the thread that ends the process. Call it before other threads exist, so that they
/// inherit the signal mask.
///
/// # Errors
/// When no thread can be started.
pub fn end_when_asked() -> Result<()> {
    let what = || "cannot wait for signals".to_string();
    let signals: SigSet = ENDING.into_iter().collect();
    signals.thread_block().context(what)?;
    let wait = move || match signals.wait() {
        // The exit code of a shell for a signal, which containerd also reports for a native
        // program.
        Ok(signal) => std::process::exit(128 + signal as i32),
        // It fails only for an invalid set.
        Err(error) => std::process::exit(error as i32),
    };
    std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(wait).map(drop).context(what)
}
