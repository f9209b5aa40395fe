// SPDX-License-Identifier: Apache-2.0
//! A double of Cloud Hypervisor for nodes without KVM: takes its command line, answers its API, and
//! boots the guest in QEMU's emulation. So the driver in magnetar-vmm is tested everywhere.
//!
//! ```text
//! magnetar-vmm ── command line, API, events ──> this program ──> QEMU (emulation)
//!              ── CONNECT <port> ──────────────────────────────> vhost-device-vsock
//! ```
//!
//! What it cannot show: Cloud Hypervisor's own devices, seccomp filter and Landlock rules, KVM, a
//! machine that grows, and whether the options mean to Cloud Hypervisor what they mean here. Tests
//! with the real program show that, in the virtual machine that is a node (`tests/run clh`).
//!
//! `CLH_DOUBLE` in the kernel's command line makes it misbehave: see `Fault`.

mod api;
mod disks;
mod machine;
mod options;

use disks::Disks;
use options::Options;
use std::io::Write;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

/// What it does wrong, by a word of the kernel's command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `clh_double=old`: it says that it is version 38.
    Old,
    /// `clh_double=rubbish`: it answers with no HTTP.
    Rubbish,
    /// `clh_double=silent`: it answers nothing.
    Silent,
    /// `clh_double=stalls`: it says its version, and answers nothing else.
    Stalls,
    /// `clh_double=late`: it answers after three seconds.
    Late,
    /// `clh_double=fails`: each answer is an error.
    Fails,
    /// `clh_double=endless`: it begins an answer that does not end.
    Endless,
}

impl Fault {
    fn of(parameters: &str) -> Option<Self> {
        parameters.split_ascii_whitespace().find_map(|word| match word.strip_prefix("clh_double=")? {
            "old" => Some(Self::Old),
            "rubbish" => Some(Self::Rubbish),
            "silent" => Some(Self::Silent),
            "stalls" => Some(Self::Stalls),
            "late" => Some(Self::Late),
            "fails" => Some(Self::Fails),
            "endless" => Some(Self::Endless),
            _ => None,
        })
    }
}

/// Cloud Hypervisor's events, in its form: an object and an empty line.
#[derive(Clone)]
pub struct Events(Arc<Mutex<ChildStdin>>);

impl Events {
    fn report(&self, event: &str) -> std::io::Result<()> {
        let text = serde_json::json!({ "timestamp": { "secs": 0, "nanos": 0 }, "source": "vm", "event": event, "properties": null });
        let mut file = self.0.lock().map_err(|_| std::io::Error::other("a thread has panicked"))?;
        write!(file, "{text:#}\n\n")
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("clh-double: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> std::io::Result<bool> {
    let options = Options::parse(std::env::args().skip(1)).map_err(std::io::Error::other)?;
    let fault = Fault::of(&options.parameters);
    // An inherited descriptor cannot be used without unsafe code, nor opened once more: it is
    // root's. A program that inherits it can write to it.
    let mut writer = Command::new("/bin/sh");
    writer.args(["-c".to_owned(), format!("exec cat >&{}", options.events)]);
    let writer = writer.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?.stdin;
    let events = Events(Arc::new(Mutex::new(writer.ok_or(std::io::Error::other("a program has no input"))?)));
    events.report("booting")?;
    if options.api != 3 {
        return Err(std::io::Error::other("the API's socket must be descriptor 3"));
    }
    let listener = magnetar_sys::listener::inherit()?;
    let disks = Disks::new(options.monitor("disks")?);
    std::thread::spawn(move || api::serve(&listener, fault, disks));
    machine::run(&options, &events)
}
