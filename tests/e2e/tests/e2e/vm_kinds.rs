// SPDX-License-Identifier: Apache-2.0
//! Other kinds of virtual machines than the default: a kernel of our own, and a machine without PCI
//! and ACPI.

use anyhow::{Result, ensure};
use magnetar_cri::{Container, Pod};
use magnetar_e2e::{Case, OWN_GUEST, Scratch, on_vm, on_vm_with_own_kernel, refused};

use crate::{options::Replaced, vm::dies, vm_storage::Loop};

const MICROVM: &str = "sandboxer = \"vmm\"\n[vm.qemu]\nmachine = \"microvm\"\n";

/// A pod with a container, whose machine is made by these options.
async fn running(case: &Case, name: &str, options: &str) -> Result<(Pod, Container)> {
    let _replaced = Replaced::with(case, options)?;
    let pod = case.node().run_pod(&case.pod_spec(name).privileged()).await?;
    let container = pod.run(&case.sleeper().privileged()).await?;
    Ok((pod, container))
}

/// What every guest has to have: the kernel that is meant, interfaces that CNI made and no others,
/// rules, limits.
async fn check_guest(container: &Container) -> Result<()> {
    let release = container.exec(["uname", "-r"]).await?.stdout;
    ensure!(release.trim_end().ends_with("-magnetar"), "another kernel runs: {release}");
    let interfaces = container.exec(["ls", "/sys/class/net"]).await?.stdout;
    assert_eq!(interfaces.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);
    let controllers = container.exec(["cat", "/sys/fs/cgroup/cgroup.controllers"]).await?.stdout;
    for controller in ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"] {
        ensure!(controllers.contains(controller), "{controller} is missing: {controllers}");
    }
    Ok(())
}

#[test]
fn pods_run_on_our_own_kernel() {
    on_vm_with_own_kernel(async |case| {
        let options = format!("sandboxer = \"vmm\"\n[vm]\nkernel = \"{OWN_GUEST}/vmlinux\"\ninitramfs = \"{OWN_GUEST}/initramfs\"\n");
        let (pod, container) = running(case, "own-kernel", &options).await?;
        check_guest(&container).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_microvm_has_files_and_a_network_without_pci() {
    on_vm_with_own_kernel(async |case| {
        let scratch = Scratch::new()?;
        std::fs::write(scratch.path().join("given"), "from the host")?;
        let (pod, container) = running(case, "microvm", MICROVM).await?;
        check_guest(&container).await?;
        let words = container.exec(["cat", "/proc/cmdline"]).await?.stdout;
        ensure!(words.contains("virtio_mmio.device="), "its devices are not told: {words}");
        let devices = container.exec(["ls", "/sys/bus/pci/devices"]).await?.stdout;
        ensure!(devices.is_empty(), "it has PCI: {devices}");
        let reader = case.script("cat /v/given").named("reader").mount(&scratch.path().to_string_lossy(), "/v");
        assert_eq!(case.output(&pod, &reader).await?, "from the host");
        // Its kernel has no modules: the drivers of disks are there from the beginning.
        let disk = Loop::over(&scratch, "disk")?;
        let writer = case.script("printf written | dd of=/dev/xvda conv=fsync 2>/dev/null").named("writer");
        case.output(&pod, &writer.device(&disk.device, "/dev/xvda", "mrw")).await?;
        assert_eq!(disk.read(7)?, "written");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_kernel_panic_in_a_microvm_ends_its_pod() {
    on_vm_with_own_kernel(async |case| {
        let (pod, container) = running(case, "microvm-panics", MICROVM).await?;
        // It does not come back.
        let _never = container.shell("echo c > /proc/sysrq-trigger").await;
        dies(case, pod, &container, "the guest's kernel has panicked: sysrq triggered crash").await
    });
}

#[test]
fn a_microvm_kernel_without_virtio_mmio_is_refused_with_the_missing_option() {
    on_vm(async |case| {
        let guest = "/usr/local/share/magnetar/guest";
        let options = format!("{MICROVM}[vm]\nkernel = \"{guest}/vmlinux\"\ninitramfs = \"{guest}/initramfs\"\n");
        let _replaced = Replaced::with(case, &options)?;
        refused(case.node().run_pod(&case.pod_spec("no-devices")).await, &["VIRTIO_MMIO_CMDLINE_DEVICES"])?;
        Ok(())
    });
}
