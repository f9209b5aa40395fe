// SPDX-License-Identifier: Apache-2.0
//! Streams of processes, and the console.

use crate::boot::Result;
use crate::mode::Mode;
use crate::{Guest, wire};
use magnetar_vm_agent_api::chunk::LONGEST;
use magnetar_vm_agent_api::{StreamKind, StreamName};
use std::fs::File;
use std::io::Write;
use std::thread;

/// Kinds of chunks (magnetar_vm_agent_api::chunk).
const DATA: u8 = 0;
const END: u8 = 1;

/// A process says nothing, or all that it can.
pub fn carry(guest: &Guest, name: &StreamName, mut host: File) -> Result<()> {
    match (guest.mode, name.kind) {
        (Mode::Floods, StreamKind::Stdout) => flood(host),
        // An end, and then more of it.
        (Mode::Lies, StreamKind::Stdout) => {
            host.write_all(&[DATA, 0, 4, b'l', b'i', b'e', b'\n', END, 0, 0, DATA, 0, 1, b'!', END, 0, 0])?;
            wait(host)
        }
        // What nobody has sent is said to have been taken.
        (Mode::Lies, StreamKind::Stdin | StreamKind::Stderr) => {
            host.write_all(&[2, 255, 255])?;
            wait(host)
        }
        (_, StreamKind::Stdout | StreamKind::Stderr) => {
            host.write_all(&[END, 0, 0])?;
            wait(host)
        }
        (_, StreamKind::Stdin) => wait(host),
    }
}

/// Chunk after chunk, whatever the window.
pub fn flood(mut host: File) -> Result<()> {
    let [high, low] = (LONGEST as u16).to_be_bytes();
    let chunk = [&[DATA, high, low][..], &[b'x'; LONGEST]].concat();
    wire::endlessly(&mut host, &chunk)
}

/// Until the host closes it.
fn wait(mut host: File) -> Result<()> {
    Ok(std::io::copy(&mut host, &mut std::io::sink()).map(drop)?)
}

/// Lines, bytes that are no text, and what the host looks for there.
pub fn flood_console() {
    let Ok(mut console) = File::options().write(true).open("/dev/console") else { return };
    let words = [&b"Kernel panic - not syncing: not so\n"[..], b"\x1b[2J\xff\xfe\0", &[b'y'; 4000]].concat();
    while console.write_all(&words).is_ok() {
        thread::yield_now();
    }
}
