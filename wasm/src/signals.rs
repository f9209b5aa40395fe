// SPDX-License-Identifier: Apache-2.0
//! Ends a module on signals, whatever it is doing.
//!
//! The kernel ignores signals to a process 1 without a handler for them, and a module cannot have
//! handlers. So a thread waits for the signals that stop containers, and ends the process as the
//! signal would have. Whoever serves clients can first end that in order.

use magnetar_core::error::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::sync::{Mutex, PoisonError};
use tokio::sync::oneshot;

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
    let wait = move || {
        loop {
            match signals.wait() {
                Ok(signal) if IN_ORDER.contains(&signal) && is_ended_in_order() => {}
                // The exit code of a shell for a signal, which containerd also reports for a native
                // program.
                Ok(signal) => std::process::exit(128 + signal as i32),
                // It fails only for an invalid set.
                Err(error) => std::process::exit(error as i32),
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(wait).map(drop).context(what)
}

/// The signals that ask for an end in order. An image may name either to be stopped by
/// (`STOPSIGNAL`).
const IN_ORDER: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// Who is told of the first of them.
static STOP: Mutex<Option<oneshot::Sender<()>>> = Mutex::new(None);

/// Waits for a signal that asks for an end in order. The process then does not end by itself, but
/// by any further signal. Of several calls only the last one is told.
#[cfg_attr(not(feature = "wasmtime"), allow(dead_code, reason = "only that engine serves clients"))]
pub async fn stop_requested() {
    let (stop, requested) = oneshot::channel();
    *STOP.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop);
    if requested.await.is_err() {
        std::future::pending().await
    }
}

/// Tells whoever waits for it, if somebody does.
fn is_ended_in_order() -> bool {
    let stop = STOP.lock().unwrap_or_else(PoisonError::into_inner).take();
    stop.is_some_and(|stop| stop.send(()).is_ok())
}
