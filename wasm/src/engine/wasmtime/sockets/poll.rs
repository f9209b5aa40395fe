// SPDX-License-Identifier: Apache-2.0
//! `poll_oneoff` where a socket is among the subscriptions; without one, Wasmtime answers.
//!
//! ```text
//! sockets and clocks             poll(2) with a timeout: what servers do
//! with other descriptors, too    those by Wasmtime's poll_oneoff, in memory of ours;
//!                                whichever is first of it, an epoll of the sockets, and the clocks
//! ```
//!
//! Other descriptors are left to Wasmtime although they have descriptors of this process behind
//! them: what was typed may be in its buffer of standard input already, where poll(2) does not see
//! it.

use super::errno::{Errno, Result};
use super::memory::{Memory, u16_at, u32_at, u64_at};
use super::table::Sockets;
use magnetar_sys::readiness::watch;
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::io::retry_on_intr;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use wasmtime_wasi::p1::{WasiP1Ctx, wasi_snapshot_preview1 as preview1};
use wiggle::GuestMemory;

/// The most subscriptions of a call with sockets: more than a process usually has descriptors.
const MOST: u32 = 1 << 16;

/// The sizes of WASI's `subscription` and `event`.
const SUBSCRIPTION: usize = 48;
const EVENT: usize = 32;

/// `eventtype`
const CLOCK: u8 = 0;
const FD_READ: u8 = 1;
const FD_WRITE: u8 = 2;

/// `clockid`
const REALTIME: u32 = 0;
const MONOTONIC: u32 = 1;

/// `subclockflags`: the time is not from now on.
const ABSOLUTE: u16 = 1;

/// `eventrwflags`: the other side has closed the connection.
const HANGUP: u16 = 1;

/// The arguments.
#[derive(Debug, Clone, Copy)]
pub struct Poll {
    /// Where the subscriptions are.
    pub subscriptions: u32,
    /// Where the events go. There is room for as many as there are subscriptions.
    pub events: u32,
    /// How many subscriptions there are.
    pub count: u32,
    /// Where the number of events goes.
    pub count_to: u32,
}

/// `poll_oneoff`. What it returns in Wasm, or a trap of Wasmtime's own function.
pub async fn poll_oneoff(preview1: &mut WasiP1Ctx, sockets: &Sockets, memory: &mut Memory<'_>, poll: Poll) -> wasmtime::Result<i32> {
    let Ok(true) = has_socket(sockets, memory, poll) else {
        let [subscriptions, events, count, count_to] = [poll.subscriptions, poll.events, poll.count, poll.count_to].map(u32::cast_signed);
        let mut memory = GuestMemory::Unshared(memory.whole());
        return preview1::poll_oneoff(preview1, &mut memory, subscriptions, events, count, count_to).await;
    };
    match wait(preview1, sockets, memory, poll).await {
        Ok(events) => Ok(Errno::code(answer(memory, poll, &events))),
        Err(Stop::Refused(error)) => Ok(Errno::code(Err(error))),
        Err(Stop::Answered(number)) => Ok(number),
        Err(Stop::Trapped(trap)) => Err(trap),
    }
}

fn has_socket(sockets: &Sockets, memory: &Memory<'_>, poll: Poll) -> Result<bool> {
    let size = poll.count.checked_mul(SUBSCRIPTION as u32).ok_or(Errno::FAULT)?;
    let (records, _) = memory.bytes(memory.buffer(poll.subscriptions, size)?).as_chunks::<SUBSCRIPTION>();
    let is_socket = |record: &[u8; SUBSCRIPTION]| [FD_READ, FD_WRITE].contains(&record[8]) && sockets.get(u32_at(record, 16)).is_some();
    Ok(records.iter().any(is_socket))
}

/// Why there are no events.
#[derive(Debug)]
enum Stop {
    Refused(Errno),
    /// By Wasmtime's own function, with this number.
    Answered(i32),
    Trapped(wasmtime::Error),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Refused(error)
    }
}

impl From<rustix::io::Errno> for Stop {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Refused(error.into())
    }
}

type Record = [u8; SUBSCRIPTION];
type Event = [u8; EVENT];

/// The subscriptions, each with its place in the module's list.
#[derive(Debug, Default)]
struct Subscriptions<'a> {
    sockets: Vec<(usize, &'a OwnedFd, PollFlags)>,
    /// A clock is due when so much time has passed.
    clocks: Vec<(usize, Duration)>,
    others: Vec<(usize, Record)>,
}

fn answer(memory: &mut Memory<'_>, poll: Poll, events: &[Event]) -> Result<()> {
    memory.write(poll.events, events.as_flattened())?;
    memory.write(poll.count_to, &(events.len() as u32).to_le_bytes())
}

async fn wait(preview1: &mut WasiP1Ctx, sockets: &Sockets, memory: &Memory<'_>, poll: Poll) -> std::result::Result<Vec<Event>, Stop> {
    if poll.count > MOST {
        return Err(Errno::INVAL.into());
    }
    memory.will_take(poll.events, poll.count * EVENT as u32)?;
    memory.will_take(poll.count_to, 4)?;
    let begin = Instant::now();
    let list = memory.buffer(poll.subscriptions, poll.count * SUBSCRIPTION as u32)?;
    let (records, _) = memory.bytes(list).as_chunks::<SUBSCRIPTION>();
    let all = subscriptions(preview1, sockets, records)?;
    let first = all.clocks.iter().map(|(_, after)| *after).min();
    let mut descriptors: Vec<_> = all.sockets.iter().map(|(_, socket, wanted)| PollFd::new(socket, *wanted)).collect();
    loop {
        let rest = first.map(|after| after.saturating_sub(begin.elapsed()));
        let mut ready = if all.others.is_empty() { BTreeMap::new() } else { others(preview1, &all, rest).await? };
        // The others have waited for the sockets as well.
        let rest = if all.others.is_empty() { rest } else { Some(Duration::ZERO) };
        let rest = rest.and_then(|rest| Timespec::try_from(rest).ok());
        retry_on_intr(|| rustix::event::poll(&mut descriptors, rest.as_ref()))?;
        for ((place, socket, _), descriptor) in all.sockets.iter().zip(&descriptors) {
            if let (Some(record), false) = (records.get(*place), descriptor.revents().is_empty()) {
                ready.insert(*place, socket_event(record, socket, descriptor.revents()));
            }
        }
        for (place, after) in &all.clocks {
            if let (Some(record), true) = (records.get(*place), begin.elapsed() >= *after) {
                ready.insert(*place, event(record, 0, 0));
            }
        }
        if !ready.is_empty() {
            return Ok(ready.into_values().collect());
        }
    }
}

fn subscriptions<'a>(preview1: &mut WasiP1Ctx, sockets: &'a Sockets, records: &[Record]) -> std::result::Result<Subscriptions<'a>, Stop> {
    let mut all = Subscriptions::default();
    for (place, record) in records.iter().enumerate() {
        let number = u32_at(record, 16);
        match (record[8], sockets.get(number)) {
            (CLOCK, _) => all.clocks.push((place, due(preview1, record)?)),
            (FD_READ, Some(socket)) => all.sockets.push((place, socket, PollFlags::IN)),
            (FD_WRITE, Some(socket)) => all.sockets.push((place, socket, PollFlags::OUT)),
            (FD_READ | FD_WRITE, None) => all.others.push((place, *record)),
            _ => return Err(Errno::INVAL.into()),
        }
    }
    Ok(all)
}

/// In how much time a clock is due.
fn due(preview1: &mut WasiP1Ctx, record: &Record) -> std::result::Result<Duration, Stop> {
    let (id, time, flags) = (u32_at(record, 16), u64_at(record, 24), u16_at(record, 40));
    if ![REALTIME, MONOTONIC].contains(&id) || flags & !ABSOLUTE != 0 {
        return Err(Errno::INVAL.into());
    }
    if flags & ABSOLUTE == 0 {
        return Ok(Duration::from_nanos(time));
    }
    // What the module knows of the time is from Wasmtime, whose monotonic clock has a beginning of
    // its own.
    let mut now = Scratch::new(8);
    match preview1::clock_time_get(preview1, &mut now.memory(), id.cast_signed(), 0, 0) {
        Ok(0) => Ok(Duration::from_nanos(time.saturating_sub(u64_at(now.bytes(), 0)))),
        Ok(error) => Err(Stop::Answered(error)),
        Err(trap) => Err(Stop::Trapped(trap)),
    }
}

/// Waits until one of the others is ready, or a socket is, or so much time has passed: the events
/// of the others, by their places in the module's list.
async fn others(
    preview1: &mut WasiP1Ctx,
    all: &Subscriptions<'_>,
    rest: Option<Duration>,
) -> std::result::Result<BTreeMap<usize, Event>, Stop> {
    // Records, then events, then the number of events.
    let count = all.others.len();
    let events = count * SUBSCRIPTION;
    let count_to = events + count * EVENT;
    let mut scratch = Scratch::new(count_to + 4);
    for ((index, (_, record)), to) in all.others.iter().enumerate().zip(scratch.bytes_mut().as_chunks_mut().0) {
        *to = *record;
        // By this an event is known again.
        to[..8].copy_from_slice(&(index as u64).to_le_bytes());
    }
    let any_socket = watch(epoll_of(all)?).map_err(|_| Errno::IO)?;
    let answered = {
        let mut memory = scratch.memory();
        let [events, count, count_to] = [events, count, count_to].map(|number| number as i32);
        tokio::select! {
            biased;
            answered = preview1::poll_oneoff(preview1, &mut memory, 0, events, count, count_to) => Some(answered),
            _ = any_socket.readable() => None,
            () = tokio::time::sleep(rest.unwrap_or_default()), if rest.is_some() => None,
        }
    };
    match answered {
        None => return Ok(BTreeMap::new()),
        Some(Ok(0)) => {}
        Some(Ok(error)) => return Err(Stop::Answered(error)),
        Some(Err(trap)) => return Err(Stop::Trapped(trap)),
    }
    let found = u32_at(scratch.bytes(), count_to) as usize;
    let (events, _) = scratch.bytes().get(events..count_to).unwrap_or_default().as_chunks::<EVENT>();
    let with_names = events.iter().take(found).filter_map(|event| {
        let (place, record) = all.others.get(usize::try_from(u64_at(event, 0)).ok()?)?;
        let mut event = *event;
        event[..8].copy_from_slice(&record[..8]);
        Some((*place, event))
    });
    Ok(with_names.collect())
}

/// A descriptor that can be read when one of the sockets is ready.
fn epoll_of(all: &Subscriptions<'_>) -> Result<OwnedFd> {
    let mut wanted: BTreeMap<_, (&OwnedFd, epoll::EventFlags)> = BTreeMap::new();
    for (_, socket, flags) in &all.sockets {
        let flags = if *flags == PollFlags::IN { epoll::EventFlags::IN } else { epoll::EventFlags::OUT };
        wanted.entry(socket.as_raw_fd()).or_insert((socket, flags)).1 |= flags;
    }
    let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (socket, flags) in wanted.into_values() {
        epoll::add(&all, socket, epoll::EventData::new_u64(0), flags)?;
    }
    Ok(all)
}

fn socket_event(record: &Record, socket: &OwnedFd, ready: PollFlags) -> Event {
    // For a listener the kernel has no number.
    let bytes = if record[8] == FD_READ { rustix::io::ioctl_fionread(socket).unwrap_or(1) } else { 1 };
    let flags = if ready.contains(PollFlags::HUP) { HANGUP } else { 0 };
    event(record, bytes, flags)
}

fn event(record: &Record, bytes: u64, flags: u16) -> Event {
    let mut event = [0; EVENT];
    event[..8].copy_from_slice(&record[..8]);
    event[10] = record[8];
    event[16..24].copy_from_slice(&bytes.to_le_bytes());
    event[24..26].copy_from_slice(&flags.to_le_bytes());
    event
}

/// Memory for a call of Wasmtime's functions. They refuse numbers that are not aligned in this
/// process's memory.
#[derive(Debug)]
struct Scratch {
    all: Vec<u8>,
    begin: usize,
}

impl Scratch {
    /// The strictest alignment in WASI.
    const ALIGNMENT: usize = 8;

    fn new(size: usize) -> Self {
        let all = vec![0; size + Self::ALIGNMENT];
        let begin = all.as_ptr().align_offset(Self::ALIGNMENT);
        Self { all, begin }
    }

    fn bytes(&self) -> &[u8] {
        self.all.get(self.begin..).unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.all.get_mut(self.begin..).unwrap_or_default()
    }

    fn memory(&mut self) -> GuestMemory<'_> {
        GuestMemory::Unshared(self.bytes_mut())
    }
}

#[cfg(test)]
mod tests;
