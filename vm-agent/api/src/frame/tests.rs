// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::{Answer, Bundle, Disk, Event, Memory, Opened, Opening, Purpose, Request, Setup, StreamKind, StreamName, VERSION, network};
use proptest::collection::vec;
use proptest::prelude::*;
use std::fmt::Debug;
use std::path::PathBuf;

#[tokio::test]
async fn a_message_arrives_whole() {
    let opening = Opening { version: VERSION, purpose: Purpose::Forward { port: 80 } };
    let mut wire = Vec::new();
    write(&mut wire, &opening).await.unwrap();
    assert_eq!(read::<Opening>(&mut wire.as_slice(), FROM_HOST).await.unwrap(), opening);
    for end in 0..wire.len() {
        assert_eq!(read::<Opening>(&mut &wire[..end], FROM_HOST).await.unwrap_err().kind(), ErrorKind::UnexpectedEof, "{end}");
    }
}

#[tokio::test]
async fn invalid_messages_of_a_guest_are_refused() {
    let long = ((FROM_GUEST + 1) as u32).to_be_bytes();
    assert_eq!(read::<Answer>(&mut &long[..], FROM_GUEST).await.unwrap_err().kind(), ErrorKind::InvalidData);
    for text in ["", "{", r#"{"Exited":{"container":"a","code":-1}}"#, r#"{"Exited":{"container":"a","exec":null,"code":1,"x":1}}"#] {
        let mut wire = (text.len() as u32).to_be_bytes().to_vec();
        wire.extend_from_slice(text.as_bytes());
        assert_eq!(read::<Event>(&mut wire.as_slice(), FROM_GUEST).await.unwrap_err().kind(), ErrorKind::InvalidData, "{text}");
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,20}", r#"["\\{}\[\]:,0-9a-z\x00-\x1f]{0,20}"#]
}

fn event() -> impl Strategy<Value = Event> {
    let exited = (text(), proptest::option::of(text()), any::<u32>());
    prop_oneof![
        text().prop_map(|container| Event::OutOfMemory { container }),
        exited.prop_map(|(container, exec, code)| Event::Exited { container, exec, code }),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![Just(Answer::Done), text().prop_map(Answer::Failed)]
}

fn opened() -> impl Strategy<Value = Opened> {
    prop_oneof![Just(Opened::Ready), (any::<u32>(), text()).prop_map(|(version, reason)| Opened::Refused { version, reason })]
}

fn opening() -> impl Strategy<Value = Opening> {
    let kind = prop_oneof![Just(StreamKind::Stdin), Just(StreamKind::Stdout), Just(StreamKind::Stderr)];
    let stream = (text(), proptest::option::of(text()), kind).prop_map(|(container, exec, kind)| StreamName { container, exec, kind });
    let purpose = prop_oneof![
        Just(Purpose::Control),
        Just(Purpose::Events),
        Just(Purpose::Tasks),
        stream.prop_map(Purpose::Stream),
        any::<u16>().prop_map(|port| Purpose::Forward { port }),
    ];
    (any::<u32>(), purpose).prop_map(|(version, purpose)| Opening { version, purpose })
}

fn network() -> impl Strategy<Value = network::Network> {
    use network::{Interface, Mac, Neighbour, Network, Prefix, Route};
    let mac = || any::<[u8; 6]>().prop_map(Mac);
    let prefix = || (any::<std::net::IpAddr>(), any::<u8>()).prop_map(|(ip, length)| Prefix { ip, length });
    let device = any::<Option<[u8; 6]>>().prop_map(|device| device.map(Mac));
    let interface = (text(), mac(), device, any::<u32>(), vec(prefix(), 0..3)).prop_map(|(name, mac, device, mtu, addresses)| Interface {
        name,
        mac,
        device,
        mtu,
        addresses,
    });
    let route =
        (prefix(), any::<Option<std::net::IpAddr>>(), text(), any::<(Option<std::net::IpAddr>, Option<u32>, u8, bool, Option<u32>)>())
            .prop_map(|(to, gateway, interface, (source, mtu, scope, on_link, metric))| Route {
                to,
                gateway,
                interface,
                source,
                mtu,
                scope,
                on_link,
                metric,
            });
    let neighbour = (text(), any::<std::net::IpAddr>(), mac()).prop_map(|(interface, ip, mac)| Neighbour { interface, ip, mac });
    (vec(interface, 0..3), vec(route, 0..3), vec(neighbour, 0..3)).prop_map(|(interfaces, routes, neighbours)| Network {
        interfaces,
        routes,
        neighbours,
    })
}

fn request() -> impl Strategy<Value = Request> {
    let memory = any::<(u32, Option<u64>, u32, bool)>().prop_map(|(name, size, mode, huge)| Memory { name, size, mode, huge });
    let disk = (text(), any::<(u32, u32)>()).prop_map(|(serial, (major, minor))| Disk { serial, major, minor });
    let sysctls = proptest::collection::btree_map(text().prop_map(PathBuf::from), text(), 0..3);
    let setup = (text(), any::<u64>(), text(), sysctls, any::<u32>(), network())
        .prop_map(|(sandbox, now, hostname, sysctls, huge_pages, network)| Setup { sandbox, now, hostname, sysctls, huge_pages, network });
    let bundle = (text(), text(), vec(memory, 0..3), any::<u32>(), vec(disk, 0..3), vec(text(), 0..3), any::<bool>()).prop_map(
        |(container, spec, memory, huge_pages, disks, submounts, shared_pid)| Bundle {
            container,
            spec,
            memory,
            huge_pages,
            disks,
            submounts,
            shared_pid,
        },
    );
    prop_oneof![
        setup.prop_map(|setup| Request::SetUp(Box::new(setup))),
        bundle.prop_map(Request::Bundle),
        (text(), proptest::option::of(text())).prop_map(|(container, exec)| Request::Forget { container, exec }),
        text().prop_map(|serial| Request::Release { serial }),
        any::<u64>().prop_map(|now| Request::Ping { now }),
        Just(Request::SwitchOff),
    ]
}

/// A change of the bytes on their way.
#[derive(Debug, Clone)]
enum Damage {
    Replaced(prop::sample::Index, u8),
    Inserted(prop::sample::Index, Vec<u8>),
    Lost(prop::sample::Index, usize),
    CutOff(prop::sample::Index),
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        let at = any::<prop::sample::Index>;
        prop_oneof![
            (at(), any::<u8>()).prop_map(|(at, byte)| Self::Replaced(at, byte)),
            (at(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Self::Inserted(at, bytes)),
            (at(), 1..9_usize).prop_map(|(at, count)| Self::Lost(at, count)),
            at().prop_map(Self::CutOff),
        ]
    }

    fn happens_to(&self, bytes: &mut Vec<u8>) {
        match self {
            _ if bytes.is_empty() => {}
            Self::Replaced(at, byte) => *at.get_mut(bytes) = *byte,
            Self::Inserted(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Lost(at, count) => {
                let at = at.index(bytes.len());
                bytes.drain(at..bytes.len().min(at + count));
            }
            Self::CutOff(at) => bytes.truncate(at.index(bytes.len())),
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Checks that reading gives a message or a documented error, and takes no more bytes than the
/// length says and the limit allows.
fn makes_sense_or_not<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    wire: &[u8],
    longest: usize,
) -> std::result::Result<(), TestCaseError> {
    let mut rest = wire;
    match block_on(read::<T>(&mut rest, longest)) {
        Ok(message) => {
            prop_assert!(wire.len() - rest.len() <= 4 + longest);
            // The parsed message is the same when it is sent again.
            let mut again = Vec::new();
            block_on(write(&mut again, &message)).unwrap();
            prop_assert_eq!(block_on(read::<T>(&mut again.as_slice(), FROM_HOST)).unwrap(), message);
        }
        Err(error) => prop_assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData), "{error:?}"),
    }
    Ok(())
}

/// Checks that the message arrives, and that a damaged one is an error or still a valid message.
fn arrives<T>(message: &T, longest: usize, damage: &[Damage]) -> std::result::Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut wire = Vec::new();
    block_on(write(&mut wire, message)).unwrap();
    prop_assert_eq!(&block_on(read::<T>(&mut wire.as_slice(), longest)).unwrap(), message);
    for damage in damage {
        damage.happens_to(&mut wire);
    }
    makes_sense_or_not::<T>(&wire, longest)?;
    // The same damage, with the correct length.
    if let Some(text) = wire.get(4..) {
        let right = [&(text.len() as u32).to_be_bytes(), text].concat();
        makes_sense_or_not::<T>(&right, longest)?;
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(wire in vec(any::<u8>(), 0..200), longest in 0..300_usize, length: Option<u8>) {
        let mut wire = wire;
        if let (Some(length), [a, b, c, d, ..]) = (length, wire.as_mut_slice()) {
            (*a, *b, *c, *d) = (0, 0, 0, length);
        }
        makes_sense_or_not::<Answer>(&wire, longest)?;
        makes_sense_or_not::<Event>(&wire, longest)?;
        makes_sense_or_not::<Opened>(&wire, longest)?;
        makes_sense_or_not::<Opening>(&wire, longest)?;
        makes_sense_or_not::<Request>(&wire, longest)?;
    }

    #[test]
    fn a_guests_messages_arrive(event in event(), answer in answer(), opened in opened(), damage in vec(Damage::any(), 0..4)) {
        arrives(&event, FROM_GUEST, &damage)?;
        arrives(&answer, FROM_GUEST, &damage)?;
        arrives(&opened, FROM_GUEST, &damage)?;
    }

    #[test]
    fn a_hosts_messages_arrive(opening in opening(), request in request(), damage in vec(Damage::any(), 0..4)) {
        arrives(&opening, FROM_HOST, &damage)?;
        arrives(&request, FROM_HOST, &damage)?;
    }
}
