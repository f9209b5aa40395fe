// SPDX-License-Identifier: Apache-2.0
//! A guest that somebody else has taken over: process 1 of a real machine, in vm-agent's place,
//! that misuses the protocol.
//!
//! ```text
//! hostile=<mode> on the kernel's command line    what it does wrong (mode.rs)
//! main    boots as far as it must, takes the host's connections, a thread for each
//! control, tasks, streams, events                what it says on each
//! ```
//!
//! Where the mode does not say otherwise it pretends to be good: every request is done, every
//! container runs, and ends when it is killed. There are no containers.
//! tests/e2e/tests/e2e/hostile_guest.rs has the tests. The program is built with these, as a test
//! target without a harness, so that it is compiled with the same dependencies.
//!
//! Deliberately without tokio and ttrpc: those would keep it from saying what makes no sense.

mod boot;
mod control;
mod events;
mod mode;
mod streams;
mod tasks;
mod wire;

use boot::Result;
use events::Events;
use magnetar_vm_agent_api::{HELLO, Opened, Opening, PORT, Purpose, READY_PORT, VERSION, secret};
use mode::Mode;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, listen, socket};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// The host's address (vsock(7)).
const HOST: u32 = 2;

fn main() {
    if std::process::id() != 1 {
        println!("this program is process 1 of a guest, which tests/e2e/run makes of it");
        return;
    }
    if let Err(error) = serve() {
        // The kernel panics when process 1 ends, and shows the end of the console.
        println!("the hostile agent cannot go on: {error}");
    }
}

/// What all connections have in common.
pub struct Guest {
    /// What it does wrong.
    pub mode: Mode,
    /// What the host is told.
    pub events: Events,
}

fn serve() -> Result<()> {
    let line = boot::boot()?;
    let mode = Mode::of(&line)?;
    println!("hostile: {mode:?}");
    let guest = Arc::new(Guest { mode, events: Events::default() });
    let door = vsock()?;
    bind(door.as_raw_fd(), &VsockAddr::new(u32::MAX, PORT))?;
    listen(&door, Backlog::new(64)?)?;
    if line.split_ascii_whitespace().any(|word| word == HELLO) {
        let hello = vsock()?;
        connect(hello.as_raw_fd(), &VsockAddr::new(HOST, READY_PORT))?;
    }
    if mode == Mode::Floods {
        thread::spawn(streams::flood_console);
        thread::spawn(call_the_host);
    }
    loop {
        let connection = File::from(rustix::net::accept(&door)?);
        let guest = guest.clone();
        thread::spawn(move || {
            if let Err(error) = take(&guest, connection) {
                println!("hostile: a connection has ended: {error}");
            }
        });
    }
}

fn vsock() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

/// The one port of the host, again and again. It says hello once.
fn call_the_host() {
    loop {
        let _refused = vsock().and_then(|hello| Ok(connect(hello.as_raw_fd(), &VsockAddr::new(HOST, READY_PORT))?));
        thread::sleep(Duration::from_millis(5));
    }
}

/// One connection, from its first word to its end.
fn take(guest: &Guest, mut host: File) -> Result<()> {
    let opening: Opening = wire::read(&mut host)?;
    host.read_exact(&mut [0; secret::LENGTH])?;
    if guest.mode == Mode::OpenedWithNoise {
        let reason = "\u{1b}[2J\u{7}no\r\n".repeat(700);
        return wire::write(&mut host, &Opened::Refused { version: VERSION, reason });
    }
    wire::write(&mut host, &Opened::Ready)?;
    match opening.purpose {
        Purpose::Control => control::answer(guest, host),
        Purpose::Events => events::tell(guest, host),
        Purpose::Tasks => tasks::serve(guest, host),
        Purpose::Stream(name) => streams::carry(guest, &name, host),
        Purpose::Forward { port } => {
            println!("hostile: port {port}");
            streams::flood(host)
        }
    }
}
