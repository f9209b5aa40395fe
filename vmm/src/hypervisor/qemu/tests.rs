// SPDX-License-Identifier: Apache-2.0
//! The command line, and the machine's state.

use super::*;
use crate::host::vsock::{Cid, Vsock};
use crate::machine::spec::{Users, Virtiofs};
use magnetar_core::ids::SandboxId;
use magnetar_vm_agent_api::network::Mac;
use serde_json::Value;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};

fn spec(nics: usize) -> VmSpec {
    let tap = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    VmSpec {
        sandbox: SandboxId::parse("pod-1").unwrap(),
        kernel: "/k".into(),
        initramfs: "/i".into(),
        parameters: vec!["a=b".into(), "c".into()],
        memory_mib: 256,
        huge_pages: false,
        vcpus: 2,
        acceleration: Acceleration::Tcg,
        share: Some(Virtiofs { program: "/f".into(), directory: "/pod/share".into(), socket: "/pod/share,1".into() }),
        vsock: Vsock::User { program: "/v".into() },
        nics: (0..nics).map(|n| Nic { tap: tap(), mac: Mac([2, 0, 0, 0, 0, n as u8]), mtu: 1450 }).collect(),
        dir: "/pod".into(),
        users: Users { hypervisor: 2_000_000_007, vsock: 2_000_000_008 },
    }
}

fn connection() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn carried<'a>(spec: &'a VmSpec, connection: &'a OwnedFd) -> Carried<'a> {
    match &spec.vsock {
        Vsock::Kernel(cid) => Carried::Kernel(cid),
        Vsock::User { .. } | Vsock::Own => Carried::User(connection.as_fd()),
    }
}

fn words(spec: &VmSpec) -> Vec<String> {
    words_of(MachineKind::Q35, spec)
}

fn words_of(machine: MachineKind, spec: &VmSpec) -> Vec<String> {
    let connection = connection();
    let invocation = Qemu::new("/q".into(), machine).plan(spec, carried(spec, &connection));
    invocation.arguments.into_iter().map(|word| word.into_string().unwrap()).collect()
}

/// All values of an option.
fn values<'a>(words: &'a [String], option: &str) -> Vec<&'a str> {
    words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

#[test]
fn the_same_machine_has_the_same_command_line() {
    assert_eq!(words(&spec(2)), words(&spec(2)));
}

#[test]
fn the_guest_has_what_the_pod_has() {
    let words = words(&spec(2));
    assert_eq!(values(&words, "-smp"), ["2"]);
    assert_eq!(values(&words, "-m"), ["size=256M"]);
    assert_eq!(values(&words, "-object"), ["memory-backend-memfd,id=ram,size=256M,share=on"]);
    assert!(values(&words, "-append")[0].ends_with(" a=b c"));
    let devices = values(&words, "-device").join(" ");
    for device in
        ["vhost-user-fs-pci,tag=magnetar,chardev=share", "vhost-user-vsock-pci,chardev=vsock", "mac=02:00:00:00:00:01,host_mtu=1450"]
    {
        assert!(devices.contains(device), "{device}: {devices}");
    }
    assert!(values(&words, "-chardev").contains(&"socket,id=share,path=/pod/share,,1"), "a comma is doubled");
}

#[test]
fn a_microvm_has_the_same_devices_without_pci() {
    let words = words_of(MachineKind::Microvm, &spec(1));
    assert!(values(&words, "-machine")[0].starts_with("microvm,"));
    assert!(!words.iter().any(|word| word.contains("-pci") || word.contains("romfile")), "{words:?}");
    let devices = values(&words, "-device").join(" ");
    for device in [
        "virtio-rng-device",
        "isa-serial,chardev=console",
        "vhost-user-fs-device,tag=magnetar,chardev=share",
        "vhost-user-vsock-device,chardev=vsock",
        "virtio-net-device,netdev=net0,mac=02:00:00:00:00:00,host_mtu=1450",
    ] {
        assert!(devices.contains(device), "{device}: {devices}");
    }
}

#[test]
fn memory_is_made_of_huge_pages_when_it_should_be() {
    let mut spec = spec(0);
    spec.huge_pages = true;
    assert_eq!(values(&words(&spec), "-object"), ["memory-backend-memfd,id=ram,size=256M,share=on,hugetlb=on,hugetlbsize=2M"]);
}

#[test]
fn descriptors_have_the_numbers_that_are_named() {
    let spec = spec(2);
    let connection = connection();
    let invocation = Qemu::new("/q".into(), MachineKind::Q35).plan(&spec, carried(&spec, &connection));
    assert_eq!(invocation.listeners().collect::<Vec<_>>(), [Path::new("/pod/qmp.sock"), Path::new("/pod/debug.sock")]);
    let words = words(&spec);
    assert_eq!(values(&words, "-netdev"), ["tap,id=net0,fd=6", "tap,id=net1,fd=7"]);
    assert_eq!(values(&words, "-chardev")[1..3], ["socket,id=qmp,fd=3,server=on,wait=off", "socket,id=debug,fd=4,server=on,wait=off"]);
    assert_eq!(values(&words, "-chardev")[4], "socket,id=vsock,fd=5");
}

#[test]
fn the_kernels_vsock_is_inherited() {
    let mut spec = spec(1);
    let device = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    spec.vsock = Vsock::Kernel(Cid { number: 4_000_000_001, device: Arc::new(device) });
    let words = words(&spec);
    assert!(values(&words, "-device").contains(&"vhost-vsock-pci,vhostfd=5,guest-cid=4000000001"), "{words:?}");
    assert_eq!(values(&words, "-netdev"), ["tap,id=net0,fd=6"]);
    assert!(!words.join(" ").contains("vhost-user-vsock"), "{words:?}");
}

#[test]
fn it_is_confined() {
    let words = words(&spec(0));
    assert!(values(&words, "-sandbox")[0].contains("spawn=deny"));
    assert_eq!(values(&words, "-run-with"), ["user=2000000007:2000000007,chroot=/pod"]);
    let (spec, connection) = (spec(0), connection());
    let Confinement { capabilities, pids, files, calls, .. } =
        Qemu::new("/q".into(), MachineKind::Q35).plan(&spec, carried(&spec, &connection)).confinement;
    assert_eq!((capabilities, pids, calls), (UNTIL_CONFINED, Pids::ItselfAndHolder, Calls::NoOthers));
    let files = files.unwrap();
    assert!(files.read.contains(&spec.kernel) && files.own.contains(&spec.dir), "{files:?}");
    assert!(!files.own.contains(&"/dev/kvm".into()), "an emulated machine has no business with it");
    assert!(words.iter().any(|word| word == "-nodefaults") && words.iter().any(|word| word == "-no-user-config"));
}

#[test]
fn an_emulated_guest_clears_pages_before_others_write_to_them() {
    assert!(values(&words(&spec(0)), "-append")[0].contains(" init_on_alloc=1 "));
}

#[test]
fn only_an_emulated_guest_is_told_its_clocks_rate() {
    let mut spec = spec(0);
    let told = |spec: &VmSpec| {
        let connection = connection();
        let invocation = Qemu::new("/q".into(), MachineKind::Q35).measuring().plan(spec, carried(spec, &connection));
        invocation.arguments.iter().any(|word| word.to_string_lossy().contains(" tsc_early_khz="))
    };
    assert_eq!(told(&spec), Clock::begin().is_some());
    spec.acceleration = Acceleration::Kvm;
    assert!(!told(&spec));
}

#[test]
fn kvm_has_the_hosts_processor() {
    let mut spec = spec(0);
    spec.acceleration = Acceleration::Kvm;
    let words = words(&spec);
    assert_eq!(values(&words, "-accel"), ["kvm"]);
    assert!(values(&words, "-cpu")[0].starts_with("host,"));
}

/// A QEMU that says it is in `status`, for as long as somebody asks.
async fn fake(stream: UnixStream, status: &str) {
    let mut stream = BufStream::new(stream);
    stream.write_all(b"{\"QMP\": {}}\n").await.unwrap();
    stream.flush().await.unwrap();
    let mut line = String::new();
    while stream.read_line(&mut line).await.unwrap() > 0 {
        let command: Value = serde_json::from_str(&line).unwrap();
        line.clear();
        let answer = match command["execute"].as_str().unwrap() {
            "qmp_capabilities" => serde_json::json!({}),
            "query-status" => serde_json::json!({ "status": status, "running": false }),
            other => panic!("{other}"),
        };
        let answer = serde_json::json!({ "return": answer, "id": command["id"] });
        stream.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
}

#[tokio::test]
async fn states_are_told() {
    let states = [
        ("running", MachineState::Running),
        ("paused", MachineState::Paused),
        ("guest-panicked", MachineState::Panicked),
        ("prelaunch", MachineState::Other),
        ("a-state-to-come", MachineState::Other),
    ];
    for (word, state) in states {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ask = async {
            let mut connection = QemuControl(Qmp::begin(ours).await.unwrap());
            assert_eq!(connection.state().await.unwrap(), state);
        };
        tokio::join!(ask, fake(theirs, word));
    }
}
