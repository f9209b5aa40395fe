// SPDX-License-Identifier: Apache-2.0
//! containerd's Task API, as far as somebody has to pretend to have it.
//!
//! A message of ttrpc is its length and its stream in four bytes each, the largest first, its type
//! and flags in one each, and data (containerd's ttrpc, PROTOCOL.md). What is in requests and
//! answers is protobuf.

use crate::boot::Result;
use crate::events::exited;
use crate::mode::Mode;
use crate::{Guest, wire};
use std::fs::File;
use std::io::{Read, Write};

const RESPONSE: u8 = 2;

/// The data of messages of which there are many: with its head a message is one packet
/// (magnetar_vm_agent_api::chunk says why).
const FLOOD: usize = (16 << 10) - 10;

/// Answers calls on one connection.
pub fn serve(guest: &Guest, mut host: File) -> Result<()> {
    loop {
        let mut head = [0; 10];
        host.read_exact(&mut head)?;
        let [a, b, c, d, e, f, g, h, _kind, _flags] = head;
        let mut data = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
        host.read_exact(&mut data)?;
        let stream = u32::from_be_bytes([e, f, g, h]);
        let (method, request) = (text(&data, 2), bytes(&data, 3));
        println!("hostile: {method}");
        match guest.mode {
            Mode::TasksTooLong => {
                host.write_all(&message(u32::MAX, stream, &[]))?;
                return wire::endlessly(&mut host, &[0; 16 << 10]);
            }
            Mode::TasksTorn => return Ok(host.write_all(&message(100, stream, b"torn"))?),
            Mode::TasksMistyped => host.write_all(&message(400, stream, &[0xff; 400]))?,
            Mode::TasksSilent => {}
            Mode::TasksFlood => {
                let flood = message(FLOOD as u32, stream + 2, &[0; FLOOD]);
                return wire::endlessly(&mut host, &flood);
            }
            _ => {
                let answer = answer(guest, &method, &request);
                let answer = field(2, &answer);
                host.write_all(&message(answer.len() as u32, stream, &answer))?;
            }
        }
    }
}

/// What a good agent would answer, more or less.
fn answer(guest: &Guest, method: &str, request: &[u8]) -> Vec<u8> {
    let (container, exec) = (text(request, 1), text(request, 2));
    match method {
        "Create" => {
            guest.events.made(&container);
            number(1, 7)
        }
        "Start" => number(1, if guest.mode == Mode::Lies { u32::MAX.into() } else { 7 }),
        "Kill" => {
            guest.events.add(exited(&container, Some(exec.as_str()).filter(|exec| !exec.is_empty()), 137));
            Vec::new()
        }
        "Stats" => {
            // As the host wants its type, with what no decoder takes: a field without an end.
            let any = [field(1, b"io.containerd.cgroups.v2.Metrics"), field(2, &[0x0a, 0xff, 0xff, 0xff, 0x7f])].concat();
            field(1, &any)
        }
        _ => Vec::new(),
    }
}

fn message(length: u32, stream: u32, data: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[RESPONSE, 0], data].concat()
}

/// A field with bytes.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2][..], &varint(value.len() as u64), value].concat()
}

/// A field with a number.
fn number(of: u8, value: u64) -> Vec<u8> {
    [&[of << 3][..], &varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn text(message: &[u8], number: u64) -> String {
    String::from_utf8_lossy(&bytes(message, number)).into_owned()
}

/// The bytes of a field, or none. What the host says is well formed.
fn bytes(mut message: &[u8], number: u64) -> Vec<u8> {
    while let Some(tag) = take_varint(&mut message) {
        match tag & 7 {
            0 => drop(take_varint(&mut message)),
            2 => {
                let length = take_varint(&mut message).unwrap_or_default() as usize;
                let Some((value, rest)) = message.split_at_checked(length) else { break };
                if tag >> 3 == number {
                    return value.to_vec();
                }
                message = rest;
            }
            _ => break,
        }
    }
    Vec::new()
}

fn take_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
