// SPDX-License-Identifier: Apache-2.0
//! Bytes in chunks between host and guest.
//!
//! The first byte says how much of our own is sent meanwhile. The second is 0 for a peer that says
//! the rest and closes the connection; otherwise the peer is one of ours that sends the rest,
//! through a wire that takes 16 times as many bytes at a time.
#![no_main]

use magnetar_vm_agent_api::chunk::{LONGEST, carry};
use tokio::io::{AsyncWriteExt, duplex, empty, join, sink};
use tokio::runtime::Builder;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [own, wire, rest @ ..] = bytes else { return };
    // More than a window, where it is not too slow.
    let own = vec![7; usize::from(*own) << if *wire == 0 { 9 } else { 6 }];
    let Ok(runtime) = Builder::new_current_thread().build() else { return };
    runtime.block_on(async { if *wire == 0 { against(&own, rest).await } else { between(&own, rest, usize::from(*wire) << 4).await } });
});

/// Nothing arrives but what was said in chunks, in order, and a good end means that all of it has.
async fn against(own: &[u8], said: &[u8]) {
    let mut arrived = Vec::new();
    let ended = carry(own, &mut arrived, join(said, sink())).await;
    let (data, end) = decode(said);
    assert!(data.starts_with(&arrived), "something else has arrived");
    assert!(ended.is_err() || (end && arrived == data), "a good end before the end");
}

/// The data in what was said until it makes no sense or ends, and whether an end was said.
fn decode(mut said: &[u8]) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    while let [kind, high, low, rest @ ..] = said {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        match (kind, length) {
            (0, 1..=LONGEST) if rest.len() >= length => {
                data.extend(&rest[..length]);
                said = &rest[length..];
            }
            (1, 0) => return (data, true),
            (2, _) => said = rest,
            _ => break,
        }
    }
    (data, false)
}

/// Two of ours: all of both arrives.
async fn between(own: &[u8], theirs: &[u8], wire: usize) {
    let ((near, far), (mut here, mut there)) = (duplex(wire), (Vec::new(), Vec::new()));
    let (first, second) = tokio::join!(carry(own, &mut here, near), carry(theirs, &mut there, far));
    first.and(second).expect("it has failed");
    assert!(here == theirs && there == own, "not all has arrived");
    // And a peer that never says anything gets an end as well.
    let (near, mut far) = duplex(wire);
    let silent = async { far.shutdown().await };
    let (ended, _closed) = tokio::join!(carry(empty(), sink(), near), silent);
    assert!(ended.is_err(), "an end that nobody has said");
}
