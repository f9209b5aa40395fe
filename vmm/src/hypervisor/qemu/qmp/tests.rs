// SPDX-License-Identifier: Apache-2.0

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::os::fd::AsFd;
use std::time::Duration;
use tokio::io::BufStream;
use tokio::net::UnixStream;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 1, "major": 11}}, "capabilities": ["oob"]}}"#;

/// A peer that greets and answers each line that it reads with the next of `answers`. Returns
/// what it has read.
async fn peer(stream: UnixStream, answers: &[&str]) -> Vec<Value> {
    let mut stream = BufStream::new(stream);
    let mut said = Vec::new();
    for answer in [&[GREETING], answers].concat() {
        stream.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap() == 0 {
            break;
        }
        said.push(serde_json::from_str(&line).unwrap());
    }
    said
}

async fn status(answers: &[&str]) -> (Result<Value>, Vec<Value>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let ask = async {
        let mut qmp = Qmp::begin(ours).await?;
        qmp.execute::<Value>("query-status").await
    };
    tokio::join!(ask, peer(theirs, answers))
}

#[tokio::test]
async fn events_and_old_answers_are_skipped() {
    let answer = concat!(
        r#"{"timestamp": {"seconds": 1}, "event": "RESUME"}"#,
        "\n",
        r#"{"return": {"status": "paused"}, "id": 1}"#,
        "\n",
        r#"{"return": {"status": "running", "running": true}, "id": 2}"#
    );
    let (status, said) = status(&[r#"{"return": {}, "id": 1}"#, answer]).await;
    assert_eq!(status.unwrap()["status"], "running");
    assert_eq!(said, [json!({"execute": "qmp_capabilities", "id": 1}), json!({"execute": "query-status", "id": 2})]);
}

#[tokio::test]
async fn a_refusal_has_qemus_message() {
    let refusal = r#"{"error": {"class": "GenericError", "desc": "not now"}, "id": 2}"#;
    let (status, _) = status(&[r#"{"return": {}, "id": 1}"#, refusal]).await;
    assert_eq!(status.unwrap_err().to_string(), "QEMU refuses query-status: not now");
}

#[tokio::test]
async fn an_old_refusal_is_ignored() {
    let answers = concat!(r#"{"error": {"desc": "too late"}, "id": 1}"#, "\n", r#"{"return": {}, "id": 2}"#);
    let (status, _) = status(&[r#"{"return": {}, "id": 1}"#, answers]).await;
    assert_eq!(status.unwrap(), json!({}));
}

#[tokio::test]
async fn device_deleted_is_noticed_before_and_after_the_answer() {
    let answer = r#"{"return": {}, "id": 2}"#;
    let event = |device: &str| format!(r#"{{"event": "DEVICE_DELETED", "data": {{"device": "{device}", "path": "/p"}}}}"#);
    for answers in [format!("{}\n{answer}", event("d")), format!("{answer}\n{}\n{}", event("other"), event("d"))] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let delete = async { Qmp::begin(ours).await?.delete_device("d").await };
        let answers = [r#"{"return": {}, "id": 1}"#, &answers];
        let (deleted, said) = tokio::join!(delete, peer(theirs, &answers));
        deleted.unwrap();
        assert_eq!(said[1], json!({"arguments": {"id": "d"}, "execute": "device_del", "id": 2}));
    }
}

#[tokio::test]
async fn a_descriptor_is_sent_with_its_command() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let order = async {
        let mut qmp = Qmp::begin(ours).await?;
        qmp.order("add-fd", json!({"fdset-id": 1}), Some(writer.as_fd())).await
    };
    let receive = async {
        let mut peer = theirs;
        peer.write_all(format!("{GREETING}\n{{\"return\": {{}}, \"id\": 1}}\n{{\"return\": {{}}, \"id\": 2}}\n").as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        while heard.iter().filter(|byte| **byte == b'\n').count() < 2 {
            let (bytes, descriptor) = peer.async_io(Interest::READABLE, || Ok(receive(&peer)?)).await.unwrap();
            heard.extend(bytes);
            if let Some(descriptor) = descriptor {
                return descriptor;
            }
        }
        panic!("no descriptor came");
    };
    let (ordered, received) = tokio::join!(order, receive);
    ordered.unwrap();
    drop(writer);
    std::io::Write::write_all(&mut std::fs::File::from(received), b"through").unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
    assert_eq!(text, "through");
}

fn receive(socket: &UnixStream) -> rustix::io::Result<(Vec<u8>, Option<std::os::fd::OwnedFd>)> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 256];
    let received = recvmsg(socket, &mut [std::io::IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::empty())?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((bytes[..received.bytes].to_vec(), descriptors.flatten().next()))
}

#[tokio::test]
async fn a_peer_that_speaks_another_protocol_is_an_error() {
    for answer in ["[]", r#"{"return":1,"id":-1}"#, "\u{0}", ""] {
        let (status, _) = status(&[answer]).await;
        assert!(status.as_ref().unwrap_err().to_string().contains("protocol"), "{answer:?}: {status:?}");
    }
}

#[tokio::test]
async fn an_endless_line_is_not_read_to_its_end() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let send = async { while theirs.write_all(&[b' '; 4096]).await.is_ok() {} };
    let (begun, ()) = tokio::join!(Qmp::begin(ours), send);
    assert!(begun.unwrap_err().to_string().contains("more than"));
}

#[tokio::test]
async fn a_closed_connection_is_unavailable() {
    let (status, _) = status(&[]).await;
    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"{\"QMP\"").await.unwrap();
    drop(theirs);
    assert_eq!(Qmp::begin(ours).await.unwrap_err().code(), Code::Unavailable);
}

/// A line that is valid or damaged.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let known = prop_oneof![
        Just(GREETING.to_owned()),
        (0..4_u64).prop_map(|id| format!(r#"{{"return": {{}}, "id": {id}}}"#)),
        (0..4_u64).prop_map(|id| format!(r#"{{"error": {{"class": "GenericError", "desc": "no"}}, "id": {id}}}"#)),
        ".{0,20}".prop_map(|name| json!({"event": name, "data": {"id": 1, "return": name}}).to_string()),
        r#"[\[\]{}":,0-9a-z\\ ]{0,40}"#,
        (1..5000_usize).prop_map(|depth| "[".repeat(depth)),
    ];
    prop_oneof![4 => known.prop_map(String::into_bytes), 1 => vec(any::<u8>(), 0..80)]
}

proptest! {
    #[test]
    fn whatever_qemu_says_is_an_answer_or_an_error(said in vec((line(), prop_oneof![9 => Just(true), 1 => Just(false)]), 0..12)) {
        let bytes: Vec<u8> = said.iter().flat_map(|(line, ends)| [line.as_slice(), if *ends { b"\r\n" } else { b"" }].concat()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answered = runtime.block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (mut theirs_in, mut theirs_out) = theirs.into_split();
            let ask = async {
                let mut qmp = Qmp::begin(ours).await?;
                qmp.execute::<Value>("query-status").await
            };
            let talk = async {
                // This fails if the peer has hung up.
                let _gone = theirs_out.write_all(&bytes).await;
                drop(theirs_out);
                tokio::io::copy(&mut theirs_in, &mut tokio::io::sink()).await
            };
            let both = async { tokio::join!(ask, talk).0 };
            tokio::time::timeout(Duration::from_secs(20), both).await.expect("it does not end")
        });
        let has = |id: &str| bytes.windows(id.len()).any(|part| part == id.as_bytes());
        prop_assert!(answered.is_err() || has(r#""QMP""#) && has(r#""id": 2"#), "{answered:?}");
    }
}

#[tokio::test]
async fn a_migration_ends_by_its_event_and_a_failed_one_has_qemus_reason() {
    let event = |status: &str| format!(r#"{{"event": "MIGRATION", "data": {{"status": "{status}"}}}}"#);
    let begun = r#"{"return": {}, "id": 2}"#;
    let run = async |answers: &[&str]| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let migrate = async { Qmp::begin(ours).await?.migrate("migrate-incoming", "file:/f").await };
        let answers = [&[r#"{"return": {}, "id": 1}"#], answers].concat();
        tokio::join!(migrate, peer(theirs, &answers))
    };
    // The last event may come before the answer.
    for answers in [
        format!("{begun}\n{}\n{}\n{}", event("setup"), event("active"), event("completed")),
        format!("{}\n{}\n{begun}", event("active"), event("completed")),
    ] {
        let (migrated, said) = run(&[&answers]).await;
        migrated.unwrap();
        assert_eq!(said[1], json!({"arguments": {"uri": "file:/f"}, "execute": "migrate-incoming", "id": 2}));
    }
    let failed = format!("{begun}\n{}", event("failed"));
    let reason = r#"{"return": {"status": "failed", "error-desc": "no such section"}, "id": 3}"#;
    let (migrated, _) = run(&[&failed, reason]).await;
    assert_eq!(migrated.unwrap_err().to_string(), "QEMU has not carried out migrate-incoming: no such section");
}
