// SPDX-License-Identifier: Apache-2.0
//! Nothing of the host in a container's sight, and never the wrong process: what a tenant can
//! trace, what a record that lies can do, and what happens when a container's init dies at a bad
//! moment.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use magnetar_cri::{Container, ContainerSpec, Pod};
use magnetar_e2e::{
    BUSYBOX, Case, Scratch, eventually,
    kernel::{self, remove_cgroups},
    on_magnetar, on_magnetar_with_shared_kernel, on_shared_kernel,
};
use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::faults::{Bystander, is_seen_as_dead, kill_sandbox};

const HOLDER: &str = "containerd's own pods have a pause program of an image as their process 1";
const RECORD: &str = "only our pods have a record";
const KERNEL: &str = "the node sees no process of a guest";

/// All that a container with CAP_SYS_PTRACE, as debugging sidecars have it, can get at through
/// process 1 of its pod.
#[test]
fn a_tracer_of_process_1_of_a_pod_finds_nothing_of_the_host() {
    on_magnetar(HOLDER, async |case| {
        let pod = case.node().run_pod(&case.pod_spec("holder").shared_pid()).await?;
        let look = "ls -A /proc/1/root/ | wc -l; ls -A /proc/1/cwd/ | wc -l; ls /proc/1/fd | wc -l; \
            touch /proc/1/root/x 2>/dev/null || echo refused; \
            sed -n 's/^CapBnd:.//p; s/^CapPrm:.//p; s/^NoNewPrivs:.//p' /proc/1/status; wc -l </proc/1/mountinfo";
        let traces = case.script(look).capabilities(&["SYS_PTRACE"], &[]);
        let none = "0000000000000000";
        let expected = format!("0\n0\n0\nrefused\n{none}\n{none}\n1\n1\n");
        assert_eq!(case.output(&pod, &traces).await?, expected);
        Ok(pod.remove().await?)
    });
}

/// A command enters the container's namespaces before it is the container's program. The test looks
/// at every process there, with the node's eyes, as fast as it can: none may have the node's root,
/// or a file of the node open.
#[test]
fn a_starting_command_holds_no_descriptors_of_the_host() {
    on_magnetar_with_shared_kernel("what the stock runtime holds is its own affair", KERNEL, async |case| {
        let pod = case.node().run_pod(&case.pod_spec("exec-holds").shared_pid()).await?;
        let container = pod.run(&case.sleeper()).await?;
        let namespace = kernel::namespace(container.pid().await?, "pid")?;
        let done = Arc::new(AtomicBool::new(false));
        let watcher = std::thread::spawn({
            let done = done.clone();
            move || {
                let mut seen = BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    seen.extend(held_in(&namespace));
                }
                seen
            }
        });
        let mut commands = Vec::new();
        for _ in 0..40 {
            commands.push(container.exec(["true"]).await);
        }
        done.store(true, Ordering::Relaxed);
        let seen = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
        for command in commands {
            assert_eq!(command?.code, 0);
        }
        ensure!(seen.is_empty(), "processes of the pod's PID namespace hold: {seen:#?}");
        Ok(pod.remove().await?)
    });
}

/// What the processes of a PID namespace, but for the containers' own, hold of the node.
fn held_in(namespace: &str) -> Vec<String> {
    let root = fs::metadata("/").map(|root| (root.dev(), root.ino())).ok();
    let mut held = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()) {
        if fs::read_link(process.join("ns/pid")).ok().is_none_or(|own| own != Path::new(namespace)) {
            continue;
        }
        if fs::metadata(process.join("root")).ok().map(|root| (root.dev(), root.ino())) == root {
            held.push("the node's root".to_owned());
        }
        for file in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(file.path()).unwrap_or_default();
            let written = fs::read_to_string(process.join("fdinfo").join(file.file_name()));
            let written = written.is_ok_and(|info| info.lines().any(|line| line.starts_with("flags:") && !line.ends_with('0')));
            let nodes = ["/run/magnetar", "/run/containerd/io.containerd.runtime", "/var", "/sys", "/etc"];
            // By which it enters the container's cgroup: with it, nobody could do more than to
            // enter that too.
            let entrance = target.starts_with("/sys/fs/cgroup") && target.ends_with("cgroup.procs");
            if written && !entrance && nodes.iter().any(|folder| target.starts_with(folder)) {
                held.push(target.display().to_string());
            }
        }
    }
    held
}

/// A pod that has used up its processes can still be asked, by an exec probe for one, how it is.
#[test]
fn a_command_starts_in_a_pod_at_its_process_limit() {
    on_shared_kernel("a virtual machine's processes are the guest's", async |case| {
        let parent = "/magnetar-e2e-pids";
        let pod = case.node().run_pod(&case.pod_spec("pids").cgroup_parent(parent)).await?;
        // One process that makes no others: a shell that finds no room for its next command ends.
        let container = pod.run(&ContainerSpec::new("one", BUSYBOX).command(["sleep", "1000"])).await?;
        let place = kernel::cgroup_of(container.pid().await?, "pids")?;
        let of_pod = place.ancestors().find(|dir| dir.ends_with(&parent[1..])).context("the container is not in the pod's cgroup")?;
        let used: usize = fs::read_to_string(of_pod.join("pids.current"))?.trim().parse()?;
        fs::write(of_pod.join("pids.max"), (used + runtimes_own_threads(case)).to_string())?;
        let output = container.exec(["echo", "alive"]).await?;
        assert_eq!((output.code, output.stdout.as_str()), (0, "alive\n"), "{}", output.stderr);
        pod.remove().await?;
        remove_cgroups(case, parent).await
    });
}

/// How many threads the OCI runtime itself makes in the container's cgroup for a command. runc is a
/// Go program: it moves the command's process there while Go's threads are being made in it, and
/// where they find no room, its exec fails now and then, with the stock handler too. crun, and what
/// makes containers of ours, have one thread.
fn runtimes_own_threads(case: &Case) -> usize {
    // Where v2 is mounted beside v1, crun cannot work and the handler takes runc.
    let by_runc = case.handler() == "runc" || case.handler() == "magnetar-runc" && Path::new("/sys/fs/cgroup/unified").is_dir();
    if by_runc { 8 + std::thread::available_parallelism().map_or(1, usize::from) } else { 0 }
}

/// How a file of a pod's record can be damaged.
const DAMAGES: [&str; 8] = ["empty", "cut", "noise", "later", "directory", "fifo", "link", "another's"];

fn damage(path: &Path, how: &str, anothers: &Path) -> Result<()> {
    let text = fs::read(path)?;
    fs::remove_file(path)?;
    match how {
        "empty" => fs::write(path, "")?,
        "cut" => fs::write(path, &text[..text.len() / 2])?,
        "noise" => fs::write(path, text.iter().map(|byte| byte ^ 0x55).collect::<Vec<_>>())?,
        "later" => {
            let mut later: serde_json::Value = serde_json::from_slice(&text)?;
            later["version"] = 4711.into();
            fs::write(path, later.to_string())?;
        }
        "directory" => fs::create_dir(path)?,
        "fifo" => mkfifo(path, Mode::S_IRWXU)?,
        "link" => symlink(anothers, path)?,
        "another's" => fs::write(path, fs::read(anothers)?)?,
        other => bail!("no such damage: {other}"),
    }
    Ok(())
}

/// Where the record of a pod's container is.
fn container_record(case: &Case, pod: &Pod, container: &Container) -> PathBuf {
    case.state_dir(pod).join("containers").join(format!("{}.json", container.id()))
}

/// A pod whose record is damaged, of itself or of its container, is removed whole, be its process
/// alive or not.
#[test]
fn a_pod_with_a_damaged_record_can_be_removed_without_touching_others() {
    on_magnetar(RECORD, async |case| {
        let bystander = Bystander::new(case).await?;
        // Machines take their time to start, and their containers' records are on the same disk.
        let damages = if case.is_vm() { &DAMAGES[6..] } else { &DAMAGES[..] };
        for how in damages {
            for (of_container, alive) in [(false, true), (false, false), (true, false)] {
                let pod = case.pod(&format!("damaged-{}", how.trim_end_matches("'s"))).await?;
                let container = pod.run(&case.sleeper()).await?;
                let others =
                    [case.state_dir(bystander.pod()).join("pod.json"), container_record(case, bystander.pod(), bystander.container())];
                let own = if of_container { container_record(case, &pod, &container) } else { case.state_dir(&pod).join("pod.json") };
                let pid = case.sandbox_pid(&pod)?;
                damage(&own, how, &others[usize::from(of_container)])?;
                if !alive {
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
                    is_seen_as_dead(case, &pod, Some(&container)).await?;
                }
                let what = format!("{how}, of the container: {of_container}, its process alive: {alive}");
                pod.remove().await.with_context(|| what)?;
            }
        }
        bystander.noticed_nothing(case).await
    });
}

/// What a record says may not be true even where it can be read.
#[test]
fn a_record_with_another_pods_cgroup_and_process_kills_nobody() {
    on_magnetar(RECORD, async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.pod("liar").await?;
        let container = pod.run(&case.sleeper()).await?;
        let theirs = container_record(case, bystander.pod(), bystander.container());
        let theirs: serde_json::Value = serde_json::from_slice(&fs::read(theirs)?)?;
        let lie = |path: &Path, change: &dyn Fn(&mut serde_json::Value)| -> Result<()> {
            let mut record: serde_json::Value = serde_json::from_slice(&fs::read(path)?)?;
            change(&mut record);
            Ok(fs::write(path, record.to_string())?)
        };
        let victim = case.sandbox_pid(bystander.pod())?;
        let pid = case.sandbox_pid(&pod)?;
        lie(&container_record(case, &pod, &container), &|record| {
            record["cgroup"] = theirs["cgroup"].clone();
            record["claimed"] = false.into();
        })?;
        lie(&case.state_dir(&pod).join("pod.json"), &|record| {
            record["pid"] = victim.into();
            record["cgroup"] = theirs["cgroup"].clone();
        })?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        pod.remove().await?;
        bystander.noticed_nothing(case).await
    });
}

#[test]
fn a_container_without_a_record_is_removed_with_its_processes() {
    on_magnetar(RECORD, async |case| {
        let bystander = Bystander::new(case).await?;
        let pod = case.pod("unrecorded").await?;
        let container = pod.run(&case.sleeper()).await?;
        let pid = container.pid().await?;
        fs::remove_file(container_record(case, &pod, &container))?;
        kill_sandbox(case, &pod)?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        pod.remove().await?;
        eventually("the container's process has ended", case.soon(), async || {
            Ok((!Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
        })
        .await?;
        bystander.noticed_nothing(case).await
    });
}

/// The calls that a program needs, and not all that a container's init does: it dies, with some
/// runtimes, between its making and its start. Whatever becomes of the container, nothing else may
/// notice.
const TOO_FEW: &str = r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
    "syscalls":[{"action":"SCMP_ACT_ALLOW","names":["read","write","exit","exit_group","execve","brk","mmap","mprotect","munmap",
    "arch_prctl","set_tid_address","set_robust_list","rseq","prlimit64","getrandom","getuid","geteuid","getgid","getegid","getppid",
    "getpid","rt_sigaction","rt_sigprocmask","open","openat","close","fstat","newfstatat","stat","futex","capset","capget","prctl",
    "setgroups","setuid","setgid","setresuid","setresgid","chdir","fchdir","getcwd","fcntl","ioctl","dup2","readlink","uname",
    "access","fstatfs","statfs","getdents64","nanosleep","clock_nanosleep","epoll_pwait","epoll_ctl","sendmsg","recvmsg","sendto",
    "lseek"]}]}"#;

#[test]
fn a_container_whose_init_dies_before_start_fails_alone() {
    on_shared_kernel("a guest's init is not the node's", async |case| {
        let bystander = Bystander::new(case).await?;
        let scratch = Scratch::new()?;
        let profile = scratch.join("profile.json");
        fs::write(&profile, TOO_FEW)?;
        let parent = "/magnetar-e2e-dead-init";
        let pod = case.node().run_pod(&case.pod_spec("dead-init").cgroup_parent(parent)).await?;
        let rounds = std::env::var("MAGNETAR_ROUNDS_DEAD_INITS").map_or(Ok(8), |rounds| rounds.parse())?;
        for round in 0..rounds {
            let spec: ContainerSpec = case.script("exit 0").named(&format!("dead-{round}")).seccomp_file(&profile);
            let Ok(container) = pod.create(&spec).await else { continue };
            // Whether it starts is the runtime's affair; that it ends is ours.
            if container.start().await.is_ok() {
                container.exited(case.soon()).await?;
            }
            container.remove().await?;
        }
        assert_eq!(case.output(&pod, &case.script("echo fine").named("after")).await?, "fine\n");
        pod.remove().await?;
        remove_cgroups(case, parent).await?;
        bystander.noticed_nothing(case).await
    });
}
