// SPDX-License-Identifier: Apache-2.0
//! What only pods in virtual machines have: how a machine can end, what it refuses, and what it
//! keeps from the host.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use magnetar_cri::{
    Container, Pod,
    v1::{LinuxContainerResources, MountPropagation, NamespaceMode, NamespaceOption, PodSandboxState},
};
use magnetar_e2e::{
    Case, Scratch, Service, eventually,
    kernel::{cgroup_of, remove_cgroups},
    on_qemu, on_vm, refused,
};
use magnetar_observe::{Process, Processes};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{faults::is_seen_as_dead, options::Replaced};

/// Within this containerd must know of a machine's end, on a node that is not busy.
const KNOWN: u32 = 5;

/// A process of the pod's machine, by a word of its command line.
pub fn process(case: &Case, pod: &Pod, word: &str) -> Result<Process> {
    let sandbox = case.sandbox_pid(pod)?;
    let all = Processes::now()?;
    let found = all.iter().find(|process| process.parent == sandbox && process.name.contains(word)).cloned();
    found.with_context(|| format!("the pod has no process {word}"))
}

/// The hypervisor's process.
pub fn hypervisor(case: &Case, pod: &Pod) -> Result<Process> {
    process(case, pod, case.hypervisor().context("the handler has no hypervisor")?)
}

pub fn send(process: &Process, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(process.pid), signal)?)
}

/// The pod is seen to be dead in time, with `reason` in its status; it can be removed, and nothing
/// is left (`on_node` looks).
pub(crate) async fn dies(case: &Case, pod: Pod, container: &Container, reason: &str) -> Result<()> {
    container.exited(case.within(KNOWN)).await.context("the container")?;
    eventually("the pod is not ready", case.within(KNOWN), async || {
        Ok((pod.state().await? == PodSandboxState::SandboxNotready).then_some(()))
    })
    .await?;
    let told = pod.info().await?.to_string();
    ensure!(told.contains(reason), "the pod's status does not say {reason:?}: {told}");
    let refused = container.exec(["true"]).await;
    ensure!(refused.is_err(), "a command was executed in a machine that is gone");
    Ok(pod.remove().await?)
}

async fn running(case: &Case, name: &str) -> Result<(Pod, Container)> {
    let pod = case.pod(name).await?;
    let container = pod.run(&case.sleeper()).await?;
    Ok((pod, container))
}

/// The same with a vsock that is a process, even where the kernel has one.
async fn running_with_device(case: &Case, name: &str) -> Result<(Pod, Container)> {
    let _until_it_runs = Replaced::with(case, &vsock("user"))?;
    running(case, name).await
}

/// The handler's options, with a choice of the vsock.
pub fn vsock(choice: &str) -> String {
    format!("sandboxer = \"vmm\"\n[vm]\nvsock = \"{choice}\"\n")
}

/// Whether the node's kernel can be the vsock of guests, which is then what pods have.
fn kernel_vsock() -> bool {
    File::options().read(true).write(true).open("/dev/vhost-vsock").is_ok()
}

/// The address of the pod's guest, where the kernel is its vsock.
fn guest_address(case: &Case, pod: &Pod) -> Result<Option<String>> {
    let hypervisor = hypervisor(case, pod)?;
    let device = hypervisor.command.iter().find(|word| word.starts_with("vhost-vsock-pci,"));
    Ok(device.and_then(|device| Some(device.split_once("guest-cid=")?.1.split(',').next()?.to_owned())))
}

#[test]
fn a_killed_hypervisor_ends_its_pod() {
    on_vm(async |case| {
        let (pod, container) = running(case, "vmm-killed").await?;
        send(&hypervisor(case, &pod)?, Signal::SIGKILL)?;
        dies(case, pod, &container, "the hypervisor was ended by signal 9").await
    });
}

/// Nobody else takes them away: `serve` is down meanwhile.
#[test]
fn all_processes_of_a_machine_die_with_its_sandbox_process() {
    on_qemu(async |case| {
        let (pod, container) = running_with_device(case, "vmm-gone").await?;
        let machine = [case.hypervisor().context("no hypervisor")?, "vhost-device", "virtiofsd"].map(|word| process(case, &pod, word));
        let machine = machine.into_iter().collect::<Result<Vec<_>>>()?;
        let held = Service::Magnetar.hold()?;
        kill(Pid::from_raw(case.sandbox_pid(&pod)?), Signal::SIGKILL)?;
        eventually("the machine's processes are gone", case.soon(), async || {
            let now = Processes::now()?;
            let alive =
                machine.iter().any(|process| now.iter().any(|one| one.pid == process.pid && one.started == process.started && !one.zombie));
            Ok((!alive).then_some(()))
        })
        .await?;
        held.release(case).await?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_with_a_container_without_a_limit_gets_the_default_memory() {
    on_vm(async |case| {
        let parent = "/magnetar-e2e-some";
        let limits = LinuxContainerResources { memory_limit_in_bytes: 100 << 20, ..Default::default() };
        let spec = case.pod_spec_with_network("some-unlimited").resources(limits);
        let mut sizes = Vec::new();
        for spec in [spec.clone(), spec.cgroup_parent(parent)] {
            let pod = case.node().run_pod(&spec).await?;
            let container = pod.run(&case.sleeper()).await?;
            let told = container.exec(["awk", "/^MemTotal/ {print $2}", "/proc/meminfo"]).await?.stdout;
            sizes.push(told.trim().parse::<u64>()? >> 10);
            pod.remove().await?;
        }
        // At first only the sum of the limits is known. The machine grows for the container without
        // a limit, to what such a pod has.
        ensure!((900..1024).contains(&sizes[0]), "{sizes:?} MiB");
        // A kubelet's cgroup has no limit because of a container that has none.
        ensure!((1000..1124).contains(&sizes[1]), "{sizes:?} MiB");
        remove_cgroups(case, parent).await
    });
}

#[test]
fn a_killed_virtiofsd_ends_its_pod() {
    on_vm(async |case| {
        let (pod, container) = running(case, "virtiofsd-killed").await?;
        send(&process(case, &pod, "virtiofsd")?, Signal::SIGKILL)?;
        dies(case, pod, &container, "virtiofsd was ended by signal 9").await
    });
}

#[test]
fn a_killed_vsock_device_ends_its_pod() {
    on_qemu(async |case| {
        let (pod, container) = running_with_device(case, "vsock-killed").await?;
        send(&process(case, &pod, "vhost-device")?, Signal::SIGKILL)?;
        dies(case, pod, &container, "vhost-device-vsock was ended by signal 9").await
    });
}

#[test]
fn a_pod_has_the_kernels_vsock_when_available() {
    on_qemu(async |case| {
        let kernel = kernel_vsock();
        let (pod, container) = running(case, "vsock").await?;
        ensure!(guest_address(case, &pod)?.is_some() == kernel, "the kernel has a vsock: {kernel}");
        ensure!(process(case, &pod, "vhost-device").is_err() == kernel, "the kernel has a vsock: {kernel}");
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        pod.remove().await?;
        if !kernel {
            let _until_it_is_refused = Replaced::with(case, &vsock("kernel"))?;
            refused(case.node().run_pod(&case.pod_spec("no-vsock")).await, &["/dev/vhost-vsock", "load the module vhost_vsock"])?;
        }
        Ok(())
    });
}

#[test]
fn the_agent_answers_only_its_sandbox_process() {
    on_vm(async |case| {
        let (other, _) = running(case, "other").await?;
        let pod = case.node().run_pod(&case.pod_spec("curious").privileged()).await?;
        // The node's socat, with the libraries that it needs.
        let container = pod.run(&case.sleeper().privileged().mount_read_only("/usr", "/node/usr")).await?;
        let socat = "LD_LIBRARY_PATH=/node/usr/lib/x86_64-linux-gnu /node/usr/lib64/ld-linux-x86-64.so.2 /node/usr/bin/socat";
        let addresses = [guest_address(case, &pod)?, guest_address(case, &other)?].into_iter().flatten();
        // The loopback, the host, and where there are such addresses its own guest's and the
        // other's.
        for address in addresses.chain(["1".into(), "2".into()]) {
            // A version that the agent knows, and a secret that it does not.
            let opening = r#"printf '\000\000\000\041{"version":2,"purpose":"Control"}'; head -c 32 /dev/zero"#;
            let called = container.shell(&format!("{{ {opening}; }} | env {socat} -T5 - VSOCK-CONNECT:{address}:1024 2>&1")).await?;
            ensure!(called.stdout.contains(&format!("cid:{address} port:1024")), "it was not called: {called:?}");
            ensure!(!called.stdout.contains("Ready") && !called.stdout.contains("Refused"), "it has answered: {called:?}");
        }
        // All processes of the node have the node's address, but not the pod's secret.
        if let Some(address) = guest_address(case, &pod)? {
            let mut command = Command::new("socat");
            command.args(["-T5", "-", &format!("VSOCK-CONNECT:{address}:1024")]);
            let mut socat = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let mut opening = b"\0\0\0\x21{\"version\":2,\"purpose\":\"Control\"}".to_vec();
            opening.resize(opening.len() + 32, 0);
            socat.stdin.take().context("no input")?.write_all(&opening)?;
            let answer = socat.wait_with_output()?;
            let answer = String::from_utf8_lossy(&answer.stdout);
            ensure!(answer.contains("Refused"), "the agent has answered a process of the node: {answer:?}");
        }
        other.remove().await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_kernel_panic_ends_the_pod_and_its_message_is_the_reason() {
    on_vm(async |case| {
        let pod = case.node().run_pod(&case.pod_spec("panics").privileged()).await?;
        let container = pod.run(&case.sleeper().privileged()).await?;
        // It does not come back.
        let _never = container.shell("echo c > /proc/sysrq-trigger").await;
        dies(case, pod, &container, "the guest's kernel has panicked: sysrq triggered crash").await
    });
}

#[test]
fn a_machine_paused_from_outside_ends_its_pod() {
    on_qemu(async |case| {
        let (pod, container) = running(case, "paused").await?;
        let mut monitor = UnixStream::connect(case.state_dir(&pod).join("vm/debug.sock"))?;
        let mut answers = BufReader::new(monitor.try_clone()?).lines();
        answers.next().context("no greeting")??;
        for command in ["qmp_capabilities", "stop"] {
            writeln!(monitor, "{{\"execute\": \"{command}\"}}")?;
            let answer = answers.find(|line| line.as_ref().map_or(true, |line| line.contains("return"))).context("no answer")??;
            ensure!(answer.contains("return"), "{answer}");
        }
        dies(case, pod, &container, "the virtual machine was paused from outside").await
    });
}

#[test]
fn an_agent_that_does_not_answer_ends_its_pod() {
    on_qemu(async |case| {
        let (pod, container) = running_with_device(case, "hangs").await?;
        send(&process(case, &pod, "vhost-device")?, Signal::SIGSTOP)?;
        dies(case, pod, &container, "has not answered within").await
    });
}

#[test]
fn a_hypervisor_that_hangs_ends_its_pod() {
    on_vm(async |case| {
        let (pod, container) = running(case, "frozen").await?;
        send(&hypervisor(case, &pod)?, Signal::SIGSTOP)?;
        dies(case, pod, &container, "the hypervisor hangs").await
    });
}

#[test]
fn a_machine_survives_a_short_pause_and_its_clock_is_right_afterwards() {
    on_vm(async |case| {
        let (pod, container) = running(case, "short-pause").await?;
        let hypervisor = hypervisor(case, &pod)?;
        send(&hypervisor, Signal::SIGSTOP)?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        send(&hypervisor, Signal::SIGCONT)?;
        eventually("the clock is right", case.soon(), async || {
            let there: f64 = container.exec(["date", "+%s"]).await?.stdout.trim().parse()?;
            let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
            Ok(((here - there).abs() < 2.0).then_some(()))
        })
        .await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_machine_that_gets_no_processor_time_is_not_taken_for_dead() {
    on_vm(async |case| {
        let (pod, container) = running(case, "starved").await?;
        let cgroup = cgroup_of(hypervisor(case, &pod)?.pid, "cpu")?;
        let limit = |microseconds: Option<u32>| {
            let v1 =
                [("cpu.cfs_period_us", "1000000".to_string()), ("cpu.cfs_quota_us", microseconds.map_or("-1".into(), |n| n.to_string()))];
            let v2 = [("cpu.max", format!("{} 1000000", microseconds.map_or("max".into(), |n| n.to_string())))];
            let files = if cgroup.join("cpu.max").exists() { &v2[..] } else { &v1[..] };
            files.iter().try_for_each(|(file, value)| std::fs::write(cgroup.join(file), value).context(*file))
        };
        // The kernel's least: a thousandth of a processor, with which an agent answers nothing.
        // An agent that is silent for less than 5 s counts as dead, see the tests above.
        limit(Some(1000))?;
        tokio::time::sleep(Duration::from_secs(9)).await;
        limit(None)?;
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn namespaces_that_a_machine_cannot_have_are_refused_with_the_reason() {
    on_vm(async |case| {
        let spec = || case.pod_spec("refused");
        let cases = [
            (spec().host_network(), "hostNetwork"),
            (spec().host_pid(), "hostPID"),
            (spec().host_ipc(), "hostIPC"),
            (spec().user_namespace(100_000, 65_536), "user namespace"),
        ];
        for (spec, reason) in cases {
            match case.node().run_pod(&spec).await {
                Ok(pod) => {
                    pod.remove().await?;
                    bail!("a pod was made that should be refused: {reason}");
                }
                Err(error) => ensure!(error.to_string().contains(reason), "{error}"),
            }
        }
        Ok(())
    });
}

#[test]
fn volumes_that_cannot_be_shared_are_refused_with_the_reason() {
    on_vm(async |case| {
        let scratch = Scratch::new()?;
        let (socket, fifo) = (scratch.join("socket"), scratch.join("fifo"));
        let _listens = UnixListener::bind(&socket)?;
        nix::unistd::mkfifo(Path::new(&fifo), nix::sys::stat::Mode::S_IRWXU)?;
        let pod = case.pod("volumes").await?;
        let sleeper = || case.sleeper();
        let cases = [
            (sleeper().mount(&socket, "/v"), "a socket"),
            (sleeper().mount(&fifo, "/v"), "a FIFO"),
            (sleeper().mount("/dev/null", "/v"), "a device of the host"),
            (sleeper().mount_with("/tmp", "/v", false, MountPropagation::PropagationBidirectional), "Bidirectional"),
        ];
        for (n, (spec, reason)) in cases.into_iter().enumerate() {
            let refused =
                pod.run(&spec.named(&format!("c{n}"))).await.err().with_context(|| format!("made, although {reason} cannot be shared"))?;
            ensure!(refused.to_string().contains(reason), "{refused}");
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_that_targets_another_ones_pids_is_refused_with_the_reason() {
    on_vm(async |case| {
        let (pod, target) = running(case, "target").await?;
        let modes = NamespaceOption { pid: NamespaceMode::Target.into(), target_id: target.id().to_owned(), ..Default::default() };
        let debug = pod.create_in(&case.sleeper().named("debug"), modes).await?;
        refused(debug.start().await, &["only a whole pod can share them"])?;
        assert_eq!(target.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_megabyte_written_just_before_exit_is_logged_completely() {
    on_vm(async |case| {
        let pod = case.pod("tail").await?;
        let output = case.output(&pod, &case.script("yes 123456789012345 | head -c 1048576")).await?;
        assert_eq!(output.len(), 1 << 20);
        Ok(pod.remove().await?)
    });
}

#[test]
fn containerd_reports_the_hypervisors_pid() {
    on_vm(async |case| {
        let (pod, container) = running(case, "pid").await?;
        let second = pod.run(&case.sleeper().named("second")).await?;
        let hypervisor = hypervisor(case, &pod)?.pid;
        assert_eq!((container.pid().await?, second.pid().await?), (hypervisor, hypervisor));
        container.stop(5).await?;
        assert_eq!(second.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_has_a_kernel_of_its_own() {
    on_vm(async |case| {
        let pod = case.pod("kernel").await?;
        let inside = case.output(&pod, &case.script("cat /proc/version; cat /proc/cmdline")).await?;
        let host = std::fs::read_to_string("/proc/version")?;
        ensure!(!inside.contains(host.trim()), "the container runs on the host's kernel");
        ensure!(inside.contains("magnetar.log="), "{inside}");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_volume_is_shared_with_the_host_and_a_read_only_one_cannot_be_written() {
    on_vm(async |case| {
        let scratch = Scratch::new()?;
        std::fs::write(scratch.path().join("given"), "from the host")?;
        let pod = case.pod("shared").await?;
        let volume = scratch.path().to_string_lossy().into_owned();
        let container = pod.run(&case.sleeper().mount(&volume, "/rw").mount_read_only(&volume, "/ro")).await?;
        let read = container.shell("cat /ro/given; echo -n from the guest > /rw/made; touch /ro/no 2>/dev/null || echo , refused").await?;
        assert_eq!(read.stdout, "from the host, refused\n");
        assert_eq!(std::fs::read_to_string(scratch.path().join("made"))?, "from the guest");
        // What the kubelet does to a ConfigMap.
        std::fs::write(scratch.path().join("new"), "later")?;
        std::fs::rename(scratch.path().join("new"), scratch.path().join("given"))?;
        eventually("the change is seen", case.soon(), async || {
            Ok((container.exec(["cat", "/ro/given"]).await?.stdout == "later").then_some(()))
        })
        .await?;
        Ok(pod.remove().await?)
    });
}
