// SPDX-License-Identifier: Apache-2.0
//! magnetar-maker: makes one container, or one process in it, for magnetar-runc, and ends.
//!
//! It is a program of its own, so that the sandbox processes, one per pod, do not contain
//! libcontainer: see `magnetar_core::runtime::libcontainer`.

use magnetar_core::runtime::libcontainer::{Native, run_if_asked};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    run_if_asked(Native).unwrap_or_else(|| {
        let _unheard = writeln!(std::io::stderr(), "magnetar-maker: this program is started by magnetar-runc");
        ExitCode::FAILURE
    })
}
