// SPDX-License-Identifier: Apache-2.0
use super::*;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::cli::AsyncStdinStream;

const EVENTS: u32 = 1024;
const COUNT: u32 = 2048;
const SIZE: usize = 4096;

/// A module's state.
struct Module {
    preview1: WasiP1Ctx,
    sockets: Sockets,
}

fn module() -> Module {
    with_input(&mut WasiCtxBuilder::new())
}

fn with_input(wasi: &mut WasiCtxBuilder) -> Module {
    let mut preview1 = wasi.build_p1();
    // How much of our memory its calls may take.
    preview1::WasiSnapshotPreview1::set_hostcall_fuel(&mut preview1, 1 << 20);
    Module { preview1, sockets: Sockets::default() }
}

fn descriptor(kind: u8, number: u32) -> Record {
    let mut record = [0; SUBSCRIPTION];
    record[..8].copy_from_slice(&(1000 + u64::from(number)).to_le_bytes());
    record[8] = kind;
    record[16..20].copy_from_slice(&number.to_le_bytes());
    record
}

/// A clock that is named by its time.
fn clock(id: u32, time: Duration, flags: u16) -> Record {
    let mut record = [0; SUBSCRIPTION];
    let time = (time.as_nanos() as u64).to_le_bytes();
    record[..8].copy_from_slice(&time);
    record[16..20].copy_from_slice(&id.to_le_bytes());
    record[24..32].copy_from_slice(&time);
    record[40..42].copy_from_slice(&flags.to_le_bytes());
    record
}

const MILLISECOND: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(1000);

impl Module {
    async fn call(&mut self, bytes: &mut [u8], count: u32, events: u32, count_to: u32) -> wasmtime::Result<i32> {
        let poll = Poll { subscriptions: 0, events, count, count_to };
        poll_oneoff(&mut self.preview1, &self.sockets, &mut Memory::new(bytes), poll).await
    }

    /// The events: names, errors, kinds, and flags.
    async fn poll<const N: usize>(&mut self, records: [Record; N]) -> std::result::Result<Vec<(u64, u16, u8, u16)>, i32> {
        let mut bytes = records.as_flattened().to_vec();
        bytes.resize(SIZE, 0);
        match self.call(&mut bytes, N as u32, EVENTS, COUNT).await.unwrap() {
            0 => {}
            error => return Err(error),
        }
        let events = bytes[EVENTS as usize..].as_chunks::<EVENT>().0.iter().take(u32_at(&bytes, COUNT as usize) as usize);
        Ok(events.map(|event| (u64_at(event, 0), u16_at(event, 8), event[10], u16_at(event, 24))).collect())
    }
}

/// A listener, and two ends of a connection to it, of which the second is the module's.
fn connected(module: &mut Module) -> (u32, TcpStream, u32) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    (module.sockets.add(listener.into()), client, module.sockets.add(server.into()))
}

fn name(number: u32) -> u64 {
    1000 + u64::from(number)
}

#[tokio::test]
async fn sockets_and_clocks_are_waited_for_together() {
    let mut module = module();
    let (listener, mut client, server) = connected(&mut module);
    let (read, listening) = (descriptor(FD_READ, server), descriptor(FD_READ, listener));
    let short = clock(MONOTONIC, MILLISECOND, 0);
    assert_eq!(module.poll([listening, read, short]).await, Ok(vec![(1_000_000, 0, CLOCK, 0)]), "only the time has passed");
    assert_eq!(module.poll([read, descriptor(FD_WRITE, server)]).await, Ok(vec![(name(server), 0, FD_WRITE, 0)]));
    client.write_all(b"hello").unwrap();
    let long = clock(REALTIME, LONG, 0);
    assert_eq!(module.poll([long, listening, read]).await, Ok(vec![(name(server), 0, FD_READ, 0)]));
    let both = vec![(name(server), 0, FD_READ, 0), (name(server), 0, FD_WRITE, 0)];
    assert_eq!(module.poll([read, descriptor(FD_WRITE, server)]).await, Ok(both), "in their order");
    let address = rustix::net::getsockname(module.sockets.get(listener).unwrap()).unwrap();
    let _second = TcpStream::connect(std::net::SocketAddr::try_from(address).unwrap()).unwrap();
    assert_eq!(module.poll([listening, long]).await, Ok(vec![(name(listener), 0, FD_READ, 0)]));
}

#[tokio::test]
async fn a_closed_connection_is_ready_and_hung_up() {
    let mut module = module();
    let (_, client, server) = connected(&mut module);
    drop(client);
    let read = descriptor(FD_READ, server);
    assert_eq!(module.poll([read]).await, Ok(vec![(name(server), 0, FD_READ, 0)]), "its end can be read");
    rustix::net::shutdown(module.sockets.get(server).unwrap(), rustix::net::Shutdown::Write).unwrap();
    assert_eq!(module.poll([read]).await, Ok(vec![(name(server), 0, FD_READ, HANGUP)]));
}

#[tokio::test]
async fn a_time_can_be_that_of_a_clock() {
    let mut module = module();
    let (listener, ..) = connected(&mut module);
    let listening = descriptor(FD_READ, listener);
    let (past, future) = (clock(REALTIME, LONG, ABSOLUTE), clock(MONOTONIC, LONG, ABSOLUTE));
    assert_eq!(module.poll([future, listening, past]).await, Ok(vec![(LONG.as_nanos() as u64, 0, CLOCK, 0)]));
    let past = clock(MONOTONIC, Duration::ZERO, ABSOLUTE);
    assert_eq!(module.poll([future, listening, past]).await, Ok(vec![(0, 0, CLOCK, 0)]));
}

#[tokio::test]
async fn other_descriptors_are_waited_for_beside_sockets() {
    let mut module = module();
    let (listener, mut client, server) = connected(&mut module);
    let (read, listening) = (descriptor(FD_READ, server), descriptor(FD_READ, listener));
    // Standard input is at its end, and standard output takes everything.
    let input = descriptor(FD_READ, 0);
    assert_eq!(module.poll([listening, input]).await, Ok(vec![(name(0), 0, FD_READ, 0)]));
    client.write_all(b"hello").unwrap();
    let all = vec![(name(1), 0, FD_WRITE, 0), (name(server), 0, FD_READ, 0), (name(0), 0, FD_READ, 0)];
    assert_eq!(module.poll([descriptor(FD_WRITE, 1), listening, read, input]).await, Ok(all));

    // Nothing comes from standard input until there is something.
    let (there, mut here) = tokio::io::duplex(64);
    module.preview1 = with_input(WasiCtxBuilder::new().stdin(AsyncStdinStream::new(there))).preview1;
    let short = clock(MONOTONIC, 20 * MILLISECOND, 0);
    assert_eq!(module.poll([input, listening, short]).await, Ok(vec![(20_000_000, 0, CLOCK, 0)]));
    assert_eq!(module.poll([input, read, clock(MONOTONIC, LONG, 0)]).await, Ok(vec![(name(server), 0, FD_READ, 0)]));
    tokio::io::AsyncWriteExt::write_all(&mut here, b"line\n").await.unwrap();
    assert_eq!(module.poll([input, listening]).await, Ok(vec![(name(0), 0, FD_READ, 0)]));
}

#[tokio::test]
async fn wrong_subscriptions_have_errors() {
    let mut module = module();
    let (listener, _client, server) = connected(&mut module);
    let listening = descriptor(FD_READ, listener);
    let inval = Err(i32::from(Errno::INVAL.number()));
    let badf = Err(i32::from(Errno::BADF.number()));
    assert_eq!(module.poll([listening, descriptor(3, server)]).await, inval);
    assert_eq!(module.poll([listening, clock(2, MILLISECOND, 0)]).await, inval);
    assert_eq!(module.poll([listening, clock(MONOTONIC, MILLISECOND, 2)]).await, inval);
    assert_eq!(module.poll([listening, descriptor(FD_READ, 77)]).await, badf);
    assert_eq!(module.poll([listening, descriptor(FD_READ, server + 1)]).await, badf);
    assert_eq!(module.poll([descriptor(FD_READ, server + 1)]).await, badf, "without a socket, by Wasmtime");
    assert_eq!(module.poll([]).await, inval, "also by Wasmtime");

    let fault = i32::from(Errno::FAULT.number());
    let mut bytes = listening.to_vec();
    bytes.resize(SIZE, 0);
    let end = SIZE as u32;
    assert_eq!(module.call(&mut bytes, 1, end - 31, COUNT).await.unwrap(), fault);
    assert_eq!(module.call(&mut bytes, 1, EVENTS, end - 3).await.unwrap(), fault);
    assert!(!matches!(module.call(&mut bytes, u32::MAX, EVENTS, COUNT).await, Ok(0)), "by Wasmtime, as no memory has so many");
    let mut bytes = vec![0; (MOST as usize + 1) * SUBSCRIPTION];
    bytes[..SUBSCRIPTION].copy_from_slice(&listening);
    assert_eq!(module.call(&mut bytes, MOST + 1, EVENTS, COUNT).await.unwrap(), i32::from(Errno::INVAL.number()));
}
