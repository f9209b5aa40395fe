// SPDX-License-Identifier: Apache-2.0
//! Checks the kernel, by what it shows in /proc, /sys and /dev.

use super::{Finding, error_text};
use magnetar_core::runtime::cli;
use rustix::process::PidfdFlags;
use std::fs::{File, OpenOptions, read_to_string};
use std::path::Path;

/// `CAP_SYS_RESOURCE` of linux/capability.h.
const SYS_RESOURCE: u32 = 24;

/// The findings about the kernel.
pub fn findings() -> Vec<Finding> {
    let release = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim());
    vec![
        root(),
        pidfd(&release),
        cgroups(Path::new("/sys/fs/cgroup")),
        overlayfs(),
        user_namespaces(),
        idmapped_mounts(&release),
        seccomp(),
        apparmor(),
        selinux(),
        kvm(),
        device("fuse", "/dev/fuse", "no FUSE filesystems for containers that ask for them"),
        device("tun", "/dev/net/tun", "no pods in microVMs: they have no network"),
        vhost_vsock(Path::new("/dev"), Path::new("/sys"), &modules),
        traffic_control(&modules),
        socket_lookup(),
        sys_resource(&read_to_string("/proc/self/status").unwrap_or_default()),
    ]
}

fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        Finding::yes("root", format!("user 0, kernel {}", read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim()))
    } else {
        Finding::no("root", "another user", "no pods at all; and this list is not complete")
    }
}

fn pidfd(release: &str) -> Finding {
    match rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()) {
        Ok(_) => Finding::yes("pidfd", "works"),
        Err(e) => Finding::no("pidfd", format!("{e}, kernel {}", release.trim()), "no pods at all: Linux 5.3 or later is needed"),
    }
}

fn cgroups(root: &Path) -> Finding {
    let name = "cgroups";
    if root.join("cgroup.controllers").exists() {
        let controllers = read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        return match missing(|wanted| controllers.split_whitespace().any(|controller| controller == wanted)) {
            None => Finding::yes(name, "v2"),
            Some(list) => Finding::partly(name, format!("v2 without {list}"), "these limits of containers are not kept"),
        };
    }
    let found = if root.join("unified/cgroup.procs").exists() { "hybrid (v1 controllers, v2 empty)" } else { "v1" };
    match missing(|wanted| root.join(wanted).exists()) {
        None => Finding::yes(name, found),
        Some(list) if list.split(", ").count() == CONTROLLERS.len() => Finding::no(name, "none mounted", "no pods at all"),
        Some(list) => Finding::partly(name, format!("{found} without {list}"), "these limits of containers are not kept"),
    }
}

const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "cpuset"];

fn missing(has: impl Fn(&str) -> bool) -> Option<String> {
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|wanted| !has(wanted)).collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

fn overlayfs() -> Finding {
    let filesystems = read_to_string("/proc/filesystems").unwrap_or_default();
    if filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("overlay")) {
        Finding::yes("overlayfs", "in the kernel")
    } else {
        Finding::no("overlayfs", "not loaded", "containerd must use another snapshotter; try `modprobe overlay`")
    }
}

fn user_namespaces() -> Finding {
    let limit: u64 = read_to_string("/proc/sys/user/max_user_namespaces").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    match (Path::new("/proc/self/ns/user").exists(), limit) {
        (true, 1..) => Finding::yes("user namespaces", format!("up to {limit}")),
        (true, 0) => Finding::no("user namespaces", "limit is 0", "no pods with hostUsers: false; raise user.max_user_namespaces"),
        (false, _) => Finding::no("user namespaces", "not in the kernel", "no pods with hostUsers: false"),
    }
}

fn idmapped_mounts(release: &str) -> Finding {
    let name = "idmapped mounts";
    let runtime = cli::find("auto").ok().and_then(|program| {
        let output = std::process::Command::new(program).arg("features").output().ok()?;
        let features: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        features.pointer("/linux/mountExtensions/idmap/enabled")?.as_bool()
    });
    match (version(release), runtime) {
        (Some(kernel), Some(true)) if kernel >= (5, 19) => Finding::yes(name, "kernel and OCI runtime"),
        (Some(kernel), Some(true)) if kernel >= (5, 12) => Finding::partly(
            name,
            "not on overlayfs",
            "images are copied for pods with a user namespace; Linux 5.19 or later does not need that",
        ),
        (Some(kernel), _) if kernel >= (5, 12) => {
            Finding::no(name, "not in the OCI runtime", "no volumes in pods with hostUsers: false; crun and runc 1.2 have them")
        }
        _ => Finding::no(name, "not in the kernel", "no volumes in pods with hostUsers: false; Linux 5.12 or later is needed"),
    }
}

fn seccomp() -> Finding {
    match read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("user_notif") => Finding::yes("seccomp", "with user notification"),
        Ok(_) => Finding::partly("seccomp", "without user notification", "profiles that ask a listener do not work"),
        Err(_) => Finding::no("seccomp", "not in the kernel", "containers may make any system call, whatever their profile says"),
    }
}

fn apparmor() -> Finding {
    match read_to_string("/sys/module/apparmor/parameters/enabled") {
        Ok(enabled) if enabled.trim() == "Y" => Finding::yes("AppArmor", "enabled"),
        Ok(_) => Finding::no("AppArmor", "disabled", "profiles of pods are not applied"),
        Err(_) => Finding::no("AppArmor", "not in the kernel", "profiles of pods are not applied"),
    }
}

fn selinux() -> Finding {
    match read_to_string("/sys/fs/selinux/enforce") {
        Ok(enforce) if enforce.trim() == "1" => Finding::yes("SELinux", "enforcing"),
        Ok(_) => Finding::partly("SELinux", "permissive", "labels are set and not enforced"),
        Err(_) => Finding::no("SELinux", "not enabled", "labels of pods are not applied"),
    }
}

fn kvm() -> Finding {
    let opens = OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop);
    let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
    kvm_of(opens, &cpuinfo, std::env::consts::ARCH)
}

/// The device alone proves nothing: a software hypervisor can offer a /dev/kvm on which no usual
/// guest boots.
fn kvm_of(opens: std::io::Result<()>, cpuinfo: &str, arch: &str) -> Finding {
    let cost = "microVMs by QEMU only, in software emulation: about ten times slower";
    let extension = if arch == "x86_64" { cpu_extension(cpuinfo) } else { Some("virtualisation") };
    match (opens, extension) {
        (Ok(()), Some(extension)) => Finding::yes("KVM", format!("/dev/kvm, CPU with {extension}")),
        (Ok(()), None) => Finding::no("KVM", "/dev/kvm, but neither vmx nor svm in the CPU's flags", cost),
        (Err(e), Some(extension)) if e.kind() != std::io::ErrorKind::NotFound => {
            Finding::no("KVM", format!("CPU with {extension}, /dev/kvm: {}", error_text(&e)), cost)
        }
        (Err(_), Some(extension)) => Finding::no("KVM", format!("CPU with {extension}, but no /dev/kvm: is the module loaded?"), cost),
        (Err(_), None) => Finding::no("KVM", "no /dev/kvm, and neither vmx nor svm", cost),
    }
}

fn cpu_extension(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?.split_once(':')?.1;
    flags.split_whitespace().find_map(|flag| match flag {
        "vmx" => Some("vmx"),
        "svm" => Some("svm"),
        _ => None,
    })
}

fn device(name: &str, path: &str, cost: &str) -> Finding {
    match File::open(path) {
        Ok(_) => Finding::yes(name, path),
        // The device is there, even if it cannot be opened for reading only.
        Err(_) if Path::new(path).exists() => Finding::yes(name, path),
        Err(_) => Finding::no(name, format!("no {path}"), cost),
    }
}

/// Checks vhost-vsock. If the device exists and its module is not loaded, opening the device would
/// load the module, so this does not open it.
fn vhost_vsock(dev: &Path, sys: &Path, modules: &Path) -> Finding {
    let (name, cost) = ("vhost-vsock", "microVMs are reached through vhost-device-vsock, one more process for each");
    let device = dev.join("vhost-vsock");
    match (device.exists(), sys.join("class/misc/vhost-vsock").exists()) {
        (true, true) => match OpenOptions::new().read(true).write(true).open(&device) {
            Ok(_) => Finding::yes(name, device.display().to_string()),
            Err(e) => Finding::no(name, format!("{}: {}", device.display(), error_text(&e)), cost),
        },
        (true, false) if installed(modules).is_some_and(|has| has("vhost_vsock")) => {
            Finding::yes(name, format!("{}, whose module is not loaded: the first microVM does that", device.display()))
        }
        (true, false) => Finding::partly(name, "not loaded", "the first microVM loads it, if the kernel has it as a module"),
        (false, _) => Finding::no(name, format!("no {}", device.display()), cost),
    }
}

/// A function that tells whether a kernel has a module, by the lists that are installed with the
/// kernel. `None` if there are no lists.
fn installed(modules: &Path) -> Option<impl Fn(&str) -> bool> {
    let lists = ["modules.builtin", "modules.dep"].map(|list| read_to_string(modules.join(list)));
    let [Ok(built_in), Ok(loadable)] = lists else { return None };
    Some(move |module: &str| {
        // The first word of a line is a file, which may be compressed:
        // kernel/net/sched/cls_u32.ko.xz
        let mut files = built_in.lines().chain(loadable.lines()).filter_map(|line| line.split([' ', ':']).next()?.rsplit('/').next());
        files.any(|file| file.split('.').next() == Some(module))
    })
}

/// Checks the modules that redirect frames between a pod's interface and its microVM's tap device.
/// The kernel loads them when they are first used. The lists that are installed with the kernel
/// tell whether it has them.
fn traffic_control(modules: &Path) -> Finding {
    let (name, cost) = ("traffic control", "no pods in microVMs: they have no network");
    let Some(has) = installed(modules) else {
        let wanted = TRAFFIC_CONTROL.join(", ");
        return Finding::partly(
            name,
            format!("unknown: no lists of modules in {}", modules.display()),
            &format!("microVMs need {wanted} in the kernel"),
        );
    };
    let missing: Vec<&str> = TRAFFIC_CONTROL.into_iter().filter(|module| !has(module)).collect();
    if missing.is_empty() {
        Finding::yes(name, TRAFFIC_CONTROL.join(", "))
    } else {
        Finding::no(name, format!("no {}", missing.join(", ")), cost)
    }
}

/// Checks sk_lookup, by which `crictl port-forward` and the like reach the ports of a microVM.
fn socket_lookup() -> Finding {
    let name = "sk_lookup";
    match magnetar_sys::loopback::probe() {
        Ok(()) => Finding::yes(name, "in the kernel"),
        Err(error) => Finding::no(name, error.to_string(), "no port-forward to pods in microVMs"),
    }
}

const TRAFFIC_CONTROL: [&str; 3] = ["sch_ingress", "cls_u32", "act_mirred"];

fn sys_resource(status: &str) -> Finding {
    let name = "CAP_SYS_RESOURCE";
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    match effective {
        Some(set) if set & (1 << SYS_RESOURCE) != 0 => Finding::yes(name, "held"),
        Some(_) | None => {
            Finding::partly(name, "not held", "oom_score_adj cannot be lowered: containerd needs restrict_oom_score_adj = true")
        }
    }
}

/// Major and minor of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(['.', '-', '+']).map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn kvm_needs_the_device_and_the_cpu_s_flag() {
        let with = "processor : 0\nflags\t\t: fpu svm sse\n";
        let without = "processor : 0\nflags\t\t: fpu svmx sse\n";
        let gone = || Err(Error::from(ErrorKind::NotFound));
        assert_eq!(kvm_of(Ok(()), with, "x86_64").state, State::Yes);
        assert_eq!(kvm_of(Ok(()), without, "x86_64").state, State::No);
        assert_eq!(kvm_of(Ok(()), without, "aarch64").state, State::Yes);
        assert!(kvm_of(gone(), with, "x86_64").found.contains("module"));
        assert!(kvm_of(Err(Error::from(ErrorKind::PermissionDenied)), with, "x86_64").found.contains("permission"));
        assert_eq!(kvm_of(gone(), without, "x86_64").state, State::No);
    }

    #[test]
    fn every_cgroup_layout_is_recognised() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(cgroups(root.path()).state, State::No);
        for controller in CONTROLLERS {
            std::fs::create_dir(root.path().join(controller)).unwrap();
        }
        assert_eq!(cgroups(root.path()).found, "v1");
        std::fs::create_dir(root.path().join("unified")).unwrap();
        std::fs::write(root.path().join("unified/cgroup.procs"), "").unwrap();
        assert!(cgroups(root.path()).found.starts_with("hybrid"));
        std::fs::remove_dir(root.path().join("pids")).unwrap();
        assert_eq!(cgroups(root.path()).state, State::Partly);
        std::fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        assert_eq!(cgroups(root.path()), Finding::yes("cgroups", "v2"));
        std::fs::write(root.path().join("cgroup.controllers"), "cpuset cpu pids\n").unwrap();
        assert!(cgroups(root.path()).found.contains("without memory"));
    }

    #[test]
    fn the_vhost_vsock_module_is_found_without_loading_it() {
        let root = tempfile::tempdir().unwrap();
        let (dev, sys) = (root.path().join("dev"), root.path().join("sys"));
        let modules = root.path().join("modules");
        let state = || vhost_vsock(&dev, &sys, &modules).state;
        assert_eq!(state(), State::No);
        std::fs::create_dir(&dev).unwrap();
        std::fs::write(dev.join("vhost-vsock"), "").unwrap();
        assert_eq!(state(), State::Partly, "without lists, whether there is a module is unknown");
        std::fs::create_dir(&modules).unwrap();
        std::fs::write(modules.join("modules.builtin"), "").unwrap();
        std::fs::write(modules.join("modules.dep"), "kernel/drivers/vhost/vhost.ko.xz:\n").unwrap();
        assert_eq!(state(), State::Partly);
        std::fs::write(modules.join("modules.dep"), "kernel/drivers/vhost/vhost_vsock.ko.xz: kernel/drivers/vhost/vhost.ko.xz\n").unwrap();
        assert_eq!(state(), State::Yes, "the first pod loads it");
        std::fs::remove_dir_all(&modules).unwrap();
        std::fs::create_dir_all(sys.join("class/misc/vhost-vsock")).unwrap();
        assert_eq!(state(), State::Yes);
    }

    #[test]
    fn modules_are_found_in_the_lists_of_a_kernel() {
        let modules = tempfile::tempdir().unwrap();
        assert_eq!(traffic_control(modules.path()).state, State::Partly);
        std::fs::write(modules.path().join("modules.builtin"), "kernel/net/sched/sch_ingress.ko\n").unwrap();
        std::fs::write(modules.path().join("modules.dep"), "kernel/net/sched/cls_u32.ko.xz: kernel/lib/act_mirred.ko.xz\n").unwrap();
        assert_eq!(traffic_control(modules.path()).found, "no act_mirred");
        let all = "kernel/net/sched/cls_u32.ko.xz:\nkernel/net/sched/act_mirred.ko:\n";
        std::fs::write(modules.path().join("modules.dep"), all).unwrap();
        assert_eq!(traffic_control(modules.path()).state, State::Yes);
    }

    #[test]
    fn releases_and_capabilities_are_parsed() {
        assert_eq!(version("6.18.5+deb14-cloud-amd64\n"), Some((6, 18)));
        assert_eq!(version("5.19-rc1"), Some((5, 19)));
        assert_eq!(version(""), None);
        assert_eq!(sys_resource("CapEff:\t000001ffffffffff\n").state, State::Yes);
        assert_eq!(sys_resource("CapEff:\t000001fffeffffff\n").state, State::Partly);
    }
}
