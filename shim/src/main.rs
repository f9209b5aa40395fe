// SPDX-License-Identifier: Apache-2.0
//! containerd-shim-magnetar-v2: starts the sandbox process of a pod, and cleans up after it.
//!
//! ```text
//!   containerd ──gRPC Controller──> serve           resident ──┐
//!   containerd ──exec─────────────> start, delete   short-lived ─┴─> launch ──fd 3──> magnetar-<kind>
//!   people ───────────────────────> check, pods
//! ```
//!
//! - [`launch`] makes a pod's directory, record, socket and process. Both fronts use it.
//! - [`serve`] is the resident front; [`shim_protocol`] is the front that containerd executes.
//! - [`options`] reads a handler's options; [`check`] tells people about this host, and
//!   [`pods`] about its pods.
//!
//! Deliberately absent: state. Everything about a pod is on disk or in the pod's own process, so
//! this program can be killed, upgraded and started again at any time.

mod check;
mod clean;
mod cli;
mod launch;
mod options;
mod pods;
mod serve;
mod shim_protocol;
mod stage;

use cli::{Invocation, People};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    magnetar_sys::memory::stay_small();
    let outcome = match cli::parse(std::env::args_os().skip(1).collect()) {
        Ok(Invocation::People(People::Serve(options))) => serve::run(options).map_err(anyhow::Error::from).map(|()| ExitCode::SUCCESS),
        Ok(Invocation::People(People::Check { json, libexec })) => check::run(json, libexec),
        Ok(Invocation::People(People::Pods { json, state_dir })) => pods::run(json, &state_dir),
        Ok(Invocation::Containerd(call)) => shim_protocol::run(call).map_err(anyhow::Error::from).map(|()| ExitCode::SUCCESS),
        Ok(Invocation::Text(text)) => cli::print(&text),
        Err(error) => Err(error),
    };
    outcome.unwrap_or_else(|error| {
        // containerd shows standard error to the client that asked for the pod. If it cannot be
        // written, the message is lost.
        let _unread = writeln!(std::io::stderr(), "containerd-shim-magnetar-v2: {error:#}");
        ExitCode::FAILURE
    })
}
