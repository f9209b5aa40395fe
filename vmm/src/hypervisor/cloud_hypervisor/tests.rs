// SPDX-License-Identifier: Apache-2.0
//! The command line, and requests to an API that answers well, late, never or with rubbish.

use super::*;
use crate::host::vsock::Vsock;
use magnetar_core::error::Code;
use std::collections::HashMap;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

pub(super) fn spec(nics: usize) -> VmSpec {
    VmSpec { acceleration: Acceleration::Kvm, vsock: Vsock::Own, ..VmSpec::of_tests(nics) }
}

fn arguments(spec: &VmSpec, landlock: bool) -> Vec<String> {
    let hypervisor = CloudHypervisor { program: "/c".into(), emulates: false, landlock };
    let invocation = hypervisor.plan(spec, VsockAttachment::Own(Path::new("/pod/v/host")));
    invocation.arguments.into_iter().map(|word| word.into_string().unwrap()).collect()
}

#[test]
fn the_machine_is_on_the_command_line() {
    let wanted = [
        "--api-socket=fd=3",
        "--event-monitor=fd=4",
        "--seccomp=true",
        "--landlock",
        "--landlock-rules=path=/dev/disks,access=rw",
        "--cpus=boot=2,max=2,nested=off",
        "--memory=size=256M,shared=on",
        "--kernel",
        "/proc/self/fd/6",
        "--initramfs",
        "/proc/self/fd/7",
        "--cmdline",
        "console=ttyS0 quiet panic=-1 reboot=t a=b c",
        "--serial=tty",
        "--console=off",
        "--rng=src=/dev/urandom",
        "--balloon=size=0,free_page_reporting=on",
        "--fs=tag=magnetar,socket=/proc/self/fd/8,num_queues=1,queue_size=1024",
        "--vsock=cid=3,socket=/proc/self/fd/5/host",
        "--net",
        "fd=[9],mac=02:00:00:00:00:00,num_queues=2,id=nic-0",
        "fd=[10],mac=02:00:00:00:00:01,num_queues=2,id=nic-1",
    ];
    assert_eq!(arguments(&spec(2), true), wanted);
    assert!(!arguments(&spec(0), false).iter().any(|word| word == "--net" || word == "--landlock"));
}

#[test]
fn huge_pages_are_asked_for() {
    let huge = arguments(&VmSpec { huge_pages: true, ..spec(0) }, true);
    assert!(huge.contains(&"--memory=size=256M,shared=on,hugepages=on,hugepage_size=2M".into()), "{huge:?}");
    assert!(!huge.iter().any(|word| word.starts_with("--balloon")), "{huge:?}");
}

#[test]
fn a_machine_that_may_grow_has_room_for_it_from_the_start() {
    let most = Size { memory_mib: 1000, vcpus: 4 };
    let may_grow = VmSpec { most, ..spec(0) };
    let words = arguments(&may_grow, true);
    for wanted in ["--cpus=boot=2,max=4,nested=off", "--memory=size=256M,shared=on,hotplug_method=virtio-mem,hotplug_size=640M"] {
        assert!(words.iter().any(|word| word == wanted), "{words:?}");
    }
    assert!(words.iter().any(|word| word.contains(" swiotlb=noforce ")), "{words:?}");
    for fixed in [VmSpec { acceleration: Acceleration::Tcg, most, ..spec(0) }, spec(0)] {
        assert!(Growth::of(&fixed).is_none());
        assert!(arguments(&fixed, true).contains(&"--memory=size=256M,shared=on".into()));
    }
}

/// The outcome of requests to an API that gives these answers, one after the other, and what was
/// asked for: the method, the path after the common beginning, and the body.
pub(super) async fn conversation<T>(answers: Vec<Vec<u8>>, ask: impl AsyncFnOnce(Api) -> T) -> (T, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(CONTROL)).unwrap();
    let serve = async {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(&answer).await.unwrap();
            let request = String::from_utf8(request[..length].to_vec()).unwrap();
            let (head, body) = request.split_once("\r\n\r\n").unwrap();
            let (first, _) = head.split_once(" HTTP/1.1\r\n").unwrap();
            requests.push(format!("{} {body}", first.replace("/api/v1/", "")).trim().to_owned());
        }
        requests
    };
    tokio::join!(ask(Api::new(dir.path().join(CONTROL))), serve)
}

pub(super) fn done() -> Vec<u8> {
    http("204 No Content", "")
}

#[tokio::test]
async fn a_size_is_asked_for_once_and_what_the_guest_has_taken_is_told() {
    let answers = vec![done(), done(), http("200 OK", &info(300)), http("200 OK", &info(512))];
    let ask = async |api| {
        let mut growth = Growth::of(&VmSpec { most: Size { memory_mib: 1024, vcpus: 4 }, ..spec(0) }).unwrap();
        let wanted = Size { memory_mib: 512, vcpus: 3 };
        [growth.resize(&api, wanted).await.unwrap(), growth.resize(&api, wanted).await.unwrap()]
    };
    let (sizes, requests) = conversation(answers, ask).await;
    assert_eq!(sizes, [300, 512].map(|memory_mib| Size { memory_mib, vcpus: 3 }));
    let orders = ["PUT vm.resize {\"desired_vcpus\":3}", "PUT vm.resize {\"desired_ram\":536870912}", "GET vm.info", "GET vm.info"];
    assert_eq!(requests, orders);
}

#[tokio::test]
async fn processors_that_are_leaving_count_until_they_have_left() {
    let (busy, info) = (|| http("429 Too Many Requests", ""), || http("200 OK", &info(256)));
    let growth = || Growth::of(&VmSpec { most: Size { memory_mib: 256, vcpus: 4 }, ..spec(0) }).unwrap();
    let size = |vcpus| Size { memory_mib: 256, vcpus };
    let answers = vec![done(), info(), done(), info(), busy(), info(), done(), info()];
    let ask = async |api| {
        let mut growth = growth();
        let mut sizes = Vec::new();
        for vcpus in [4, 2, 2, 2] {
            sizes.push(growth.resize(&api, size(vcpus)).await.unwrap());
        }
        sizes
    };
    let (sizes, requests) = conversation(answers, ask).await;
    assert_eq!(sizes, [4, 4, 4, 2].map(size));
    let orders: Vec<_> = requests.iter().filter_map(|request| request.strip_prefix("PUT vm.resize ")).collect();
    let two = r#"{"desired_vcpus":2}"#;
    assert_eq!(orders, [r#"{"desired_vcpus":4}"#, two, two, two]);
}

#[tokio::test]
async fn more_processors_come_once_those_that_are_leaving_have_left() {
    let info = || http("200 OK", &info(256));
    let answers = vec![done(), info(), done(), info(), http("429 Too Many Requests", ""), done(), done(), info()];
    let ask = async |api| {
        let mut growth = Growth::of(&VmSpec { most: Size { memory_mib: 256, vcpus: 4 }, ..spec(0) }).unwrap();
        for vcpus in [4, 2, 3] {
            growth.resize(&api, Size { memory_mib: 256, vcpus }).await.unwrap();
        }
    };
    let ((), requests) = conversation(answers, ask).await;
    assert_eq!(requests[6], r#"PUT vm.resize {"desired_vcpus":3}"#, "{requests:?}");
}

#[tokio::test]
async fn a_disk_is_detached_once_the_guest_has_let_go_of_it() {
    let tree = |names: &[&str]| {
        let tree: HashMap<_, _> = names.iter().map(|name| (*name, serde_json::json!({ "id": name, "children": [] }))).collect();
        http("200 OK", &serde_json::json!({ "config": {}, "state": "Running", "device_tree": tree }).to_string())
    };
    let answers = vec![
        http("200 OK", r#"{"id":"disk-7","bdf":"0000:00:06.0"}"#),
        done(),
        tree(&["disk-7", "_virtio-pci-disk-7"]),
        tree(&[]),
        http("200 OK", "{}"),
    ];
    let ask = async |api| {
        let device = std::fs::File::open("/dev/null").unwrap().into();
        disks::attach(&api, &Disk { id: DiskId(7), device, read_only: true }).await.unwrap();
        Disks::default().detach(&api, DiskId(7)).await.unwrap();
    };
    let ((), requests) = conversation(answers, ask).await;
    let order: serde_json::Value = serde_json::from_str(requests[0].strip_prefix("PUT vm.add-disk ").unwrap()).unwrap();
    let wanted = serde_json::json!({
        "path": "/dev/disks/disk-7", "id": "disk-7", "serial": "disk-7", "readonly": true, "direct": true, "image_type": "Raw",
    });
    assert_eq!(order, wanted);
    assert_eq!(requests[1..], [r#"PUT vm.remove-device {"id":"disk-7"}"#, "GET vm.info", "GET vm.info", "GET vm.counters"]);
}

#[tokio::test]
async fn a_disk_that_is_leaving_is_not_ordered_to_leave_again() {
    let gone = || http("200 OK", r#"{"config":{},"state":"Running","device_tree":{}}"#);
    let answers = vec![done(), http("500 Internal Server Error", ""), gone(), http("200 OK", "{}")];
    let ask = async |api| {
        let mut disks = Disks::default();
        disks.detach(&api, DiskId(1)).await.unwrap_err();
        disks.detach(&api, DiskId(1)).await.unwrap();
    };
    let ((), requests) = conversation(answers, ask).await;
    assert_eq!(requests[1..], ["GET vm.info", "GET vm.info", "GET vm.counters"]);
}

fn info(memory_mib: u64) -> String {
    serde_json::json!({ "config": {}, "state": "Running", "memory_actual_size": memory_mib << 20 }).to_string()
}

#[test]
fn it_runs_as_the_pods_user_with_devices_of_its_own() {
    let (spec, emulated) = (spec(1), VmSpec { acceleration: Acceleration::Tcg, ..spec(1) });
    let hypervisor = CloudHypervisor { program: "/c".into(), emulates: false, landlock: true };
    let plan = |spec| hypervisor.plan(spec, VsockAttachment::Own(Path::new("/pod/v/host")));
    let Invocation { devices, confinement: Confinement { user, capabilities, pids, files, calls }, .. } = plan(&spec);
    assert_eq!((user, capabilities, pids, calls), (Some(2_000_000_007), CapabilitySet::NONE, Pids::Itself, Calls::DenyList));
    assert_eq!(devices.map(|own| own.devices), Some(["kvm", "null", "urandom"].as_slice()));
    assert_eq!(files.unwrap().own, [Path::new("/pod/v")]);
    let Invocation { devices, confinement: Confinement { files, .. }, .. } = plan(&emulated);
    assert_eq!((devices.map(|own| own.devices), files), (Some(["null", "urandom"].as_slice()), None), "what stands in for it");
}

#[test]
fn an_exit_with_code_0_is_the_guests() {
    let hypervisor = CloudHypervisor { program: "/c".into(), emulates: false, landlock: true };
    assert_eq!(hypervisor.verdict(Exit { code: 0, ..Exit::killed() }), Verdict::Guest);
    assert_eq!(hypervisor.verdict(Exit { code: 1, ..Exit::killed() }), Verdict::Hypervisor);
    assert!(hypervisor.is_failure("cloud-hypervisor:  53.12s: <vcpu1> ERROR:vmm/src/cpu.rs:1460 -- VCPU generated error: x"));
    assert!(!hypervisor.is_failure("cloud-hypervisor:   2.70s: <vcpu0> WARN:vmm/src/cpu.rs:268 -- Kernel lacks CONFIG_SCHED_CORE support"));
}

/// The outcome of a request to an API that gives this answer, and the request.
async fn asked<T>(answer: &[u8], ask: impl AsyncFnOnce(Api) -> Result<T>) -> (Result<T>, String) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(CONTROL)).unwrap();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        let _client_may_hang_up = stream.write_all(answer).await;
        String::from_utf8(request[..length].to_vec()).unwrap()
    };
    tokio::join!(ask(Api::new(dir.path().join(CONTROL))), serve)
}

pub(super) fn http(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nServer: Cloud Hypervisor API\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test]
async fn version_and_state_are_asked_for() {
    let answer = http("200 OK", r#"{"build_version":"v53.0","version":"53.0.0","pid":7,"features":["kvm"]}"#);
    let (version, request) = asked(&answer, async |api| api.version().await).await;
    assert_eq!(version.unwrap(), Version { text: "53.0.0".into(), major: 53 });
    assert!(request.starts_with("GET /api/v1/vmm.ping HTTP/1.1\r\n"), "{request}");
    let (state, request) = asked(&http("200 OK", r#"{"config":{},"state":"Running"}"#), async |api| api.state().await).await;
    assert_eq!(state.unwrap(), "Running");
    assert!(request.starts_with("GET /api/v1/vm.info HTTP/1.1\r\n"), "{request}");
}

#[tokio::test]
async fn an_answer_that_is_none_is_an_error_with_its_reason() {
    for (answer, code, reason) in [
        (
            http("404 Not Found", r#"["Error from API","The VM is not created"]"#),
            Code::NotFound,
            "refuses vm.info: Error from API: The VM is not created",
        ),
        (http("500 Internal Server Error", ""), Code::Internal, "500 Internal Server Error"),
        (http("200 OK", "{\"state\": 7}"), Code::Internal, "Cloud Hypervisor's answer to vm.info is not what is expected"),
        (http("200 OK", "rub\x07bish"), Code::Internal, "is not what is expected"),
        (b"SSH-2.0-rubbish\r\n".to_vec(), Code::Unavailable, "cannot ask Cloud Hypervisor for vm.info"),
        (Vec::new(), Code::Unavailable, "cannot ask Cloud Hypervisor for vm.info"),
        (http("200 OK", &"x".repeat(2 << 20)), Code::Internal, "length limit exceeded"),
    ] {
        let (state, _) = asked(&answer, async |api| api.state().await).await;
        let error = state.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let _silent = UnixListener::bind(dir.path().join(CONTROL)).unwrap();
    let error = Api::new(dir.path().join(CONTROL)).state().await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert_eq!(error.to_string(), "Cloud Hypervisor has not answered vm.info within 30s");
}
