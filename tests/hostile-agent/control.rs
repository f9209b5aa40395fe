// SPDX-License-Identifier: Apache-2.0
//! Answers to requests.

use crate::boot::Result;
use crate::mode::Mode;
use crate::{Guest, wire};
use magnetar_vm_agent_api::{Answer, Request};
use rustix::system::RebootCommand;
use std::fs::File;
use std::io::Write;

/// Answers requests on one connection.
pub fn answer(guest: &Guest, mut host: File) -> Result<()> {
    if guest.mode == Mode::AnswerTwice {
        wire::write(&mut host, &Answer::Done)?;
    }
    loop {
        let request: Request = wire::read(&mut host)?;
        match (guest.mode, &request) {
            (Mode::AnswerEndless, _) => {
                host.write_all(&16_000_u32.to_be_bytes())?;
                return wire::drip(&mut host, b" ");
            }
            // Whether it lives is answered as it should be, or there would be nothing more to ask.
            (Mode::AnswerTooLong, Request::SetUp(_)) => {
                host.write_all(&u32::MAX.to_be_bytes())?;
                return wire::endlessly(&mut host, &[b' '; 16 << 10]);
            }
            (Mode::AnswerTorn, Request::SetUp(_)) => return Ok(host.write_all(b"\0\0\0\x10\"Do")?),
            (Mode::AnswerMistyped, Request::SetUp(_)) => wire::write(&mut host, &vec![Some(7)])?,
            (Mode::AnswerTwice, _) => {
                wire::write(&mut host, &Answer::Failed(format!("5 {}", "\u{1b}[31mno such thing ".repeat(500))))?;
                wire::write(&mut host, &Answer::Done)?;
            }
            (_, Request::SwitchOff) => {
                rustix::system::reboot(RebootCommand::PowerOff)?;
            }
            (_, _) => wire::write(&mut host, &Answer::Done)?,
        }
    }
}
