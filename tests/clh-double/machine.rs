// SPDX-License-Identifier: Apache-2.0
//! The machine: QEMU in emulation, with the devices that Cloud Hypervisor would have.

use super::Events;
use super::options::Options;
use serde::Deserialize;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const VSOCK_DEVICE: &str = "/usr/bin/vhost-device-vsock";

/// The parameters that a guest needs in emulation (vmm/src/hypervisor/qemu.rs says why).
const EMULATED: &str = "no_timer_check tsc=reliable initcall_blacklist=load_system_certificate_list noreplace-smp init_on_alloc=1";

/// A line of QEMU's protocol, as far as it matters.
#[derive(Deserialize)]
struct Line {
    event: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    reason: Option<String>,
}

/// Runs the machine until its guest switches itself off; false if QEMU has failed and said why.
/// After a restart this runs on, as Cloud Hypervisor does.
pub fn run(options: &Options, events: &Events) -> std::io::Result<bool> {
    let mut qemu = Command::new(QEMU);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine"]);
    qemu.arg("q35,memory-backend=ram,i8042=off,sata=off,smbus=off,usb=off,vmport=off,hpet=off");
    qemu.args(["-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max,-svm,-erms,-fsrm,-fzrm,-fsrs,-fsrc"]);
    qemu.args(["-smp", &options.cpus, "-m", &format!("size={}", options.memory)]);
    qemu.args(["-object", &format!("memory-backend-memfd,id=ram,size={},share=on", options.memory)]);
    qemu.args(["-device", "virtio-rng-pci,disable-legacy=on"]);
    qemu.args(["-kernel", &options.kernel, "-initrd", &options.initramfs]);
    qemu.args(["-append", &format!("{} {EMULATED}", options.parameters)]);
    // The console is on standard output, which QEMU inherits.
    qemu.args(["-chardev", "stdio,id=console,signal=off", "-device", "isa-serial,chardev=console"]);
    if let Some((tag, socket)) = &options.share {
        qemu.args(["-chardev", &format!("socket,id=share,path={socket}")]);
        qemu.args(["-device", &format!("vhost-user-fs-pci,tag={tag},chardev=share")]);
    }
    let (cid, host) = options.vsock.as_ref().ok_or(std::io::Error::other("there is no --vsock, in whose directory sockets are"))?;
    let (back_end, monitor) = (Path::new(host).with_file_name("device"), options.monitor("qmp")?);
    let mut device = Command::new(VSOCK_DEVICE);
    device.args([format!("--guest-cid={cid}"), format!("--socket={}", back_end.display()), format!("--uds-path={host}")]);
    let _device = device.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    // The device serves its first connection only, so QEMU inherits that one.
    let connection = connect(&back_end)?;
    rustix::io::fcntl_setfd(&connection, rustix::io::FdFlags::empty())?;
    qemu.args(["-chardev", &format!("socket,id=vsock,fd={}", connection.as_raw_fd())]);
    qemu.args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
    for monitor in [&monitor, &options.monitor("disks")?] {
        qemu.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
    }
    qemu.args(["-device", "virtio-scsi-pci,id=disks,num_queues=1"]);
    for (number, (tap, mac)) in options.nics.iter().enumerate() {
        qemu.args(["-netdev", &format!("tap,id=net{number},fd={tap}")]);
        qemu.args(["-device", &format!("virtio-net-pci,disable-legacy=on,romfile=,netdev=net{number},mac={mac}")]);
    }
    let mut qemu = qemu.stdin(Stdio::null()).spawn()?;
    drop(connection);
    let restarted = has_restarted(&monitor)?;
    let exit = qemu.wait()?;
    if restarted {
        // Cloud Hypervisor would boot the guest again.
        events.report("rebooting")?;
        std::thread::sleep(Duration::from_secs(3600));
    }
    Ok(exit.success())
}

/// Reads QEMU's events until it ends. Returns whether its guest has restarted.
fn has_restarted(monitor: &Path) -> std::io::Result<bool> {
    let mut stream = connect(monitor)?;
    stream.write_all(b"{\"execute\": \"qmp_capabilities\"}\n")?;
    let mut restarted = false;
    for line in BufReader::new(stream).lines() {
        // It ends when QEMU does, however that hangs up.
        let Ok(line) = line else { break };
        let line: Line = serde_json::from_str(&line)?;
        if line.event.as_deref() == Some("SHUTDOWN") {
            restarted = line.data.and_then(|data| data.reason).is_some_and(|reason| reason == "guest-reset");
        }
    }
    Ok(restarted)
}

/// Connects to a socket that a program is about to make.
fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match UnixStream::connect(socket) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            outcome => return outcome,
        }
    }
}
