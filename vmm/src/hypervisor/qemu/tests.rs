// SPDX-License-Identifier: Apache-2.0
//! The command line, and the machine's state.

use super::double::{self, Answer};
use super::*;
use crate::host::vsock::{Cid, Vsock};
use crate::hypervisor::snapshots::SavedState;
use crate::machine::spec::Virtiofs;
use serde_json::Value;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The machine of the tests. The comma is in a path that QEMU would split there.
fn spec(nics: usize) -> VmSpec {
    let mut spec = VmSpec::of_tests(nics);
    spec.share = spec.share.map(|share| Virtiofs { socket: "/pod/share,1".into(), ..share });
    spec
}

fn connection() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn carried<'a>(spec: &'a VmSpec, connection: &'a OwnedFd) -> VsockAttachment<'a> {
    match &spec.vsock {
        Vsock::Kernel(cid) => VsockAttachment::Kernel(cid),
        Vsock::User { .. } | Vsock::Own => VsockAttachment::User(connection.as_fd()),
    }
}

fn arguments(spec: &VmSpec) -> Vec<String> {
    arguments_of(MachineKind::Q35, spec)
}

fn arguments_of(machine: MachineKind, spec: &VmSpec) -> Vec<String> {
    let connection = connection();
    let invocation = Qemu::new("/q".into(), machine).plan(spec, carried(spec, &connection));
    invocation.arguments.into_iter().map(|word| word.into_string().unwrap()).collect()
}

/// All values of an option.
fn values<'a>(arguments: &'a [String], option: &str) -> Vec<&'a str> {
    arguments.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

#[test]
fn the_same_machine_has_the_same_command_line() {
    assert_eq!(arguments(&spec(2)), arguments(&spec(2)));
}

#[test]
fn the_command_line_has_the_pods_devices() {
    let arguments = arguments(&spec(2));
    assert_eq!(values(&arguments, "-smp"), ["2"]);
    assert_eq!(values(&arguments, "-m"), ["size=256M"]);
    assert_eq!(values(&arguments, "-object"), ["memory-backend-memfd,id=ram,size=256M,share=on"]);
    assert!(values(&arguments, "-append")[0].ends_with(" a=b c"));
    let devices = values(&arguments, "-device").join(" ");
    for device in [
        "vhost-user-fs-pci,tag=magnetar,chardev=share,queue-size=1024",
        "vhost-user-vsock-pci,chardev=vsock",
        "mac=02:00:00:00:00:01,host_mtu=1450",
    ] {
        assert!(devices.contains(device), "{device}: {devices}");
    }
    assert!(values(&arguments, "-chardev").contains(&"socket,id=share,path=/pod/share,,1"), "a comma is doubled");
}

#[test]
fn a_microvm_has_the_same_devices_without_pci() {
    let arguments = arguments_of(MachineKind::Microvm, &spec(1));
    assert!(values(&arguments, "-machine")[0].starts_with("microvm,"));
    assert!(!arguments.iter().any(|word| word.contains("-pci") || word.contains("romfile")), "{arguments:?}");
    let devices = values(&arguments, "-device").join(" ");
    for device in [
        "virtio-rng-device",
        "isa-serial,chardev=console",
        "vhost-user-fs-device,tag=magnetar,chardev=share,queue-size=1024",
        "vhost-user-vsock-device,chardev=vsock",
        "virtio-net-device,netdev=net0,mac=02:00:00:00:00:00,host_mtu=1450",
    ] {
        assert!(devices.contains(device), "{device}: {devices}");
    }
}

/// A machine that may grow to 1 GiB and 4 processors.
fn growing(acceleration: Acceleration) -> VmSpec {
    VmSpec { most: Size { memory_mib: 1000, vcpus: 4 }, acceleration, ..spec(0) }
}

#[test]
fn a_machine_that_may_grow_has_a_place_for_memory_and_processors() {
    let emulated = arguments(&growing(Acceleration::Tcg));
    assert_eq!(values(&emulated, "-m"), ["size=256M,maxmem=1024M"], "the kernel takes memory in steps of 128 MiB");
    assert!(values(&emulated, "-object").contains(&"memory-backend-memfd,id=more,size=768M,share=on,reserve=off"), "{emulated:?}");
    let devices = values(&emulated, "-device").join(" ");
    assert!(devices.contains("virtio-mem-pci,disable-legacy=on,id=memory,memdev=more,block-size=2M,requested-size=0"), "{devices}");
    assert!(values(&emulated, "-append")[0].contains(" swiotlb=noforce maxcpus=2 "));
    assert_eq!(values(&emulated, "-smp"), ["4"], "Linux ignores processors that come later under an emulator");
    let plugged = arguments(&growing(Acceleration::Kvm));
    assert_eq!(values(&plugged, "-smp"), ["cpus=2,maxcpus=4"]);
    assert!(!values(&plugged, "-append")[0].contains("maxcpus="));
}

#[test]
fn a_machine_without_hot_plug_cannot_change_its_size() {
    let spec = growing(Acceleration::Tcg);
    let microvm = arguments_of(MachineKind::Microvm, &spec);
    assert_eq!((values(&microvm, "-smp"), values(&microvm, "-m")), (vec!["2"], vec!["size=256M"]));
    assert!(!microvm.join(" ").contains("virtio-mem") && !microvm.join(" ").contains("maxcpus="), "{microvm:?}");
    assert!(Growth::of(&spec, MachineKind::Microvm).is_none() && Growth::of(&spec, MachineKind::Q35).is_some());
    assert!(Growth::of(&self::spec(0), MachineKind::Q35).is_none(), "it may not grow");
}

#[test]
fn free_memory_is_reported_unless_it_consists_of_huge_pages() {
    let reports = |spec: &VmSpec| arguments(spec).contains(&"virtio-balloon-pci,disable-legacy=on,free-page-reporting=on".into());
    assert!(reports(&spec(0)));
    assert!(!reports(&VmSpec { huge_pages: true, ..spec(0) }));
}

#[test]
fn huge_pages_back_the_memory_if_configured() {
    let mut spec = spec(0);
    spec.huge_pages = true;
    assert_eq!(values(&arguments(&spec), "-object"), ["memory-backend-memfd,id=ram,size=256M,share=on,hugetlb=on,hugetlbsize=2M"]);
}

#[test]
fn inherited_descriptors_have_the_numbers_in_the_options() {
    let spec = spec(2);
    let connection = connection();
    let invocation = Qemu::new("/q".into(), MachineKind::Q35).plan(&spec, carried(&spec, &connection));
    assert_eq!(invocation.listeners().collect::<Vec<_>>(), [Path::new("/pod/qmp.sock"), Path::new("/pod/debug.sock")]);
    let arguments = arguments(&spec);
    assert_eq!(values(&arguments, "-netdev"), ["tap,id=net0,fd=6", "tap,id=net1,fd=7"]);
    assert_eq!(values(&arguments, "-chardev")[1..3], ["socket,id=qmp,fd=3,server=on,wait=off", "socket,id=debug,fd=4,server=on,wait=off"]);
    assert_eq!(values(&arguments, "-chardev")[4], "socket,id=vsock,fd=5");
}

#[test]
fn the_kernels_vsock_is_inherited() {
    let mut spec = spec(1);
    let device = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    spec.vsock = Vsock::Kernel(Cid { number: 4_000_000_001, device: Arc::new(device) });
    let arguments = arguments(&spec);
    assert!(values(&arguments, "-device").contains(&"vhost-vsock-pci,vhostfd=5,guest-cid=4000000001"), "{arguments:?}");
    assert_eq!(values(&arguments, "-netdev"), ["tap,id=net0,fd=6"]);
    assert!(!arguments.join(" ").contains("vhost-user-vsock"), "{arguments:?}");
}

#[test]
fn qemu_is_confined() {
    let arguments = arguments(&spec(0));
    assert!(values(&arguments, "-sandbox")[0].contains("spawn=deny"));
    assert_eq!(values(&arguments, "-run-with"), ["user=2000000007:2000000007,chroot=/pod"]);
    let (spec, connection) = (spec(0), connection());
    let Confinement { capabilities, pids, files, calls, .. } =
        Qemu::new("/q".into(), MachineKind::Q35).plan(&spec, carried(&spec, &connection)).confinement;
    assert_eq!((capabilities, pids, calls), (UNTIL_CONFINED, Pids::ItselfAndHolder, Calls::DenyList));
    let files = files.unwrap();
    assert!(files.read.contains(&spec.kernel) && files.own.contains(&spec.dir), "{files:?}");
    assert!(!files.own.contains(&"/dev/kvm".into()), "an emulated machine has no business with it");
    assert!(arguments.iter().any(|word| word == "-nodefaults") && arguments.iter().any(|word| word == "-no-user-config"));
}

#[test]
fn an_emulated_guest_clears_pages_on_allocation() {
    assert!(values(&arguments(&spec(0)), "-append")[0].contains(" init_on_alloc=1 "));
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
fn kvm_passes_the_hosts_processor() {
    let mut spec = spec(0);
    spec.acceleration = Acceleration::Kvm;
    let arguments = arguments(&spec);
    assert_eq!(values(&arguments, "-accel"), ["kvm"]);
    assert!(values(&arguments, "-cpu")[0].starts_with("host,"));
}

/// A QEMU that answers every question with `status`.
async fn fake(stream: UnixStream, status: &str) {
    let answer = |name: &str, _: &Value| match name {
        "qmp_capabilities" => Answer::returns(serde_json::json!({})),
        "query-status" => Answer::returns(serde_json::json!({ "status": status, "running": false })),
        other => panic!("{other}"),
    };
    double::serve(stream, Value::Null, answer).await;
}

#[tokio::test]
async fn qemus_states_are_translated() {
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
            let mut connection = QemuControl { qmp: Qmp::begin(ours).await.unwrap(), growth: None };
            assert_eq!(connection.state().await.unwrap(), state);
        };
        tokio::join!(ask, fake(theirs, word));
    }
}

/// The arguments of a machine to save and of its copy.
fn saved_and_copy(spec: &VmSpec) -> [Vec<String>; 2] {
    let (memory, qemu) = (connection(), Qemu::new("/q".into(), MachineKind::Q35));
    let snapshots = qemu.snapshots().unwrap();
    [snapshots.plan_saved(spec, memory.as_fd()), snapshots.plan_copy(spec, memory.as_fd())]
        .map(|invocation| invocation.arguments.into_iter().map(|word| word.into_string().unwrap()).collect())
}

#[test]
fn a_copy_has_the_devices_of_the_saved_machine_in_the_same_order() {
    let most = Size { memory_mib: 1024, vcpus: 4 };
    let [saved, copy] = saved_and_copy(&VmSpec { most, ..spec(2) });
    for option in ["-machine", "-cpu", "-smp", "-m", "-object", "-device", "-netdev", "-chardev"] {
        assert_eq!(values(&saved, option), values(&copy, option), "{option}");
    }
    let memory = [
        "memory-backend-file,id=ram,size=256M,share=on,mem-path=/proc/self/fd/3",
        "memory-backend-memfd,id=more,size=768M,share=on,reserve=off",
    ];
    assert_eq!(values(&copy, "-object"), memory);
    let devices = values(&copy, "-device").join(" ");
    assert!(devices.contains("virtio-mem") && devices.contains("virtio-balloon"), "it grows: {devices}");
    assert!(!devices.contains("vsock") && devices.contains("pcie-root-port,id=rp0") && devices.contains("vmgenid,guid=auto"), "{devices}");
    assert!(devices.contains("mac=02:6d:61:67:00:01") && !devices.contains("mac=02:00:00:00:00:01"), "{devices}");
    assert!(values(&saved, "-append")[0].ends_with(" a=b c magnetar.template"));
    assert_eq!((values(&copy, "-incoming"), values(&saved, "-incoming").len()), (vec!["defer"], 0));
    assert!(!copy.iter().any(|word| word == "-kernel" || word == "-append" || word == "-initrd"), "{copy:?}");
}

#[test]
fn a_copy_and_a_machine_to_save_are_confined_as_any_other() {
    for arguments in saved_and_copy(&spec(1)) {
        assert!(values(&arguments, "-sandbox")[0].contains("spawn=deny"));
        assert_eq!(values(&arguments, "-run-with"), ["user=2000000007:2000000007,chroot=/pod"]);
    }
}

#[test]
fn machines_that_differ_in_size_devices_or_kernel_parameters_are_not_compatible() {
    let qemu = Qemu::new("/q".into(), MachineKind::Q35);
    let words = |spec: &VmSpec| qemu.snapshots().unwrap().compatibility(spec);
    let first = words(&spec(1));
    assert_eq!(first, words(&spec(1)));
    let changes: [fn(&mut VmSpec); 6] = [
        |spec| spec.most.memory_mib = 4096,
        |spec| spec.vcpus = 3,
        |spec| spec.memory_mib = 255,
        |spec| spec.acceleration = Acceleration::Kvm,
        |spec| spec.parameters.push("d".into()),
        |spec| spec.nics.clear(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut other = spec(1);
        change(&mut other);
        assert_ne!(first, words(&other), "change {number}");
    }
    assert!(Qemu::new("/q".into(), MachineKind::Microvm).snapshots().is_none());
}

/// A QEMU of this version that carries out everything. Returns the commands, with their arguments.
async fn obedient(stream: UnixStream) -> Vec<(String, Value)> {
    let answer = |name: &str, arguments: &Value| {
        let migrates = name.starts_with("migrate") && arguments["uri"].is_string();
        let after = migrates.then(|| serde_json::json!({ "event": "MIGRATION", "data": { "status": "completed" } }));
        Answer { after, ..Answer::returns(serde_json::json!({})) }
    };
    double::serve(stream, 7.into(), answer).await
}

async fn restore(version: &str) -> (Result<()>, Vec<(String, Value)>) {
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::UnixListener::bind(dir.path().join(CONTROL)).unwrap();
    let spec = VmSpec { dir: dir.path().to_owned(), ..spec(1) };
    let (qemu, connection, state) = (Qemu::new("/q".into(), MachineKind::Q35), connection(), connection());
    let ask = async {
        let saved = SavedState { file: state.as_fd(), version };
        qemu.snapshots().unwrap().restore(&spec, saved, carried(&spec, &connection)).await.map(drop)
    };
    let serve = async { obedient(listener.accept().await.unwrap().0).await };
    tokio::join!(ask, serve)
}

#[tokio::test]
async fn a_restored_machine_gets_its_vsock_before_it_goes_on() {
    let (restored, commands) = restore("7").await;
    restored.unwrap();
    let names: Vec<&str> = commands.iter().map(|(name, _)| name.as_str()).collect();
    let loaded = ["qmp_capabilities", "migrate-set-capabilities", "migrate-set-parameters", "add-fd", "migrate-incoming", "remove-fd"];
    assert_eq!(names[..6], loaded);
    assert_eq!(names[6..], ["getfd", "chardev-add", "device_add", "cont"]);
    assert_eq!((&commands[8].1["driver"], &commands[8].1["bus"]), (&"vhost-user-vsock-pci".into(), &"rp0".into()));
}

#[tokio::test]
async fn another_versions_state_is_not_loaded() {
    let (restored, commands) = restore("8").await;
    assert_eq!(restored.unwrap_err().to_string(), "QEMU 7 cannot load what QEMU 8 has saved");
    assert_eq!(commands.len(), 1);
}
