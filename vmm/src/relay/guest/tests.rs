// SPDX-License-Identifier: Apache-2.0

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::UnixListener;

/// A test that takes longer than this hangs.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, future).await.expect("it does not end") })
}

/// Dials a device that sends `bytes` and closes. Returns how many bytes are left for the
/// connection's user.
fn dialed(bytes: &[u8]) -> Result<usize> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("host");
    block_on(async {
        let listener = UnixListener::bind(&socket).unwrap();
        let device = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut from, mut to) = stream.split();
            // This fails if the peer has hung up.
            let _gone = to.write_all(bytes).await.and(to.shutdown().await);
            tokio::io::copy(&mut from, &mut tokio::io::sink()).await
        };
        let dial = async {
            let mut connection =
                Dialer::hybrid(socket.clone(), rustix::process::geteuid().as_raw(), Secret::new([7; 32])).dial(Purpose::Control).await?;
            let mut rest = Vec::new();
            connection.read_to_end(&mut rest).await.unwrap();
            Ok(rest.len())
        };
        tokio::join!(dial, device).0
    })
}

fn ready() -> Vec<u8> {
    let text = serde_json::to_vec(&Opened::Ready).unwrap();
    [&(text.len() as u32).to_be_bytes()[..], &text].concat()
}

#[test]
fn bytes_after_the_greeting_are_kept() {
    assert_eq!(dialed(&[b"OK 1073741824\n", ready().as_slice(), b"more"].concat()).unwrap(), 4);
    assert_eq!(dialed(&[b"OK 1073741824\n".as_slice(), b"more"].concat()).unwrap_err().code(), Code::Internal);
    for greeting in [&b""[..], b"OK", b"NO 1\n", b"\n", b"OK 11111111111111111111111111111111111111111111\n"] {
        let error = dialed(&[greeting, ready().as_slice()].concat()).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    }
}

/// A ttrpc message: its length, its stream, its type and flags, and as much data (containerd's
/// ttrpc PROTOCOL.md). An answer to the first call has stream 1 and type 2.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![vec(any::<u8>(), 0..60), Just(Vec::new())];
    let stream = prop_oneof![4 => Just(1_u32), 1 => any::<u32>()];
    let length = prop_oneof![6 => Just(None), 1 => any::<u32>().prop_map(Some), 1 => (0..100_u32).prop_map(Some)];
    let kind = prop_oneof![4 => Just(2_u8), 2 => 0..5_u8, 1 => any::<u8>()];
    (data, stream, length, kind, prop_oneof![3 => Just(0_u8), 1 => any::<u8>()]).prop_map(|(data, stream, length, kind, flags)| {
        let length = length.unwrap_or(data.len() as u32);
        [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, flags], &data].concat()
    })
}

proptest! {
    #[test]
    fn any_greeting_is_accepted_or_an_error(
        greeting in prop_oneof!["OK [0-9]{0,40}\n", "OK .{0,40}", "(?s).{0,50}"],
        answer in prop_oneof![Just(ready()), vec(any::<u8>(), 0..60)],
        more in vec(any::<u8>(), 0..20),
    ) {
        match dialed(&[greeting.as_bytes(), &answer, &more].concat()) {
            Ok(left) => {
                prop_assert!(greeting.starts_with("OK "), "{greeting:?}");
                prop_assert!(left <= answer.len() + more.len());
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn no_answer_of_a_guest_causes_a_panic(said in vec(message(), 0..6)) {
        // A panic in a task of the crate ttrpc would otherwise go unnoticed. In a release build it
        // ends the process.
        static PANICS: AtomicUsize = AtomicUsize::new(0);
        static HOOK: std::sync::Once = std::sync::Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                if info.location().is_some_and(|location| location.file().contains("ttrpc")) {
                    PANICS.fetch_add(1, Ordering::Relaxed);
                }
                before(info);
            }));
        });
        let before = PANICS.load(Ordering::Relaxed);
        let outcome = block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let tasks = GuestTasks::new(Either::Left(ours));
            let (mut theirs_in, mut theirs_out) = theirs.into_split();
            let container = magnetar_core::ids::ContainerId::parse("c").unwrap();
            let talk = async {
                // After the call has arrived.
                let mut first = [0; 1];
                theirs_in.read_exact(&mut first).await.unwrap();
                let _gone = theirs_out.write_all(&said.concat()).await.and(theirs_out.shutdown().await);
                let _all = tokio::io::copy(&mut theirs_in, &mut tokio::io::sink()).await;
            };
            let call = async {
                let tasks = tasks;
                tasks.statistics(&container).await
            };
            tokio::join!(call, talk).0
        });
        prop_assert_eq!(PANICS.load(Ordering::Relaxed), before, "{:?}", outcome);
    }
}

/// What comes of a request within a moment, where the agent is good but for its answer: `answer`,
/// and then silence, or the end.
fn asked(answer: &[u8], ends: bool) -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("host");
    block_on(async {
        let listener = UnixListener::bind(&socket).unwrap();
        let agent = async {
            let mut silent = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                while stream.read_u8().await.unwrap() != b'\n' {}
                stream.write_all(b"OK 1073741824\n").await.unwrap();
                let opening = frame::read::<Opening>(&mut stream, frame::FROM_ANYONE).await.unwrap();
                assert!(Secret::new([7; 32]).is_said(&mut stream).await.unwrap());
                stream.write_all(&ready()).await.unwrap();
                if opening.purpose == Purpose::Control {
                    frame::read::<Request>(&mut stream, frame::FROM_HOST).await.unwrap();
                    stream.write_all(answer).await.unwrap();
                }
                if !ends {
                    silent.push(stream);
                }
            }
        };
        let ask = async {
            let dialer = Dialer::hybrid(socket.clone(), rustix::process::geteuid().as_raw(), Secret::new([7; 32]));
            // A connection of its own, so that the agent serves one after the other.
            let control = dialer.dial(Purpose::Control).await?;
            let (requests, queue) = mpsc::channel(QUEUE);
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let guest = Guest { dialer, requests, tasks: GuestTasks::new(Either::Left(ours)) };
            let asked = guest.ask(Request::SwitchOff, Duration::from_millis(300));
            let carried = async {
                serve_requests(control, queue).await;
                std::future::pending::<()>().await
            };
            tokio::select! {
                outcome = asked => outcome,
                () = carried => unreachable!(),
            }
        };
        tokio::select! {
            outcome = ask => outcome,
            () = agent => unreachable!(),
        }
    })
}

#[test]
fn whatever_is_answered_to_a_request_is_an_error_in_time() {
    let framed = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    asked(&framed("\"Done\""), false).unwrap();
    for answer in [framed("\"Ready\""), framed("[7]"), framed("\u{0}"), u32::MAX.to_be_bytes().to_vec(), framed("\"Done\"")[..7].to_vec()] {
        for ends in [true, false] {
            assert_eq!(asked(&answer, ends).unwrap_err().code(), Code::Unavailable, "{answer:?}");
        }
    }
    let noise = asked(&framed(r#"{"Failed":"5 no\n\u001b[2J"}"#), false).unwrap_err();
    assert_eq!((noise.code(), noise.to_string().as_str()), (Code::NotFound, "no  [2J"));
}
