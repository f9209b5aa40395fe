// SPDX-License-Identifier: Apache-2.0
use super::super::memory::{u16_at, u32_at};
use super::*;
use rustix::io::Errno as System;

const SIZE: usize = 1024;

/// A module's memory and its sockets.
struct Module {
    bytes: [u8; SIZE],
    sockets: Sockets,
}

/// Where things are in the memory: an address's record and its bytes, results, a list of buffers,
/// and what is in them.
const ADDRESS: u32 = 0;
const OCTETS: u32 = 16;
const RESULT: u32 = 160;
const LIST: u32 = 192;
const DATA: u32 = 256;

impl Module {
    fn new() -> Self {
        let mut module = Self { bytes: [0; SIZE], sockets: Sockets::default() };
        module.set_address(4, [127, 0, 0, 1]);
        module
    }

    fn memory(&mut self) -> Memory<'_> {
        Memory::new(&mut self.bytes)
    }

    fn set_address<const N: usize>(&mut self, size: u32, octets: [u8; N]) {
        self.memory().write(ADDRESS, &[OCTETS.to_le_bytes(), size.to_le_bytes()].concat()).unwrap();
        self.memory().write(OCTETS, &octets).unwrap();
    }

    fn set_buffers<const N: usize>(&mut self, buffers: [(u32, u32); N]) -> Message {
        let list: Vec<u8> = buffers.iter().flat_map(|(at, size)| [at.to_le_bytes(), size.to_le_bytes()].concat()).collect();
        self.memory().write(LIST, &list).unwrap();
        Message { list: LIST, count: N as u32, flags: 0 }
    }

    fn result(&mut self, at: u32) -> u32 {
        u32_at(&self.memory().record::<4>(at).unwrap(), 0)
    }

    fn text(&mut self, at: u32, size: u32) -> String {
        let memory = self.memory();
        String::from_utf8_lossy(memory.bytes(memory.buffer(at, size).unwrap())).into_owned()
    }

    fn open(&mut self, kind: u32) -> u32 {
        open(&mut self.sockets, &mut Memory::new(&mut self.bytes), 1, kind, RESULT).unwrap();
        self.result(RESULT)
    }

    /// Does something with a socket.
    fn with<T>(&mut self, number: u32, act: impl FnOnce(&OwnedFd, &mut Memory<'_>) -> T) -> T {
        act(self.sockets.get(number).unwrap(), &mut Memory::new(&mut self.bytes))
    }

    fn port(&mut self, number: u32) -> u32 {
        self.with(number, |socket, memory| name(socket, memory, Side::Local, ADDRESS, Some(RESULT), RESULT + 4)).unwrap();
        assert_eq!(self.result(RESULT), 4, "IPv4");
        self.result(RESULT + 4)
    }

    /// A listener, and its port.
    fn listener(&mut self) -> (u32, u32) {
        let number = self.open(STREAM);
        self.with(number, |socket, memory| bind(socket, memory, ADDRESS, 0)).unwrap();
        self.with(number, |socket, _| listen(socket, 16)).unwrap();
        (number, self.port(number))
    }

    /// Two ends of a connection.
    fn connected(&mut self) -> (u32, u32) {
        let (listener, port) = self.listener();
        let client = self.open(STREAM);
        self.with(client, |socket, memory| connect(socket, memory, ADDRESS, port)).unwrap();
        accept(&mut self.sockets, &mut Memory::new(&mut self.bytes), listener, 0, RESULT).unwrap();
        (client, self.result(RESULT))
    }
}

#[test]
fn a_stream_goes_through_several_buffers_in_both_directions() {
    let mut module = Module::new();
    let (client, server) = module.connected();
    module.memory().write(DATA, b"hello, world").unwrap();
    // They overlap, which only matters where they are written to.
    let message = module.set_buffers([(DATA, 5), (0, 0), (DATA + 3, 9)]);
    module.with(client, |socket, memory| send(socket, memory, message, None, RESULT)).unwrap();
    assert_eq!(module.result(RESULT), 14);

    let message = module.set_buffers([(DATA + 100, 3), (DATA + 200, 100), (DATA + 300, 5)]);
    module.with(server, |socket, memory| receive(socket, memory, message, RESULT, Some(RESULT + 4))).unwrap();
    assert_eq!((module.result(RESULT), module.result(RESULT + 4)), (14, 0));
    assert_eq!((module.text(DATA + 100, 3), module.text(DATA + 200, 11)), ("hel".into(), "lolo, world".into()));
    assert_eq!(module.text(DATA + 300, 5), "\0\0\0\0\0", "not needed");

    module.with(client, |socket, _| shutdown(socket, 2)).unwrap();
    let message = module.set_buffers([(DATA, 10)]);
    module.with(server, |socket, memory| receive(socket, memory, message, RESULT, None)).unwrap();
    assert_eq!(module.result(RESULT), 0, "the end");
    assert!(module.sockets.remove(server).is_some());
    let sent = (0..3).map(|_| module.with(client, |socket, memory| send(socket, memory, message, None, RESULT))).collect::<Vec<_>>();
    assert_eq!(sent[2], Err(System::PIPE.into()), "and no signal");
}

#[test]
fn peeking_leaves_what_is_received() {
    let mut module = Module::new();
    let (client, server) = module.connected();
    module.memory().write(DATA, b"hello").unwrap();
    let message = module.set_buffers([(DATA, 5)]);
    module.with(client, |socket, memory| send(socket, memory, message, None, RESULT)).unwrap();
    for flags in [PEEK, PEEK | WAIT_ALL, 0] {
        module.with(server, |socket, memory| receive(socket, memory, Message { flags, ..message }, RESULT, None)).unwrap();
        assert_eq!((module.result(RESULT), module.text(DATA, 5)), (5, "hello".into()), "{flags}");
        module.memory().write(DATA, &[0; 5]).unwrap();
    }
    let wrong = module.with(server, |socket, memory| receive(socket, memory, Message { flags: 4, ..message }, RESULT, None));
    assert_eq!(wrong, Err(Errno::INVAL));
    let wrong = module.with(server, |socket, memory| send(socket, memory, Message { flags: 1, ..message }, None, RESULT));
    assert_eq!(wrong, Err(Errno::INVAL));
}

#[test]
fn calls_that_would_wait_return_again_where_that_is_asked_for() {
    let mut module = Module::new();
    let (listener, _) = module.listener();
    module.with(listener, |socket, _| set_flags(socket, NONBLOCK)).unwrap();
    let accepted = accept(&mut module.sockets, &mut Memory::new(&mut module.bytes), listener, 0, RESULT);
    assert_eq!(accepted, Err(System::AGAIN.into()));
    module.with(listener, |socket, memory| status(socket, memory, RESULT)).unwrap();
    let flags = |module: &mut Module| u16_at(&module.memory().record::<4>(RESULT).unwrap(), 2);
    assert_eq!((module.bytes[RESULT as usize], flags(&mut module)), (SOCKET_STREAM, 4));
    module.with(listener, |socket, _| set_flags(socket, 0)).unwrap();
    module.with(listener, |socket, memory| status(socket, memory, RESULT)).unwrap();
    assert_eq!(flags(&mut module), 0);
    assert_eq!(module.with(listener, |socket, _| set_flags(socket, 32)), Err(Errno::INVAL));

    let (client, _server) = module.connected();
    module.with(client, |socket, _| set_flags(socket, NONBLOCK)).unwrap();
    let message = module.set_buffers([(DATA, 10)]);
    let received = module.with(client, |socket, memory| receive(socket, memory, message, RESULT, None));
    assert_eq!(received, Err(System::AGAIN.into()));
}

#[test]
fn datagrams_have_a_sender_and_are_truncated() {
    let mut module = Module::new();
    let (one, other) = (module.open(DATAGRAM), module.open(DATAGRAM));
    for number in [one, other] {
        module.with(number, |socket, memory| bind(socket, memory, ADDRESS, 0)).unwrap();
    }
    let (from, to) = (module.port(one), module.port(other));
    module.memory().write(DATA, b"hello").unwrap();
    for _ in 0..2 {
        let message = module.set_buffers([(DATA, 5)]);
        module.with(one, |socket, memory| send(socket, memory, message, Some((ADDRESS, to)), RESULT)).unwrap();
        assert_eq!(module.result(RESULT), 5);
    }
    let message = module.set_buffers([(DATA + 100, 2), (DATA + 200, 2)]);
    module.set_address(128, [9; 6]);
    let sender = Sender { address: ADDRESS, port: Some(RESULT + 8) };
    module.with(other, |socket, memory| receive_from(socket, memory, message, sender, RESULT, RESULT + 4)).unwrap();
    assert_eq!((module.result(RESULT), module.result(RESULT + 4)), (4, u32::from(TRUNCATED)));
    assert_eq!((module.text(DATA + 100, 2), module.text(DATA + 200, 2)), ("he".into(), "ll".into()));
    assert_eq!(module.result(RESULT + 8), from);
    assert_eq!(module.memory().record(OCTETS), Ok([1, 0, 127, 0, 0, 1]), "the family, and the address");

    // The older version has the address alone; one that does not fit is left out.
    module.set_address(3, [9; 6]);
    let sender = Sender { address: ADDRESS, port: None };
    module.with(other, |socket, memory| receive_from(socket, memory, message, sender, RESULT, RESULT + 4)).unwrap();
    assert_eq!(module.memory().record(OCTETS), Ok([9; 6]));
}

#[test]
fn wrong_arguments_have_errors() {
    let mut module = Module::new();
    let Module { bytes, sockets } = &mut module;
    let mut opened = |family, kind, to| open(sockets, &mut Memory::new(bytes), family, kind, to);
    assert_eq!(opened(1, 3, RESULT), Err(Errno::INVAL));
    assert_eq!(opened(0, STREAM, RESULT), Err(Errno::INVAL));
    assert_eq!(opened(3, STREAM, RESULT), Err(Errno::NOSYS));
    assert_eq!(opened(257, STREAM, RESULT), Err(Errno::INVAL));
    assert_eq!(opened(1, STREAM, SIZE as u32 - 3), Err(Errno::FAULT));

    let (listener, port) = module.listener();
    for how in [0, 4, u32::MAX] {
        assert_eq!(module.with(listener, |socket, _| shutdown(socket, how)), Err(Errno::INVAL), "{how}");
    }
    let named = module.with(listener, |socket, memory| name(socket, memory, Side::Peer, ADDRESS, Some(RESULT), RESULT + 4));
    assert_eq!(named, Err(System::NOTCONN.into()));
    let named = module.with(listener, |socket, memory| name(socket, memory, Side::Local, ADDRESS, None, RESULT));
    assert_eq!(named, Err(Errno::INVAL), "there is no room for the family");
    let named = module.with(listener, |socket, memory| name(socket, memory, Side::Local, ADDRESS, Some(RESULT), SIZE as u32));
    assert_eq!(named, Err(Errno::FAULT));
    let other = module.open(STREAM);
    assert_eq!(module.with(other, |socket, memory| bind(socket, memory, ADDRESS, port)), Err(System::ADDRINUSE.into()));
    assert_eq!(module.with(other, |socket, memory| connect(socket, memory, ADDRESS, 1)), Err(System::CONNREFUSED.into()));
    assert_eq!(accept(&mut module.sockets, &mut Memory::new(&mut module.bytes), 3, 0, RESULT), Err(Errno::BADF));
}

#[test]
fn nothing_is_received_by_a_call_with_wrong_pointers() {
    let mut module = Module::new();
    let (client, server) = module.connected();
    module.memory().write(DATA, b"hello").unwrap();
    let message = module.set_buffers([(DATA, 5)]);
    module.with(client, |socket, memory| send(socket, memory, message, None, RESULT)).unwrap();
    let end = SIZE as u32;
    for (at, size) in [(end - 4, 5), (end + 1, 0), (u32::MAX, u32::MAX), (0, u32::MAX)] {
        let wrong = module.set_buffers([(DATA, 1), (at, size)]);
        let received = module.with(server, |socket, memory| receive(socket, memory, wrong, RESULT, None));
        assert_eq!(received, Err(Errno::FAULT), "{at} {size}");
        let sent = module.with(server, |socket, memory| send(socket, memory, wrong, None, RESULT));
        assert_eq!(sent, Err(Errno::FAULT), "{at} {size}");
    }
    let message = module.set_buffers([(DATA, 5)]);
    for (size_to, flags_to) in [(end, RESULT), (RESULT, end - 1), (u32::MAX, RESULT), (RESULT, u32::MAX)] {
        let received = module.with(server, |socket, memory| receive(socket, memory, message, size_to, Some(flags_to)));
        assert_eq!(received, Err(Errno::FAULT), "{size_to} {flags_to}");
    }
    let many = Message { count: 1025, ..message };
    assert_eq!(module.with(server, |socket, memory| receive(socket, memory, many, RESULT, None)), Err(Errno::INVAL));
    module.with(server, |socket, memory| receive(socket, memory, message, RESULT, None)).unwrap();
    assert_eq!(module.result(RESULT), 5, "it is all still there");
}
