// SPDX-License-Identifier: Apache-2.0
//! What the processes of a machine can do when its guest has taken them over: each attack is made
//! by the process itself, and refused.

use std::{collections::BTreeMap, fs, os::unix::fs::FileTypeExt as _};

use anyhow::{Context, Result, ensure};
use magnetar_cri::{Container, Pod};
use magnetar_e2e::{Case, on_vm, taken_over::TakenOver};
use magnetar_observe::Processes;
use nix::{errno::Errno, libc};

use crate::{
    options::Replaced,
    vm::{process, vsock},
};

/// A pod whose vsock is a process, as it is where the kernel has none.
async fn pod(case: &Case, name: &str) -> Result<(Pod, Container)> {
    let _until_it_runs = Replaced::with(case, &vsock("user"))?;
    let pod = case.pod(name).await?;
    let container = pod.run(&case.sleeper()).await?;
    Ok((pod, container))
}

/// The lines of a process's `/proc/PID/status`.
fn status(pid: i32) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(text.lines().filter_map(|line| line.split_once(":\t")).map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect())
}

fn number(text: &str) -> Result<u64> {
    u64::from_str_radix(text, 16).with_context(|| format!("{text} is no number"))
}

/// That it is refused, and not merely fails for another reason.
#[track_caller]
pub fn refused(what: &str, answer: Result<i64, Errno>, with: &[Errno]) -> Result<()> {
    match answer {
        Err(errno) if with.contains(&errno) => Ok(()),
        other => anyhow::bail!("{what}: {other:?}, and not one of {with:?}"),
    }
}

/// By these, one process gets at another.
pub fn gets_at(taken: &mut TakenOver, pid: i32, with: &[Errno]) -> Result<()> {
    let pid = pid as u64;
    let buffer = taken.put(&[0; 16])?;
    let vector = taken.put(&[buffer.to_ne_bytes(), 16u64.to_ne_bytes()].concat())?;
    for (what, call, arguments) in [
        ("ptrace", libc::SYS_ptrace, [u64::from(libc::PTRACE_ATTACH), pid, 0, 0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [pid, vector, 1, vector, 1, 0]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [pid, vector, 1, vector, 1, 0]),
        ("pidfd_open", libc::SYS_pidfd_open, [pid, 0, 0, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0; 6]),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 6]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, buffer, 0, 0, 0, 0]),
    ] {
        refused(what, taken.call(call, arguments)?, with)?;
    }
    Ok(())
}

#[test]
fn a_compromised_hypervisor_reaches_no_other_process() {
    on_vm(async |case| {
        let (pod, container) = pod(case, "compromised-hypervisor").await?;
        let device = process(case, &pod, "vhost-device")?.pid;
        let hypervisor = process(case, &pod, "qemu-system")?.pid;
        {
            let mut taken = TakenOver::begin(hypervisor)?;
            gets_at(&mut taken, device, &[Errno::EPERM])?;
            let path = taken.text("/disk")?;
            let disk = [libc::AT_FDCWD as u64, path, u64::from(libc::S_IFBLK) | 0o600, libc::makedev(7, 0), 0, 0];
            refused("mknodat", taken.call(libc::SYS_mknodat, disk)?, &[Errno::EPERM])?;
            // It sees nobody: none of these ids means anything to it.
            let signal = taken.call(libc::SYS_kill, [device as u64, 0, 0, 0, 0, 0])?;
            refused("a signal to another", signal, &[Errno::ESRCH, Errno::EPERM])?;
            let root = taken.text("/proc/self/status")?;
            refused("open", taken.call(libc::SYS_openat, [libc::AT_FDCWD as u64, root, 0, 0, 0, 0])?, &[Errno::ENOENT, Errno::EACCES])?;
        }
        let sandbox = status(case.sandbox_pid(&pod)?)?;
        assert_eq!(sandbox["Seccomp"], "2", "what talks to the guest");
        // CAP_SYS_MODULE, SYS_RAWIO, SYS_BOOT and BPF, for example.
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            ensure!(number(&sandbox[set])? & 0x80_0043_0000 == 0, "what talks to the guest has {set} {}", sandbox[set]);
        }
        let (ours, its) = (status(hypervisor)?, status(device)?);
        assert_ne!(ours["Uid"], its["Uid"], "each is a user of its own");
        for (of, status, bounding) in [("the hypervisor", &ours, 0b100_0000_0000_1100_0000), ("the vsock device", &its, 0)] {
            assert_eq!([&status["CapEff"], &status["CapPrm"], &status["CapInh"], &status["CapAmb"]], ["0000000000000000"; 4], "{of}");
            ensure!(number(&status["CapBnd"])? & !bounding == 0, "{of} could be given {}", status["CapBnd"]);
            assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"), "{of}");
            // QEMU beside a process that does nothing.
            ensure!(status["NSpid"].ends_with(['1', '2']) && status["NSpid"].contains('\t'), "{of} is not alone: {}", status["NSpid"]);
        }
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_compromised_vsock_device_reaches_only_its_sockets() {
    on_vm(async |case| {
        let (pod, container) = pod(case, "compromised-vsock").await?;
        let hypervisor = process(case, &pod, "qemu-system")?.pid;
        let landlock = landlock(hypervisor)?;
        {
            let mut taken = TakenOver::begin(process(case, &pod, "vhost-device")?.pid)?;
            gets_at(&mut taken, hypervisor, &[Errno::ENOSYS])?;
            // Of these QEMU dies, by a filter of its own.
            for (what, call, flags) in
                [("unshare", libc::SYS_unshare, libc::CLONE_NEWUSER as u64), ("mount", libc::SYS_mount, 0), ("keyctl", libc::SYS_keyctl, 0)]
            {
                refused(what, taken.call(call, [flags, 0, 0, 0, 0, 0])?, &[Errno::ENOSYS])?;
            }
            for family in [libc::AF_INET, libc::AF_NETLINK, libc::AF_VSOCK, libc::AF_PACKET] {
                let socket = taken.call(libc::SYS_socket, [family as u64, libc::SOCK_DGRAM as u64, 0, 0, 0, 0])?;
                refused("a socket that leaves the host", socket, &[Errno::ENOSYS])?;
            }
            // A kernel without Landlock leaves it what everybody may read.
            if landlock {
                for path in ["/etc/passwd", "/proc/self/status", "/tmp/made"] {
                    let text = taken.text(path)?;
                    let flags = if path == "/tmp/made" { libc::O_CREAT | libc::O_WRONLY } else { libc::O_RDONLY };
                    let opened = taken.call(libc::SYS_openat, [libc::AT_FDCWD as u64, text, flags as u64, 0o600, 0, 0])?;
                    refused(path, opened, &[Errno::EACCES])?;
                }
            }
        }
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}

/// Whether the kernel has Landlock, as another process is told that may ask
/// (landlock_create_ruleset(2): its version).
pub fn landlock(asked: i32) -> Result<bool> {
    const VERSION: u64 = 1;
    Ok(TakenOver::begin(asked)?.call(libc::SYS_landlock_create_ruleset, [0, 0, VERSION, 0, 0, 0])?.is_ok())
}

#[test]
fn a_compromised_virtiofsd_opens_no_disk_of_the_node() {
    on_vm(async |case| {
        let (pod, container) = pod(case, "compromised-files").await?;
        ensure!(fs::metadata("/dev/loop0").is_ok_and(|node| node.file_type().is_block_device()), "the node has no disk");
        let outer = process(case, &pod, "virtiofsd")?.pid;
        let all = Processes::now()?;
        let inner = all.iter().find(|process| process.parent == outer).context("virtiofsd has not confined itself")?.pid;
        {
            let mut taken = TakenOver::begin(inner)?;
            let path = taken.text(&format!("/{}/rootfs/disk", container.id()))?;
            let disk = [libc::AT_FDCWD as u64, path, u64::from(libc::S_IFBLK) | 0o600, libc::makedev(7, 0), 0, 0];
            taken.call(libc::SYS_mknodat, disk)?.context("as in any container, a node may be made")?;
            let opened = taken.call(libc::SYS_openat, [libc::AT_FDCWD as u64, path, libc::O_RDONLY as u64, 0, 0, 0])?;
            refused("a disk of the node", opened, &[Errno::EPERM])?;
        }
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}
