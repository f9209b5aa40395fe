// SPDX-License-Identifier: Apache-2.0
//! The driver of Cloud Hypervisor, on nodes without KVM: with a double in its place
//! (`tests/clh-double`), which boots the guest in QEMU's emulation. The real program is tested in
//! the node that is a virtual machine (`tests/run clh`).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use magnetar_cri::{Container, Pod};
use magnetar_e2e::{Case, Scratch, on_vm, refused};
use magnetar_observe::Processes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{
    options::Replaced,
    vm::{dies, process},
    vm_storage::Loop,
};

/// Where the double is (`tests/e2e/run`).
const DOUBLE: &str = "MAGNETAR_CLH_DOUBLE";

/// A word of its process's name: as cargo names the file.
const PROCESS: &str = "clh_double";

/// A handler's options with this program in Cloud Hypervisor's place.
fn options(program: &str, emulates: bool, parameters: &str) -> String {
    format!(
        "sandboxer = \"vmm\"\n[vm]\nhypervisor = \"cloud-hypervisor\"\nkernel_parameters = \"{parameters}\"\n\
         [vm.cloud-hypervisor]\nprogram = \"{program}\"\nemulates = {emulates}\n"
    )
}

fn double() -> Result<String> {
    std::env::var(DOUBLE).with_context(|| format!("{DOUBLE} is not set: run tests/e2e/run"))
}

/// A pod with a container, in a machine by the double.
async fn running(case: &Case, name: &str) -> Result<(Pod, Container)> {
    let _until_it_runs = Replaced::with(case, &options(&double()?, true, ""))?;
    let pod = case.node().run_pod(&case.pod_spec(name).privileged()).await?;
    let container = pod.run(&case.sleeper().privileged()).await?;
    Ok((pod, container))
}

#[test]
fn a_pod_has_a_kernel_files_a_network_and_commands() {
    on_vm(async |case| {
        let (pod, container) = running(case, "clh").await?;
        assert_eq!(case.output(&pod, &case.script("cat /etc/passwd | head -n 1 | cut -d : -f 1").named("files")).await?, "root\n");
        let words = container.exec(["cat", "/proc/cmdline"]).await?.stdout;
        ensure!(words.starts_with("console=ttyS0 quiet panic=-1 reboot=t"), "this is not the driver's command line: {words}");
        let address = container.exec(["ip", "-4", "-o", "address", "show", "dev", "eth0"]).await?.stdout;
        ensure!(address.contains(&pod.ip().await?), "{address}");
        let double = process(case, &pod, PROCESS)?;
        assert_eq!(container.pid().await?, double.pid, "the hypervisor's process is the container's for containerd");
        Ok(pod.remove().await?)
    });
}

/// A container of the pod does this to its kernel, and the pod ends for this reason.
async fn ends(case: &Case, name: &str, trigger: &str, reason: &str) -> Result<()> {
    let (pod, container) = running(case, name).await?;
    // It does not come back.
    let _never = container.shell(&format!("echo {trigger} > /proc/sysrq-trigger")).await;
    dies(case, pod, &container, reason).await
}

/// Cloud Hypervisor would boot it again, without the pod.
#[test]
fn a_guest_that_restarts_is_the_pods_end() {
    on_vm(async |case| ends(case, "clh-restarts", "b", "the guest has").await);
}

#[test]
fn a_guest_whose_kernel_panics_says_why() {
    on_vm(async |case| ends(case, "clh-panics", "c", "the guest's kernel has panicked: sysrq triggered crash").await);
}

#[test]
fn a_killed_hypervisor_is_the_pods_end() {
    on_vm(async |case| {
        let (pod, container) = running(case, "clh-killed").await?;
        kill(Pid::from_raw(process(case, &pod, PROCESS)?.pid), Signal::SIGKILL)?;
        dies(case, pod, &container, "the hypervisor was ended by signal 9").await
    });
}

#[test]
fn a_hypervisor_that_cannot_be_used_is_refused_with_the_reason() {
    on_vm(async |case| {
        let double = double()?;
        for (options, words) in [
            (options("/no/such/program", true, ""), "/no/such/program, which is configured, is not an executable file"),
            (options("/bin/true", true, ""), "the virtual machine did not start"),
            // Of another program, its last word.
            (options("/bin/cat", true, ""), "the hypervisor ended with code 1: Try '/bin/cat --help' for more information"),
            (options("/etc/passwd", true, ""), "/etc/passwd, which is configured, is not an executable file"),
            (options(&double, true, "clh_double=old"), "is version 38 of Cloud Hypervisor: install 50 or a newer one"),
            (options(&double, true, "clh_double=rubbish"), "cannot ask Cloud Hypervisor for vmm.ping"),
            (options(&double, true, "clh_double=fails"), "Cloud Hypervisor refuses vmm.ping: Error from API: the double fails"),
            (options(&double, true, "clh_double=endless"), "length limit exceeded"),
            (options(&double, true, "clh_double=silent"), "Cloud Hypervisor has not answered vmm.ping within 30s"),
        ] {
            let _replaced = Replaced::with(case, &options)?;
            refused(case.node().run_pod(&case.pod_spec("clh-refused")).await, &[words])?;
        }
        if !has_kvm() {
            let _replaced = Replaced::with(case, &options(&double, false, ""))?;
            refused(case.node().run_pod(&case.pod_spec("clh-refused")).await, &["Cloud Hypervisor needs KVM"])?;
        }
        Ok(())
    });
}

/// A pod with a container, in a machine by a double that misbehaves.
async fn running_with(case: &Case, name: &str, fault: &str) -> Result<(Pod, Container)> {
    let _until_it_runs = Replaced::with(case, &options(&double()?, true, &format!("clh_double={fault}")))?;
    let pod = case.node().run_pod(&case.pod_spec(name)).await?;
    let container = pod.run(&case.sleeper()).await?;
    Ok((pod, container))
}

#[test]
fn an_api_that_answers_late_makes_the_pod_late_and_no_more() {
    on_vm(async |case| {
        let (pod, container) = running_with(case, "clh-late", "late").await?;
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn an_api_that_falls_silent_harms_no_pod_and_is_named_when_its_guest_hangs() {
    on_vm(async |case| {
        let (pod, _container) = running_with(case, "clh-stalls", "stalls").await?;
        let second = pod.run(&case.sleeper().named("second")).await?;
        assert_eq!(second.exec(["echo", "alive"]).await?.stdout, "alive\n");
        pod.remove().await?;
        let (pod, hung) = running_with(case, "clh-hangs", "stalls").await?;
        let double = process(case, &pod, PROCESS)?.pid;
        let machine = Processes::now()?.iter().find(|one| one.parent == double && one.name.contains("qemu")).map(|one| one.pid);
        kill(Pid::from_raw(machine.context("the double runs no QEMU")?), Signal::SIGSTOP)?;
        dies(case, pod, &hung, "the hypervisor hangs: the agent in the guest has not answered").await
    });
}

/// Whether the node's processor has virtualisation.
fn has_kvm() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| info.split_whitespace().any(|word| word == "vmx" || word == "svm"))
}

/// The hypervisor opens a disk itself, in its own /dev and as far as the pod's cgroup allows.
#[test]
fn a_pod_has_its_disks_and_no_other_device() {
    on_vm(async |case| {
        let (pod, _container) = running(case, "clh-disk").await?;
        let scratch = Scratch::new()?;
        let (disk, other) = (Loop::over(&scratch, "disk")?, Loop::over(&scratch, "other")?);
        ensure!(!may_open(case, &pod, &disk, true)?, "the device may be opened before anybody wants it");
        let reader = pod.run(&case.sleeper().named("reader").device(&disk.device, "/dev/xvda", "r")).await?;
        ensure!(may_open(case, &pod, &disk, false)? && !may_open(case, &pod, &disk, true)?, "it may be read, and not written");
        let writer = pod.run(&case.sleeper().named("writer").device(&disk.device, "/dev/xvda", "rw")).await?;
        writer.shell("printf 'from the guest' | dd of=/dev/xvda conv=fsync 2>/dev/null").await?;
        assert_eq!(disk.read(14)?, "from the guest");
        assert_eq!(reader.shell("head -c 14 /dev/xvda").await?.stdout, "from the guest");
        let nodes = || Ok::<_, anyhow::Error>(std::fs::read_dir(own_devices(case, &pod)?.join("disks"))?.count());
        assert_eq!(nodes()?, 2);
        ensure!(may_open(case, &pod, &disk, true)? && !may_open(case, &pod, &other, false)?, "another device may be opened");
        writer.remove().await?;
        ensure!(!may_open(case, &pod, &disk, true)?, "it may still be written");
        reader.remove().await?;
        ensure!(!may_open(case, &pod, &disk, false)?, "it may still be read");
        assert_eq!(nodes()?, 0);
        Ok(pod.remove().await?)
    });
}

/// The hypervisor's own /dev.
fn own_devices(case: &Case, pod: &Pod) -> Result<PathBuf> {
    Ok(Path::new("/proc").join(process(case, pod, PROCESS)?.pid.to_string()).join("root/dev"))
}

/// Whether a process in the pod's cgroup may open the device, apart from the node's owner and mode.
fn may_open(case: &Case, pod: &Pod, disk: &Loop, write: bool) -> Result<bool> {
    let hypervisor = process(case, pod, PROCESS)?.pid;
    let access = if write { "<>" } else { "<" };
    // Into the hypervisor's cgroup, and then the node's own file is opened.
    let script = format!(
        "dir=/sys/fs/cgroup/devices; line=$(grep :devices: /proc/{hypervisor}/cgroup) ||
           {{ dir=/sys/fs/cgroup; line=$(grep ^0:: /proc/{hypervisor}/cgroup) || exit; }}
         echo $$ > \"$dir${{line##*:}}/cgroup.procs\" && exec 3{access} {}",
        disk.device
    );
    let outcome = Command::new("bash").args(["-c", &script]).output()?;
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    ensure!(outcome.status.success() || said.contains("Operation not permitted"), "{said}");
    Ok(outcome.status.success())
}
