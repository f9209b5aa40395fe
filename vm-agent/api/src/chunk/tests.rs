// SPDX-License-Identifier: Apache-2.0

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::time::Duration;
use tokio::io::{DuplexStream, duplex, empty, sink, split};

/// Runs one side, between the plain streams and the wire.
async fn side(plain: DuplexStream, wire: DuplexStream) -> Result<()> {
    let (from, to) = split(plain);
    carry(from, to, wire).await
}

#[tokio::test]
async fn bytes_arrive_with_their_end_through_the_smallest_wire() {
    let text: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let ((near, far), mut received) = (duplex(1), Vec::new());
    let (sent, taken) = tokio::join!(carry(text.as_slice(), sink(), near), carry(empty(), &mut received, far));
    sent.and(taken).unwrap();
    assert_eq!(received, text);
}

#[tokio::test]
async fn no_more_than_a_window_is_unacknowledged() {
    for size in [1, 1000, LONGEST] {
        let (wire, mut other) = duplex(1 << 20);
        let ((from, mut source), (to, _kept)) = (duplex(size), duplex(1));
        let carried = carry(from, to, wire);
        let talk = async {
            let mut offered = 0;
            // A writer of more than a window has to wait.
            while tokio::time::timeout(std::time::Duration::from_millis(20), source.write_all(&vec![7; size])).await.is_ok() {
                offered += cost(size);
                assert!(offered <= WINDOW + 2 * cost(size), "{offered}");
            }
            let mut head = [0; 3];
            other.read_exact(&mut head).await.unwrap();
            assert_eq!(head[0], DATA);
            // An acknowledgement makes room.
            other.write_all(&[TAKEN, head[1], head[2]]).await.unwrap();
            source.write_all(&vec![7; size]).await.unwrap();
        };
        tokio::select! {
            ended = carried => panic!("{ended:?}"),
            () = talk => {}
        }
    }
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    for client_first in [true, false] {
        let ((mut client, near), (wire, other_wire), (far, mut server)) = (duplex(9), duplex(9), duplex(9));
        let (first, last) = if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
        let talk = async {
            first.write_all(b"a question, and no more").await.unwrap();
            first.shutdown().await.unwrap();
            let mut text = String::new();
            last.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "a question, and no more");
            last.write_all(b"the answer").await.unwrap();
            last.shutdown().await.unwrap();
            text.clear();
            first.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "the answer");
        };
        let (near, far, ()) = tokio::join!(side(near, wire), side(far, other_wire), talk);
        near.and(far).unwrap();
    }
}

#[tokio::test]
async fn an_unread_direction_does_not_block_the_other() {
    let ((mut client, near), (wire, other_wire), (far, mut server)) = (duplex(9), duplex(9), duplex(9));
    let talk = async {
        // Fills the direction to the client, which does not read.
        while tokio::time::timeout(std::time::Duration::from_millis(20), server.write_all(&[1; 4096])).await.is_ok() {}
        let (mut server_in, _server_out) = split(server);
        let mut text = vec![0; 200_000];
        let (said, heard) = tokio::join!(client.write_all(&[2; 200_000]), server_in.read_exact(&mut text));
        said.and(heard.map(drop)).unwrap();
    };
    tokio::select! {
        ended = side(near, wire) => panic!("{ended:?}"),
        ended = side(far, other_wire) => panic!("{ended:?}"),
        () = talk => {}
    }
}

#[tokio::test]
async fn the_connection_is_kept_until_the_end_has_arrived() {
    let (wire, mut other) = duplex(99);
    let carried = carry(b"x".as_slice(), sink(), wire);
    let mut carried = std::pin::pin!(carried);
    let talk = async {
        let mut said = [0; 7];
        other.read_exact(&mut said).await.unwrap();
        assert_eq!(said, [DATA, 0, 1, b'x', END, 0, 0]);
        other.write_all(&[TAKEN, 0, 1, END, 0, 0]).await.unwrap();
        let mut told = [0; 3];
        other.read_exact(&mut told).await.unwrap();
        assert_eq!(told, [TAKEN, 0, 0]);
        tokio::task::yield_now().await;
    };
    tokio::select! {
        biased;
        _ = &mut carried => panic!("it is closed"),
        () = talk => {}
    }
    other.write_all(&[TAKEN, 0, 0]).await.unwrap();
    carried.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_closes_after_our_end_is_no_error() {
    let (wire, mut other) = duplex(99);
    other.write_all(&[END, 0, 0]).await.unwrap();
    let gone = async {
        let mut said = [0; 6];
        other.read_exact(&mut said).await.unwrap();
        drop(other);
    };
    let (carried, ()) = tokio::join!(carry(empty(), sink(), wire), gone);
    carried.unwrap();
}

#[tokio::test]
async fn a_failed_connection_ends_both_directions() {
    let too_long = (LONGEST as u16 + 1).to_be_bytes();
    for (said, kind) in [
        (&[][..], ErrorKind::UnexpectedEof),
        (&[END, 0, 0], ErrorKind::UnexpectedEof),
        (&[DATA, 0, 2, 7], ErrorKind::UnexpectedEof),
        (&[END, 0, 0, DATA, 0, 1, 7], ErrorKind::InvalidData),
        (&[END, 0, 0, END, 0, 0], ErrorKind::InvalidData),
        (&[DATA, 0, 0], ErrorKind::InvalidData),
        (&[DATA, too_long[0], too_long[1]], ErrorKind::InvalidData),
        (&[TAKEN, 0, 1], ErrorKind::InvalidData),
        (&[TAKEN, 0, 0], ErrorKind::InvalidData),
        (&[3, 0, 0], ErrorKind::InvalidData),
    ] {
        let ((_client, plain), (wire, mut other)) = (duplex(99), duplex(99));
        other.write_all(said).await.unwrap();
        if kind == ErrorKind::UnexpectedEof {
            drop(other);
        }
        assert_eq!(side(plain, wire).await.unwrap_err().kind(), kind, "{said:?}");
    }
}

#[tokio::test]
async fn a_peer_that_exceeds_the_window_is_refused() {
    let ((_client, plain), (wire, mut other)) = (duplex(1), duplex(1 << 20));
    // One byte is delivered: its receiver has room for one.
    for _ in 0..=WINDOW / LEAST + 1 {
        other.write_all(&[DATA, 0, 1, 7]).await.unwrap();
    }
    assert_eq!(side(plain, wire).await.unwrap_err().kind(), ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_peer_that_reads_no_acknowledgements_is_not_read_for_long() {
    let (wire, mut other) = duplex(99);
    let talk = async {
        let mut sent = 0;
        // All data is delivered at once, and the wire has no room for the acknowledgements.
        while other.write_all(&[DATA, 0, 1, 7]).await.is_ok() {
            sent += 1;
            assert!(sent < 4 * WINDOW / LEAST, "acknowledgements pile up without a bound");
        }
    };
    let (carried, ()) = tokio::join!(carry(empty(), sink(), wire), talk);
    assert_eq!(carried.unwrap_err().kind(), ErrorKind::InvalidData);
}

/// What a peer may send, valid or not.
#[derive(Debug, Clone)]
enum Said {
    Data(Vec<u8>),
    End,
    Taken(u16),
    Other(Vec<u8>),
}

impl Said {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            8 => vec(any::<u8>(), 1..100).prop_map(Self::Data),
            1 => vec(any::<u8>(), LONGEST - 1..=LONGEST).prop_map(Self::Data),
            2 => Just(Self::End),
            4 => prop_oneof![Just(0), 1..2000_u16, Just(LONGEST as u16), any::<u16>()].prop_map(Self::Taken),
            1 => vec(any::<u8>(), 0..8).prop_map(Self::Other),
        ]
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Data(data) => [&head(DATA, data.len() as u16)[..], data].concat(),
            Self::End => head(END, 0).to_vec(),
            Self::Taken(length) => head(TAKEN, *length).to_vec(),
            Self::Other(bytes) => bytes.clone(),
        }
    }
}

/// The data up to the first end, or up to the first invalid chunk.
fn data(said: &[Said]) -> Vec<u8> {
    let sense = said.iter().take_while(|said| !matches!(said, Said::End | Said::Other(_)));
    sense.filter_map(|said| if let Said::Data(data) = said { Some(data.as_slice()) } else { None }).collect::<Vec<_>>().concat()
}

/// A future that takes longer than this hangs. In paused time the clock only moves when nothing can
/// run, so a hang is found at once, even a thousand times while proptest shrinks a failure.
const WATCH: Duration = Duration::from_secs(20);

/// How long a peer stays that does not read.
const PATIENCE: Duration = Duration::from_secs(1);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { tokio::time::timeout(WATCH, future).await.expect("it does not end") })
}

proptest! {
    #[test]
    fn any_chunks_of_the_peer_are_data_or_an_error(
        said in vec(Said::any(), 0..40), ours in vec(any::<u8>(), 0..3000), room in 1..500_usize, hears: bool,
    ) {
        let (wire, other) = duplex(room);
        let mut received = Vec::new();
        let talk = async {
            let (mut other_in, mut other_out) = split(other);
            let say = async {
                for said in &said {
                    if other_out.write_all(&said.bytes()).await.is_err() {
                        break;
                    }
                }
                other_out.shutdown().await
            };
            // The peer fails when we go away.
            let _gone = if hears {
                let mut unread = sink();
                tokio::join!(say, tokio::io::copy(&mut other_in, &mut unread)).0
            } else {
                // A peer that acknowledges our end before it reads it is not read any more, and
                // could wait for ever.
                tokio::time::timeout(PATIENCE, say).await.unwrap_or(Ok(()))
            };
        };
        let (carried, ()) = block_on(async { tokio::join!(carry(ours.as_slice(), &mut received, wire), talk) });
        let all = data(&said);
        if said.iter().all(|said| !matches!(said, Said::Other(_))) {
            prop_assert!(all.starts_with(&received), "{} of {} bytes", received.len(), all.len());
            prop_assert!(carried.is_err() || received == all, "{} of {} bytes, and no error", received.len(), all.len());
            prop_assert!(carried.is_err() || said.iter().any(|said| matches!(said, Said::End)), "no end, and no error");
        }
        prop_assert!(received.len() <= said.iter().map(|said| said.bytes().len()).sum());
    }

    #[test]
    fn any_bytes_arrive_both_ways_through_any_wire(
        one in vec(any::<u8>(), 0..40_000), two in vec(any::<u8>(), 0..2000), room in prop_oneof![1..50_usize, 1000..100_000_usize],
    ) {
        let (near, far) = duplex(room);
        let (mut at_near, mut at_far) = (Vec::new(), Vec::new());
        let (sent, taken) = block_on(async {
            tokio::join!(carry(one.as_slice(), &mut at_near, near), carry(two.as_slice(), &mut at_far, far))
        });
        prop_assert!(sent.and(taken).is_ok());
        prop_assert!(at_far == one && at_near == two);
    }
}
