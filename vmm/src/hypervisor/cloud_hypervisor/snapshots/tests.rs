// SPDX-License-Identifier: Apache-2.0
//! The processes of a saved machine and of its copies, the requests to them, and their files.

use super::super::carrier::Carrier;
use super::super::tests::{conversation, done, http, spec};
use super::*;
use crate::hypervisor::Hypervisor;
use crate::machine::size::Size;
use magnetar_core::error::Code;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use tokio::io::AsyncWriteExt;

fn hypervisor(emulates: bool) -> CloudHypervisor {
    CloudHypervisor { program: "/c".into(), emulates, landlock: true }
}

fn words(invocation: Invocation<'_>) -> Vec<String> {
    invocation.arguments.into_iter().map(|word| word.into_string().unwrap()).collect()
}

#[test]
fn a_saved_machine_has_no_vsock_and_the_hardware_addresses_of_a_template() {
    let (memory, hypervisor) = (tempfile::tempfile().unwrap(), hypervisor(false));
    let saved = words(hypervisor.plan_saved(&spec(2), memory.as_fd()));
    let rules = saved.iter().position(|word| word == "--landlock-rules").unwrap();
    assert_eq!(saved[rules + 1..rules + 3], ["path=/dev/disks,access=rw", "path=/proc/self/fd/5,access=rw"]);
    assert!(!saved.iter().any(|word| word.starts_with("--vsock")), "{saved:?}");
    let line = saved.iter().position(|word| word == "--cmdline").unwrap();
    assert!(saved[line + 1].ends_with(" a=b c magnetar.template"), "{saved:?}");
    let nics = ["fd=[9],mac=02:6d:61:67:00:00,num_queues=2,id=nic-0", "fd=[10],mac=02:6d:61:67:00:01,num_queues=2,id=nic-1"];
    assert_eq!(saved[saved.len() - 2..], nics);
}

#[test]
fn a_copy_has_no_machine_of_its_own_and_may_read_the_templates_memory() {
    let memory = tempfile::tempfile().unwrap();
    let hypervisor = hypervisor(false);
    let (invocation, directory, reached) = hypervisor.copy(&spec(1), memory.as_fd());
    assert_eq!((directory, reached), ("/proc/self/fd/5".into(), "/proc/self/fd/9".into()));
    let ours = format!("/proc/self/fd/{}", memory.as_raw_fd());
    assert!(invocation.confinement.files.as_ref().unwrap().read.contains(&ours.into()));
    assert_eq!(words(invocation), ["--api-socket=fd=3", "--event-monitor=fd=4", "--seccomp=true"]);
}

#[test]
fn machines_that_differ_are_not_compatible() {
    let hypervisor = hypervisor(false);
    let first = hypervisor.compatibility(&spec(1));
    assert_eq!(first, hypervisor.compatibility(&spec(1)));
    let changes: [fn(&mut VmSpec); 6] = [
        |spec| spec.most = Size { memory_mib: 4096, vcpus: 2 },
        |spec| spec.most = Size { memory_mib: 256, vcpus: 3 },
        |spec| spec.vcpus = 1,
        |spec| spec.memory_mib = 254,
        |spec| spec.parameters.push("d".into()),
        |spec| spec.nics.clear(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut other = spec(1);
        change(&mut other);
        assert_ne!(first, hypervisor.compatibility(&other), "change {number}");
    }
    assert!(hypervisor.snapshots().is_some() && self::hypervisor(true).snapshots().is_none(), "a double saves nothing");
}

#[test]
fn versions_that_were_not_tried_save_no_machines() {
    let version = |major| Version { text: format!("{major}.0.0"), major };
    assert_eq!([52, 53].map(|major| are_supported(&version(major))), [false, true]);
}

fn directory(path: &Path) -> Directory {
    Directory { path: path.to_owned(), reached: "/proc/self/fd/5".into() }
}

#[tokio::test]
async fn a_machine_is_paused_and_saved_and_laid_out_for_its_copy() {
    let (template, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (name, text) in [(CONFIG, "{\"a\": 1}"), (STATE, "{\"b\": \"\\n\"}"), (MEMORY, "memory")] {
        std::fs::write(template.path().join(name), text).unwrap();
    }
    let state = tempfile::tempfile().unwrap();
    let (saved, requests) =
        conversation(vec![done(), done()], async |api| save(&api, &directory(template.path()), state.as_fd()).await).await;
    let orders = ["PUT vm.pause", r#"PUT vm.snapshot {"destination_url":"file:///proc/self/fd/5"}"#];
    assert_eq!(requests, orders);
    let mut memory = String::new();
    saved.unwrap().read_to_string(&mut memory).unwrap();
    assert_eq!(memory, "memory");
    lay_out(copy.path(), Path::new("/proc/self/fd/9"), state.as_fd()).unwrap();
    for name in [CONFIG, STATE] {
        assert_eq!(std::fs::read(copy.path().join(name)).unwrap(), std::fs::read(template.path().join(name)).unwrap());
    }
    assert_eq!(std::fs::read_link(copy.path().join(MEMORY)).unwrap(), Path::new("/proc/self/fd/9"));
    clear_away(copy.path()).unwrap();
    assert_eq!(std::fs::read_dir(copy.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_machine_that_is_not_saved_whole_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(CONFIG), "{}").unwrap();
    let state = tempfile::tempfile().unwrap();
    let save =
        async |answers| conversation(answers, async |api| save(&api, &directory(dir.path()), state.as_fd()).await.unwrap_err()).await.0;
    let error = save(vec![done(), http("500 Internal Server Error", r#"["the disk is full"]"#)]).await;
    assert_eq!(error.to_string(), "Cloud Hypervisor refuses vm.snapshot: the disk is full");
    let error = save(vec![done(), done()]).await;
    assert!(error.to_string().starts_with("Cloud Hypervisor has not written state.json"), "{error}");
    // A link would lead elsewhere.
    std::os::unix::fs::symlink("/etc/hostname", dir.path().join(STATE)).unwrap();
    let error = save(vec![done(), done()]).await;
    assert!(error.to_string().starts_with("Cloud Hypervisor has not written state.json"), "{error}");
}

#[test]
fn a_state_that_is_damaged_is_refused_and_no_file_is_replaced() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
    let lay_out = || lay_out(dir.path(), Path::new("/m"), state.as_fd()).unwrap_err();
    let mut writer = &state;
    for text in ["", "{\"config\": \"{}\"", "{\"config\": 7, \"state\": \"{}\"}"] {
        state.set_len(0).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        let error = lay_out();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.to_string().starts_with("a saved machine's state is damaged"), "{error}");
    }
    let whole = tempfile::tempfile().unwrap();
    (&whole).write_all(br#"{"config":"{}","state":"{}"}"#).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", dir.path().join(CONFIG)).unwrap();
    let error = super::lay_out(dir.path(), Path::new("/m"), whole.as_fd()).unwrap_err();
    assert!(error.to_string().contains("File exists"), "{error}");
}

#[tokio::test]
async fn a_restored_machine_gets_its_taps_and_its_vsock_before_it_goes_on() {
    let answers = vec![done(), http("200 OK", r#"{"id":"_vsock7","bdf":"0000:00:07.0"}"#), done()];
    let (restored, requests) =
        conversation(answers, async |api| restore(&api, Path::new("/proc/self/fd/5"), &spec(2), Path::new("/pod/v/host")).await).await;
    restored.unwrap();
    let (path, order) = requests[0].split_at("PUT vm.restore ".len());
    let wanted =
        json!({ "source_url": "file:///proc/self/fd/5", "net_fds": [{ "id": "nic-0", "num_fds": 1 }, { "id": "nic-1", "num_fds": 1 }] });
    assert_eq!((path, serde_json::from_str::<Value>(order).unwrap()), ("PUT vm.restore ", wanted));
    let rest = [r#"PUT vm.add-vsock {"cid":3,"socket":"/proc/self/fd/5/host"}"#, "PUT vm.resume"];
    assert_eq!(requests[1..], rest);
}

#[tokio::test]
async fn descriptors_go_with_the_first_byte_and_only_once() {
    let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
    let (first, second) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut carrier = Carrier::new(ours, &[first.as_fd(), second.as_fd()]).unwrap();
    let theirs = theirs.into_std().unwrap();
    theirs.set_nonblocking(false).unwrap();
    for (text, descriptors) in [("one", 2), ("two", 0)] {
        carrier.write_all(text.as_bytes()).await.unwrap();
        let mut bytes = [0; 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(&theirs, &mut [IoSliceMut::new(&mut bytes)], &mut message, RecvFlags::CMSG_CLOEXEC).unwrap();
        let received: usize =
            message.drain().map(|part| if let RecvAncillaryMessage::ScmRights(all) = part { all.count() } else { 0 }).sum();
        assert_eq!((&bytes[..got.bytes], received), (text.as_bytes(), descriptors));
    }
    let many = vec![first.as_fd(); 65];
    let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
    assert!(Carrier::new(ours, &many).unwrap_err().to_string().contains("65 descriptors are too many"));
}
