// SPDX-License-Identifier: Apache-2.0
//! Boots the guest: turns the kernel's first process into a system in which containers can be made.

use crate::modules;
use magnetar_core::config::LogLevel;
use magnetar_core::error::{Context, Error, Result};
use magnetar_vm_agent_api as api;
use magnetar_vm_agent_api::secret::{self, Secret};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tracing::warn;

/// The word of the kernel's command line that sets the log level.
const LOG: &str = "magnetar.log=";

/// The pod's /dev/shm: 64 MiB, as everywhere.
const SHM: &CStr = c"mode=1777,size=65536k";

/// The log level on the kernel's command line. Mounts /proc to read it.
pub fn log_level() -> Option<LogLevel> {
    let _said_again_by_prepare = mount_fresh("proc", "/proc", c"");
    let line = command_line().ok()?;
    let level = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(LOG))?;
    serde_json::from_value(level.into()).ok()
}

/// Whether the kernel's command line has this word.
///
/// # Errors
/// When the command line cannot be read.
pub fn has_word(wanted: &str) -> Result<bool> {
    let line = command_line().context(|| "cannot read the kernel's command line".into())?;
    Ok(line.split_ascii_whitespace().any(|word| word == wanted))
}

/// Reads the secret with which the host proves itself, from the share. Only the agent can see that
/// file: each container sees only its own part of the share.
///
/// # Errors
/// When the file is missing or has another length.
pub fn secret() -> Result<Secret> {
    let path = Path::new(api::SHARE).join(secret::FILE);
    let what = || format!("cannot read {}, which the host has to leave there", path.display());
    let bytes = fs::read(&path).context(what)?;
    Ok(Secret::new(bytes.try_into().map_err(|_| Error::internal(format!("{}: it is not {} bytes", what(), secret::LENGTH)))?))
}

fn command_line() -> std::io::Result<String> {
    fs::read_to_string("/proc/cmdline")
}

/// Mounts the file systems and changes the root. Call it once, in process 1, while it has one
/// thread.
///
/// # Errors
/// The kernel's error.
pub fn prepare() -> Result<()> {
    modules::load_all()?;
    change_root()?;
    modules::answer_kernel()?;
    allow_files()?;
    mount_fresh("sysfs", "/sys", c"")?;
    mount_fresh("devpts", "/dev/pts", c"newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    link("pts/ptmx", "/dev/ptmx")?;
    link("/proc/self/fd", "/dev/fd")?;
    mount_fresh("mqueue", "/dev/mqueue", c"")?;
    mount_fresh("cgroup2", "/sys/fs/cgroup", c"")?;
    share_controllers()?;
    for dir in [api::BUNDLES, api::STREAMS, api::MEMORY] {
        make_dir(dir)?;
    }
    mount_fresh("tmpfs", api::SHM, SHM)?;
    make_dir(api::SHARE)?;
    check_devices()?;
    mount(api::SHARE_TAG, api::SHARE, "virtiofs", MountFlags::empty(), None).context(|| format!("cannot mount {}", api::SHARE))?;
    if let Err(error) = read_ahead() {
        warn!(%error, "files are read more slowly");
    }
    Ok(())
}

/// How much of a file of the share the kernel asks for at once when it is read in order, in KiB: as
/// much as fits into one request of FUSE. The kernel's own default is 128. What a request costs
/// hardly depends on its size (docs/benchmarks.md has the figures).
const READ_AHEAD: &str = "1024";

/// Sets it for the share and all that is mounted below it, which have one backing device.
fn read_ahead() -> Result<()> {
    let share = rustix::fs::stat(api::SHARE).context(|| format!("cannot look at {}", api::SHARE))?;
    let (major, minor) = (rustix::fs::major(share.st_dev), rustix::fs::minor(share.st_dev));
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    fs::write(&file, READ_AHEAD).context(|| format!("cannot write {file}"))
}

/// How many open files this program and each container may have, and the most that a container may
/// ask for. The latter is systemd's limit for containerd on a node, and so for its containers. The
/// kernel gives its first program 1024 and 4096.
const FILES: Rlimit = Rlimit { current: Some(16 << 10), maximum: Some(512 << 10) };

fn allow_files() -> Result<()> {
    setrlimit(Resource::Nofile, FILES).context(|| "cannot set how many files may be open".into())
}

/// Checks that the kernel found the virtio devices, which every machine has. A kernel that looks
/// for them in the wrong place would boot all the same.
fn check_devices() -> Result<()> {
    let devices = Path::new("/sys/bus/virtio/devices");
    let mut found = fs::read_dir(devices).context(|| format!("cannot list {}", devices.display()))?;
    found.next().map(drop).ok_or_else(|| {
        Error::precondition(
            "this kernel has found no virtio device: for a machine that names them on the command line (QEMU's microvm) it needs \
             VIRTIO_MMIO_CMDLINE_DEVICES"
                .to_string(),
        )
    })
}

/// Changes the root to a tmpfs with this program and the modules, because pivot_root(2) does not
/// work from the kernel's first root.
fn change_root() -> Result<()> {
    let what = || "cannot change to a root that containers can leave".to_string();
    let root = Path::new("/new");
    mount_fresh("tmpfs", "/new", c"mode=755")?;
    for dir in ["dev", "proc", "sys", "run", "tmp", "etc"] {
        make_dir(root.join(dir))?;
    }
    let program = root.join("init");
    fs::write(&program, "").context(what)?;
    mount_bind("/init", &program).context(what)?;
    make_dir(root.join("modules"))?;
    mount_bind(modules::DIR, root.join("modules")).context(what)?;
    mount_fresh("devtmpfs", "/new/dev", c"mode=755")?;
    mount_move("/proc", "/new/proc").context(what)?;
    rustix::process::chdir(root).context(what)?;
    mount_move(".", "/").context(what)?;
    rustix::process::chroot(".").context(what)?;
    rustix::process::chdir("/").context(what)?;
    mount_fresh("tmpfs", "/run", c"mode=755")?;
    // The kernel opened standard input, output and error in the old root.
    let console = rustix::fs::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
    rustix::stdio::dup2_stdin(&console).context(what)?;
    rustix::stdio::dup2_stdout(&console).context(what)?;
    rustix::stdio::dup2_stderr(&console).context(what)
}

/// Makes the cgroup of all containers, whose statistics are the pod's, and enables all controllers
/// in it.
fn share_controllers() -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let available = fs::read_to_string(root.join("cgroup.controllers")).context(|| "cannot read the cgroup controllers".into())?;
    let wanted = available.split_ascii_whitespace().map(|name| format!("+{name} ")).collect::<String>();
    let pod = root.join(api::CGROUP.trim_start_matches('/'));
    make_dir(&pod)?;
    for dir in [root, &pod] {
        fs::write(dir.join("cgroup.subtree_control"), &wanted).context(|| format!("cannot enable {wanted:?} in {}", dir.display()))?;
    }
    Ok(())
}

fn mount_fresh(kind: &str, at: &str, options: &CStr) -> Result<()> {
    make_dir(at)?;
    let flags = match kind {
        "proc" | "sysfs" | "cgroup2" | "mqueue" => MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        "devpts" => MountFlags::NOSUID | MountFlags::NOEXEC,
        _ => MountFlags::NOSUID,
    };
    mount(kind, at, kind, flags, options).context(|| format!("cannot mount {kind} at {at}"))
}

fn make_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(path).context(|| format!("cannot make {}", path.display()))
}

fn link(to: &str, at: &str) -> Result<()> {
    // The kernel makes a /dev/ptmx, which belongs to another instance of devpts.
    let _there_may_be_none = fs::remove_file(at);
    symlink(to, at).context(|| format!("cannot make {at}"))
}
