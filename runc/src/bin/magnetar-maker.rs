// SPDX-License-Identifier: Apache-2.0
//! magnetar-maker: makes one container, or one process in it, for magnetar-runc, and ends.
//!
//! A program of its own so that the sandbox process, of which there are as many as pods, does not
//! carry libcontainer: see `magnetar_core::runtime::libcontainer`.

use magnetar_core::runtime::libcontainer::{Native, run_if_asked};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    run_if_asked(Native).unwrap_or_else(|| {
        let _unheard = writeln!(std::io::stderr(), "magnetar-maker: this program is started by magnetar-runc");
        ExitCode::FAILURE
    })
}
