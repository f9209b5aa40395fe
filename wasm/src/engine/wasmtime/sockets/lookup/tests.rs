// SPDX-License-Identifier: Apache-2.0
use super::*;

const HINTS: u32 = 0;
const FIRST: u32 = 32;
const COUNT: u32 = 36;
const NODE: u32 = 64;
const SERVICE: u32 = 128;
/// Records, 28 bytes each, then as many sockaddr, and their data.
const ENTRIES: u32 = 256;
const SOCKADDRS: u32 = 512;
const DATA: u32 = 768;
const SIZE: usize = 2048;

/// A memory with a list of three records, each with so much room for an address.
fn memory(node: &str, service: &str, room: u32) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    let mut memory = Memory::new(&mut bytes);
    memory.write(NODE, node.as_bytes()).unwrap();
    memory.write(SERVICE, service.as_bytes()).unwrap();
    memory.write(FIRST, &ENTRIES.to_le_bytes()).unwrap();
    for number in 0..3 {
        let (entry, sockaddr, data) = (ENTRIES + number * 28, SOCKADDRS + number * 12, DATA + number * 32);
        memory.write(entry + 12, &sockaddr.to_le_bytes()).unwrap();
        memory.write(entry + 24, &if number < 2 { entry + 28 } else { 0 }.to_le_bytes()).unwrap();
        memory.write(sockaddr + 4, &room.to_le_bytes()).unwrap();
        memory.write(sockaddr + 8, &data.to_le_bytes()).unwrap();
    }
    bytes
}

fn query(node: &str, service: &str) -> Query {
    Query {
        node: (NODE, node.len() as u32),
        service: (SERVICE, service.len() as u32),
        hints: HINTS,
        results: FIRST,
        most: 3,
        count_to: COUNT,
    }
}

/// A result: family, type and protocol, the size of the kernel's address, and its data.
type Found = ([u8; 3], u32, Vec<u8>);

/// Looks up with these hints: flags, family, type and protocol. Each result as it is in the memory.
fn ask(node: &str, service: &str, hints: [u8; 4], room: u32) -> Result<Vec<Found>> {
    let mut bytes = memory(node, service, room);
    let mut memory = Memory::new(&mut bytes);
    let [flags, family, kind, protocol] = hints;
    memory.write(HINTS, &[flags, 0, family, kind, protocol]).unwrap();
    get(&mut memory, query(node, service))?;
    let count = u32_at(&memory.record::<4>(COUNT)?, 0);
    let result = |number: u32| {
        let record = memory.record::<28>(ENTRIES + number * 28)?;
        let sockaddr = memory.record::<12>(u32_at(&record, 12))?;
        let data = memory.buffer(u32_at(&sockaddr, 8), u32_at(&sockaddr, 4))?;
        assert_eq!(sockaddr[0], record[2], "the family is there twice");
        Ok(([record[2], record[3], record[4]], u32_at(&record, 8), memory.bytes(data).to_vec()))
    };
    (0..count).map(result).collect()
}

const IPV4_DATA: [u8; 14] = [0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn numbers_are_answered_as_the_kernel_has_addresses() {
    let ipv4 = ([1, 2, 1], 16, IPV4_DATA.to_vec());
    assert_eq!(ask("127.0.0.1", "8080", [0, 1, 2, 1], 14), Ok(vec![ipv4.clone()]));
    assert_eq!(ask("127.0.0.1\0", "8080\0", [0, 0, 2, 0], 14), Ok(vec![ipv4.clone()]), "with zero bytes at the end");
    let datagrams = ([1, 1, 2], 16, IPV4_DATA.to_vec());
    assert_eq!(ask("127.0.0.1", "8080", [0; 4], 26), Ok(vec![ipv4, datagrams]), "whatever there is");
    let found = ask("::1", "https", [0, 2, 2, 1], 26).unwrap();
    let expected = [&[1, 187, 0, 0, 0, 0][..], &Ipv6Addr::LOCALHOST.octets(), &[0; 4]].concat();
    assert_eq!(found, [([2, 2, 1], 28, expected)]);
}

#[test]
fn names_are_looked_up() {
    let found = ask("localhost", "8080", [0, 1, 2, 1], 14).unwrap();
    assert_eq!(found, [([1, 2, 1], 16, IPV4_DATA.to_vec())]);
    assert_eq!(ask("nonesuch.invalid", "", [0; 4], 26), Err(Errno::AINONAME));
    assert_eq!(ask("localhost", "", [NUMERICHOST as u8, 0, 0, 0], 26), Err(Errno::AINONAME));
    let passive = ask("", "80", [PASSIVE as u8, 0, 2, 0], 26).unwrap();
    assert_eq!(passive.iter().map(|(kind, ..)| kind[0]).collect::<Vec<_>>(), [INET4, INET6]);
    assert!(passive.iter().all(|(_, _, data)| data[2..].iter().all(|byte| *byte == 0)));
}

#[test]
fn what_does_not_fit_is_left_out() {
    assert_eq!(ask("127.0.0.1", "1", [0, 0, 2, 0], 13), Ok(Vec::new()));
    let both = ask("", "1", [0, 0, 2, 0], 14).unwrap();
    assert_eq!(both.iter().map(|(kind, ..)| kind[0]).collect::<Vec<_>>(), [INET4]);
    let mut bytes = memory("127.0.0.1", "1", 26);
    let mut memory = Memory::new(&mut bytes);
    assert_eq!(get(&mut memory, Query { most: 1, ..query("127.0.0.1", "1") }), Ok(()));
    assert_eq!(memory.record(COUNT), Ok([1, 0, 0, 0]), "of two results");
}

#[test]
fn the_name_is_returned_where_there_is_room() {
    for (room, expected) in [(0_u32, 0_u32), (9, 0), (10, 9)] {
        let mut bytes = memory("127.0.0.1", "", 26);
        let mut memory = Memory::new(&mut bytes);
        memory.write(HINTS, &[CANONNAME as u8]).unwrap();
        memory.write(ENTRIES + 16, &1024_u32.to_le_bytes()).unwrap();
        memory.write(ENTRIES + 20, &room.to_le_bytes()).unwrap();
        assert_eq!(get(&mut memory, query("127.0.0.1", "")), Ok(()));
        assert_eq!(u32_at(&memory.record::<4>(ENTRIES + 20).unwrap(), 0), expected, "{room}");
        assert_eq!(memory.record(1024), Ok(if expected > 0 { *b"127.0.0.1\0" } else { [0; 10] }));
    }
}

#[test]
fn wrong_questions_have_errors() {
    assert_eq!(ask("", "", [0; 4], 26), Err(Errno::AINONAME));
    assert_eq!(ask("localhost", "nonesuch", [0; 4], 26), Err(Errno::AISERVICE));
    assert_eq!(ask("localhost", "65536", [0; 4], 26), Err(Errno::AISERVICE));
    assert_eq!(ask("127.0.0.1", "1", [255, 0, 0, 0], 26), Err(Errno::AIBADFLAG));
    assert_eq!(ask("", "1", [CANONNAME as u8, 0, 0, 0], 26), Err(Errno::AIBADFLAG));
    assert_eq!(ask("127.0.0.1", "1", [0, 3, 0, 0], 26), Err(Errno::AIFAMILY));
    assert_eq!(ask("127.0.0.1", "1", [0, 2, 0, 0], 26), Err(Errno::AINONAME), "it is no IPv6 address");
    assert_eq!(ask("127.0.0.1", "1", [0, 0, 2, UDP], 26), Err(Errno::AISOCKTYPE));
    assert_eq!(ask("127.0.0.1", "1", [0, 0, 3, 0], 26), Err(Errno::NOSYS));
    assert_eq!(ask("\u{fffd}".repeat(400).as_str(), "1", [0; 4], 26), Err(Errno::AINONAME), "too long");
}

#[test]
fn wrong_pointers_are_a_fault() {
    let with = |change: &dyn Fn(&mut Memory<'_>, &mut Query)| {
        let mut bytes = memory("127.0.0.1", "1", 26);
        let mut memory = Memory::new(&mut bytes);
        let mut query = query("127.0.0.1", "1");
        change(&mut memory, &mut query);
        get(&mut memory, query)
    };
    let end = SIZE as u32;
    assert_eq!(with(&|_, _| ()), Ok(()));
    assert_eq!(with(&|_, query| query.node.1 = u32::MAX), Err(Errno::FAULT));
    assert_eq!(with(&|_, query| query.service.0 = end), Err(Errno::FAULT));
    assert_eq!(with(&|_, query| query.hints = end - 27), Err(Errno::FAULT));
    assert_eq!(with(&|_, query| query.results = end - 3), Err(Errno::FAULT));
    assert_eq!(with(&|_, query| query.count_to = u32::MAX), Err(Errno::FAULT));
    assert_eq!(with(&|_, query| query.most = 0), Err(Errno::AIMEMORY));
    for (at, what) in [(FIRST, "record"), (ENTRIES + 12, "sockaddr"), (SOCKADDRS + 8, "data"), (ENTRIES + 24, "next")] {
        assert_eq!(with(&|memory, _| memory.write(at, &(end - 1).to_le_bytes()).unwrap()), Err(Errno::FAULT), "{what}");
    }
    // The list leads back to its first record; there are two results.
    assert_eq!(with(&|memory, query| memory.write(ENTRIES + 24, &ENTRIES.to_le_bytes()).map(|()| query.most = u32::MAX).unwrap()), Ok(()));
}
