// SPDX-License-Identifier: Apache-2.0
//! Block devices of the host as disks of a virtual machine, huge pages, and shared files that the
//! guest does not keep.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use magnetar_cri::{
    ContainerSpec, Pod, PodSpec,
    v1::{HugepageLimit, LinuxContainerResources},
};
use magnetar_e2e::{Case, Scratch, kernel::remove_cgroups, on_vm, on_vm_with_hugetlb, refused};
use nix::libc;

use crate::{options::Replaced, vm::hypervisor};

/// A loop device of the node over a file of 16 MiB, gone with this value.
pub struct Loop {
    pub device: String,
    file: String,
}

impl Loop {
    pub fn over(scratch: &Scratch, name: &str) -> Result<Self> {
        let file = scratch.join(name);
        File::create_new(&file)?.set_len(16 << 20)?;
        let made = Command::new("losetup").args(["--find", "--show", &file]).output()?;
        ensure!(made.status.success(), "losetup: {}", String::from_utf8_lossy(&made.stderr));
        Ok(Self { device: String::from_utf8(made.stdout)?.trim().to_owned(), file })
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        let file = File::options().write(true).open(&self.device)?;
        file.write_all_at(bytes, 0)?;
        Ok(file.sync_all()?)
    }

    /// The first bytes of what is on it.
    pub fn read(&self, length: usize) -> Result<String> {
        let mut bytes = vec![0; length];
        File::open(&self.file)?.read_exact_at(&mut bytes, 0)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether the pod's hypervisor has it open.
    fn is_in(&self, case: &Case, pod: &Pod) -> Result<bool> {
        Ok(!self.accesses(case, pod)?.is_empty())
    }

    /// How the pod's hypervisor has it open: for each descriptor `O_RDONLY` or `O_RDWR`.
    fn accesses(&self, case: &Case, pod: &Pod) -> Result<Vec<i32>> {
        let number = fs::metadata(&self.device)?.rdev();
        let process = Path::new("/proc").join(hypervisor(case, pod)?.pid.to_string());
        let mut accesses = Vec::new();
        for descriptor in fs::read_dir(process.join("fd"))?.flatten() {
            // Some are gone meanwhile.
            if !fs::metadata(descriptor.path()).is_ok_and(|open| open.rdev() == number) {
                continue;
            }
            let info = fs::read_to_string(process.join("fdinfo").join(descriptor.file_name()))?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).context("fdinfo has no flags")?;
            accesses.push(i32::from_str_radix(flags.trim(), 8)? & libc::O_ACCMODE);
        }
        Ok(accesses)
    }
}

/// The loop devices over a file.
fn over(file: &str) -> Result<Vec<String>> {
    let listed = Command::new("losetup").args(["--noheadings", "--raw", "--output", "NAME", "--associated", file]).output()?;
    ensure!(listed.status.success(), "losetup: {}", String::from_utf8_lossy(&listed.stderr));
    Ok(String::from_utf8(listed.stdout)?.split_whitespace().map(String::from).collect())
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Only while it is ours: its number may be somebody else's by now. What stays is found by
        // the leak check.
        for device in over(&self.file).unwrap_or_default() {
            let _ = Command::new("losetup").args(["--detach", &device]).status();
        }
    }
}

#[test]
fn a_block_device_is_a_disk_of_the_machine_while_a_container_has_it() {
    on_vm(async |case| {
        let scratch = Scratch::new()?;
        let disk = Loop::over(&scratch, "disk")?;
        let pod = case.pod("block").await?;
        ensure!(!disk.is_in(case, &pod)?, "the device is open before anybody wants it");
        let writer = pod.run(&case.sleeper().device(&disk.device, "/dev/xvda", "mrw")).await?;
        let reader = pod.run(&case.sleeper().named("reader").device(&disk.device, "/dev/xvdb", "mrw")).await?;
        writer.shell("printf 'from the guest' | dd of=/dev/xvda conv=fsync 2>/dev/null").await?;
        assert_eq!(disk.read(14)?, "from the guest");
        assert_eq!(reader.shell("head -c 14 /dev/xvdb").await?.stdout, "from the guest");
        let size = writer.shell("blockdev --getsize64 /dev/xvda; ls /sys/block | grep -c '^[sv]d'").await?.stdout;
        assert_eq!(size, format!("{}\n1\n", 16 << 20), "its size, and how many there are");

        writer.stop(1).await?;
        writer.remove().await?;
        assert_eq!(reader.shell("head -c 14 /dev/xvdb").await?.stdout, "from the guest", "the other one has it still");
        reader.stop(1).await?;
        reader.remove().await?;
        ensure!(!disk.is_in(case, &pod)?, "the device is open although no container has it");

        // Once more in the same machine, by somebody who has written to it meanwhile.
        disk.write(b"from the host!")?;
        let output = case.output(&pod, &case.script("head -c 14 /dev/xvda").device(&disk.device, "/dev/xvda", "r")).await?;
        assert_eq!(output, "from the host!");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_read_only_device_is_read_only_for_the_whole_guest() {
    on_vm(async |case| {
        let scratch = Scratch::new()?;
        let disk = Loop::over(&scratch, "disk")?;
        disk.write(b"kept")?;
        let pod = case.pod("block-ro").await?;
        let container = pod.run(&case.sleeper().device(&disk.device, "/dev/xvda", "r")).await?;
        let read = "head -c 4 /dev/xvda; printf lost | dd of=/dev/xvda conv=fsync,notrunc 2>/dev/null || echo ' refused'; cat /sys/block/[sv]da/ro";
        assert_eq!(container.shell(read).await?.stdout, "kept refused\n1\n");
        let accesses = disk.accesses(case, &pod)?;
        ensure!(!accesses.is_empty() && accesses.iter().all(|access| *access == libc::O_RDONLY), "the host has it open: {accesses:?}");
        // Another one that may write to it does so on a disk of its own.
        let writer = pod.run(&case.sleeper().named("writer").device(&disk.device, "/dev/xvda", "rw")).await?;
        writer.shell("printf more | dd of=/dev/xvda conv=fsync,notrunc 2>/dev/null").await?;
        assert_eq!(container.shell("head -c 4 /dev/xvda; cat /sys/block/[sv]da/ro").await?.stdout, "more1\n");
        assert_eq!(disk.read(4)?, "more");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_cannot_open_another_containers_disk() {
    on_vm(async |case| {
        let scratch = Scratch::new()?;
        let disk = Loop::over(&scratch, "disk")?;
        let pod = case.pod("block-other").await?;
        let _has_it = pod.run(&case.sleeper().device(&disk.device, "/dev/xvda", "rwm")).await?;
        let other = pod.run(&case.sleeper().named("other")).await?;
        let tried =
            other.shell("mknod /tmp/disk b $(tr : ' ' < /sys/block/[sv]da/dev); head -c 1 /tmp/disk 2>/dev/null || echo refused").await?;
        assert_eq!(tried.stdout, "refused\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_pod_removed_at_once_detaches_its_disks() {
    on_vm(async |case| {
        let scratch = Scratch::new()?;
        let disk = Loop::over(&scratch, "disk")?;
        let pod = case.pod("block-removed").await?;
        let container = pod.run(&case.sleeper().device(&disk.device, "/dev/xvda", "rwm")).await?;
        container.shell("printf kept | dd of=/dev/xvda conv=notrunc 2>/dev/null").await?;
        pod.remove().await?;
        assert_eq!(disk.read(4)?, "kept");
        let detached = Command::new("losetup").args(["--detach", &disk.device]).status()?;
        ensure!(detached.success());
        ensure!(over(&disk.file)?.is_empty(), "somebody has the device open");
        Ok(())
    });
}

/// A guest may write whatever it likes to its disk, and must not choose by that what the host reads
/// there the next time.
#[test]
fn a_disk_that_begins_like_an_image_is_what_it_is_or_refused() {
    on_vm(async |case| {
        let scratch = Scratch::new()?;
        let (disk, other) = (Loop::over(&scratch, "disk")?, Loop::over(&scratch, "other")?);
        disk.write(b"QFI\xfb\0\0\0\x03")?;
        other.write(b"other")?;
        let pod = case.pod("block-image").await?;
        let read = case.script("head -c 3 /dev/xvda").device(&disk.device, "/dev/xvda", "r");
        if case.hypervisor() == Some("qemu-system") {
            assert_eq!(case.output(&pod, &read).await?, "QFI");
        } else {
            refused(pod.run(&read).await, &["the block device 7:", "Cloud Hypervisor refuses vm.add-disk"])?;
            ensure!(!disk.is_in(case, &pod)?, "the hypervisor has it open");
        }
        let read = case.script("head -c 5 /dev/xvda").named("other").device(&other.device, "/dev/xvda", "r");
        assert_eq!(case.output(&pod, &read).await?, "other", "the next disk is there");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_device_that_is_not_a_disk_is_refused_with_the_reason() {
    on_vm(async |case| {
        let pod = case.pod("devices").await?;
        let fuse = pod.run(&case.sleeper().device("/dev/loop-control", "/dev/loop-control", "rwm")).await;
        refused(fuse, &["/dev/loop-control (10:237), which its virtual machine has not"]).context("loop-control")?;
        Ok(pod.remove().await?)
    });
}

/// The CRI's word for so many huge pages of 2 MiB.
fn huge_pages(pages: u64) -> Vec<HugepageLimit> {
    // The kubelet names all sizes that its node has.
    vec![HugepageLimit { page_size: "2MB".into(), limit: pages << 21 }, HugepageLimit { page_size: "1GB".into(), limit: 0 }]
}

#[test]
fn requested_huge_pages_are_the_guests_own_and_limited() {
    on_vm_with_hugetlb(async |case| {
        let pod = case.node().run_pod(&huge_pod(case, "huge")).await?;
        let with = |pages| move |r: &mut LinuxContainerResources| r.hugepage_limits = huge_pages(pages);
        let look = "grep HugePages_Total /proc/meminfo; cat /sys/fs/cgroup/hugetlb.2MB.max";
        let container = pod.run(&case.sleeper().resources(with(12))).await?;
        assert_eq!(fields(&container.shell(look).await?.stdout), ["HugePages_Total:", "16", &(12 << 21).to_string()]);
        // Nobody has said that there would be so many: there is memory for them.
        let second = pod.run(&case.sleeper().named("second").resources(with(8))).await?;
        assert_eq!(fields(&second.shell(look).await?.stdout), ["HugePages_Total:", "20", &(8 << 21).to_string()]);
        let third = pod.create(&case.sleeper().named("third").resources(with(10_000))).await?;
        refused(third.start().await, &["may use 10020 huge pages", "memory_mib"])?;
        assert_eq!(fields(&second.shell(look).await?.stdout)[1], "20", "what could not be had was given back");
        let large = |r: &mut LinuxContainerResources| r.hugepage_limits[0].page_size = "1GB".into();
        let large = pod.create(&case.sleeper().named("large").resources(with(8)).resources(large)).await?;
        refused(large.start().await, &["huge pages of 2MB, not of 1GB"])?;
        Ok(pod.remove().await?)
    });
}

/// A pod that says that it will have 16 huge pages.
fn huge_pod(case: &Case, name: &str) -> PodSpec {
    let limits = LinuxContainerResources { hugepage_limits: huge_pages(16), memory_limit_in_bytes: 64 << 20, ..Default::default() };
    case.pod_spec(name).resources(limits)
}

#[test]
fn a_pods_huge_page_limit_sets_how_many_its_guest_has() {
    on_vm_with_hugetlb(async |case| {
        let parent = "/magnetar-e2e-huge";
        let (root, limit) = match Path::new("/sys/fs/cgroup/hugetlb") {
            v1 if v1.is_dir() => (v1, "hugetlb.2MB.limit_in_bytes"),
            _ => (Path::new("/sys/fs/cgroup"), "hugetlb.2MB.max"),
        };
        if limit.ends_with("max") {
            fs::write(root.join("cgroup.subtree_control"), "+hugetlb")?;
        }
        let cgroup = root.join(&parent[1..]);
        fs::create_dir(&cgroup)?;
        fs::write(cgroup.join(limit), (6 << 21).to_string())?;
        let pod = case.node().run_pod(&case.pod_spec("kubelets-huge").cgroup_parent(parent)).await?;
        let container = pod.run(&case.sleeper()).await?;
        let told = container.shell("grep HugePages_Total /proc/meminfo").await?.stdout;
        assert_eq!(fields(&told), ["HugePages_Total:", "6"]);
        pod.remove().await?;
        remove_cgroups(case, parent).await
    });
}

#[test]
fn a_huge_page_volume_is_mounted_in_the_guest() {
    on_vm(async |case| {
        let scratch = Scratch::new()?;
        let volume = scratch.join("kubernetes.io~empty-dir/pages");
        fs::create_dir_all(&volume)?;
        let mounted = Command::new("mount").args(["-t", "hugetlbfs", "-o", "pagesize=2M", "none", &volume]).output()?;
        ensure!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        let outcome = async {
            let pod = case.node().run_pod(&huge_pod(case, "huge-volume")).await?;
            let container = pod.run(&case.sleeper().mount(&volume, "/pages")).await?;
            let look =
                "grep ' /pages ' /proc/mounts | cut -d ' ' -f 1,3; fallocate -l 4194304 /pages/file; grep HugePages_Free /proc/meminfo";
            assert_eq!(fields(&container.shell(look).await?.stdout), ["hugetlbfs", "hugetlbfs", "HugePages_Free:", "14"]);
            ensure!(fs::read_dir(&volume)?.next().is_none(), "the file is the host's");
            Ok(pod.remove().await?)
        };
        let outcome: Result<()> = outcome.await;
        ensure!(Command::new("umount").arg(&volume).status()?.success());
        outcome
    });
}

/// Those of the host, as the kernel counts them.
fn of_host(name: &str) -> Result<u64> {
    Ok(fs::read_to_string(Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").join(name))?.trim().parse()?)
}

/// More of the host's huge pages, until this value is dropped.
struct More(u64);

impl More {
    fn by(pages: u64) -> Result<Self> {
        let more = Self(of_host("nr_hugepages")?);
        fs::write("/proc/sys/vm/nr_hugepages", (more.0 + pages).to_string())?;
        ensure!(of_host("nr_hugepages")? == more.0 + pages, "this machine has no {pages} huge pages");
        Ok(more)
    }
}

impl Drop for More {
    fn drop(&mut self) {
        if let Err(error) = fs::write("/proc/sys/vm/nr_hugepages", self.0.to_string()) {
            eprintln!("the host's huge pages cannot be given back: {error}");
        }
    }
}

#[test]
fn guest_memory_uses_the_hosts_huge_pages_when_configured_and_available() {
    on_vm(async |case| {
        let _options = Replaced::with_machine(case, "huge_pages = true\nmemory_mib = 127")?;
        let limits = LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
        let spec = || case.pod_spec("of-huge-pages").resources(limits.clone());
        let (free, reserved) = (of_host("free_hugepages")?, of_host("resv_hugepages")?);
        ensure!(free - reserved < 80, "this machine has huge pages that nobody uses");
        refused(case.node().run_pod(&spec()).await, &["free huge pages of 2MB", "needs 80", "vm.nr_hugepages"])?;

        let _more = More::by(80)?;
        let before = of_host("free_hugepages")?;
        let pod = case.node().run_pod(&spec()).await?;
        ensure!(of_host("free_hugepages")? < before, "the guest does not use them");
        assert_eq!(case.output(&pod, &case.script("echo fine")).await?, "fine\n");
        pod.remove().await?;
        assert_eq!(of_host("free_hugepages")?, before);
        Ok(())
    });
}

fn fields(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn without_a_cache_each_side_sees_what_the_other_has_just_written_and_files_are_mapped() {
    on_vm(async |case| {
        // An image that only the registry has: its program maps files, which busybox does not.
        const FIO: &str = "localhost/magnetar/fio:1";
        let options = Replaced::with_machine(case, "cache_files = false")?;
        let pod = case.pod("uncached").await;
        drop(options);
        let pod = pod?;
        case.node().pull(FIO).await?;
        let scratch = Scratch::new()?;
        let shared = scratch.path().join("file");
        fs::write(&shared, "0")?;
        let spec = ContainerSpec::new("fio", FIO).command(["sleep", "1000"]).mount(&scratch.join(""), "/volume");
        let container = pod.run(&spec).await?;
        for round in 1..=5 {
            let text = format!("{round}\n");
            fs::write(&shared, &text)?;
            assert_eq!(container.exec(["cat", "/volume/file"]).await?.stdout, text, "the guest reads");
            container.shell(&format!("echo guest {round} >/volume/file")).await?;
            assert_eq!(fs::read_to_string(&shared)?, format!("guest {round}\n"), "the host reads");
        }
        let maps = "fio --name=mapped --ioengine=mmap --rw=write --size=1m --verify=crc32c --filename=/volume/mapped --output=/dev/null";
        let mapped = container.shell(maps).await?;
        ensure!(mapped.code == 0, "a file cannot be mapped for writing: {}", mapped.stderr);
        ensure!(
            fs::read(scratch.path().join("mapped"))?.iter().any(|byte| *byte != 0),
            "what was written through a mapping is not on the host"
        );
        Ok(pod.remove().await?)
    });
}
