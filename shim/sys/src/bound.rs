// SPDX-License-Identifier: Apache-2.0
//! Runs programs that die with the thread that started them, can never gain privileges, and give up
//! the privileges they do not need before their first instruction.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, mount_change, move_mount};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// One instruction of a seccomp filter: `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterInstruction {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip if the condition holds.
    pub jump_true: u8,
    /// How many instructions to skip if it does not.
    pub jump_false: u8,
    /// Its operand.
    pub operand: u32,
}

/// Capabilities, a bit for each (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// None.
    pub const NONE: Self = Self(0);
    /// All.
    pub const ALL: Self = Self(u64::MAX);

    /// Those with these numbers, each below 64.
    pub const fn of(numbers: &[u32]) -> Self {
        let (mut bits, mut next) = (0, 0);
        while next < numbers.len() {
            bits |= 1 << numbers[next];
            next += 1;
        }
        Self(bits)
    }

    /// All but those with these numbers, each below 64.
    pub const fn but(numbers: &[u32]) -> Self {
        Self(!Self::of(numbers).0)
    }

    const fn has(self, number: u32) -> bool {
        self.0 & (1 << number) != 0
    }
}

/// The cgroup and user a program runs with, and the privileges it keeps.
#[derive(Debug)]
pub struct Bounds {
    /// The cgroup that the program joins: its `cgroup.procs` in each hierarchy, open for writing.
    pub entrance: Vec<OwnedFd>,
    /// The user and group that the program runs as, without supplementary groups. `None` keeps the
    /// caller's.
    pub user: Option<u32>,
    /// The capabilities that the program, and whatever it executes, can ever have. A user other
    /// than root starts with none.
    pub capabilities: CapabilitySet,
    /// Whether the program loses the caller's protection from the OOM killer: a negative
    /// `oom_score_adj` becomes 0.
    pub plain_oom_score: bool,
    /// A detached mount (fsmount(2)) that covers /dev for the program alone, in a mount namespace
    /// of its own. Mounts and unmounts of the host still reach that namespace, and nothing of it
    /// reaches the host.
    pub devices: Option<OwnedFd>,
    /// The Landlock ruleset that limits the program's access to files; `None` limits nothing
    /// (landlock(7)).
    pub ruleset: Option<OwnedFd>,
    /// The program's seccomp filters. They are installed last, so they must allow execve(2).
    pub filters: Vec<Vec<FilterInstruction>>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            entrance: Vec::new(),
            user: None,
            capabilities: CapabilitySet::ALL,
            plain_oom_score: false,
            devices: None,
            ruleset: None,
            filters: Vec::new(),
        }
    }
}

/// Prepares `command`: its program will run within `bounds`, cannot gain privileges by executing
/// something (`no_new_privs`), and is killed by the kernel when the calling thread ends.
///
/// The death signal follows the thread that spawns the command. So call this, and spawn the
/// command, on a thread that lives as long as the process.
///
/// # Errors
/// When no descriptors are left.
pub fn bind(command: &mut Command, bounds: Bounds) -> io::Result<()> {
    let parent = pidfd_open(getpid(), PidfdFlags::empty())?;
    let prepare = move || {
        for procs in &bounds.entrance {
            // The kernel checks the rights of the process that opened the file, which was root.
            rustix::io::write(procs, b"0")?;
        }
        if bounds.plain_oom_score {
            let file = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            let mut sign = [0];
            // Only a negative score is changed. Lowering a positive one to 0 is not wanted, and
            // takes a privilege that a node in a container may lack.
            if rustix::io::pread(&file, &mut sign, 0)? == 1 && sign == *b"-" {
                rustix::io::pwrite(&file, b"0", 0)?;
            }
        }
        if let Some(devices) = &bounds.devices {
            cover_devices(devices)?;
        }
        limit_capabilities(bounds.capabilities)?;
        match bounds.user {
            Some(user) => become_user(user)?,
            None => keep_capabilities(bounds.capabilities)?,
        }
        // After the change of user, which takes the death signal away (prctl(2)).
        // SAFETY: system calls without pointers, which are safe between fork and exec.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) }.into())?;
        // The parent may have died before the death signal was set. getppid(2) cannot tell: this
        // process may be in a PID namespace of its own.
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&parent, PollFlags::IN)], Some(&now))? != 0 {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // SAFETY: as above.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as libc::c_ulong, 0, 0, 0) }.into())?;
        if let Some(ruleset) = &bounds.ruleset {
            // SAFETY: a system call that takes a descriptor and a number.
            check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
        }
        bounds.filters.iter().try_for_each(|filter| install(filter, 0))
    };
    // SAFETY: the closure allocates nothing and takes no lock: it makes system calls.
    unsafe { command.pre_exec(prepare) };
    Ok(())
}

/// Confines this process itself. It keeps `capabilities`, and whatever it executes can have no
/// others. `filters` apply to all its threads. Threads that exist already keep their capabilities.
///
/// # Errors
/// The kernel's error. The process may then be confined in part.
pub fn confine_self(capabilities: CapabilitySet, filters: &[Vec<FilterInstruction>]) -> io::Result<()> {
    limit_capabilities(capabilities)?;
    // Filters first: installing them needs a capability that the last step may take away. The
    // filters must allow what that step calls.
    filters.iter().try_for_each(|filter| install(filter, libc::SECCOMP_FILTER_FLAG_TSYNC))?;
    keep_capabilities(capabilities)
}

/// Runs a command as the first process of a new PID namespace. It can see, signal and trace nothing
/// outside of it. When it ends, the kernel kills the processes left in that namespace.
///
/// # Errors
/// The kernel's error for the namespace or for the program.
pub fn spawn_alone(command: &mut Command) -> io::Result<Child> {
    // SAFETY: this changes only the PID namespace of this thread's next children.
    spawn_elsewhere(command, || check(unsafe { libc::unshare(libc::CLONE_NEWPID) }.into()))
}

/// Runs a command in the PID namespace of process `holder`. It dies with the first process of that
/// namespace.
///
/// # Errors
/// The kernel's error for the namespace or for the program.
pub fn spawn_beside(command: &mut Command, holder: u32) -> io::Result<Child> {
    let namespace = std::fs::File::open(format!("/proc/{holder}/ns/pid"))?;
    // SAFETY: a descriptor of a namespace, and its kind; this changes only the PID namespace of
    // this thread's next children.
    spawn_elsewhere(command, || check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWPID) }.into()))
}

/// Spawns a command with the PID namespace that `go` selects for this thread's children, then
/// selects the thread's own namespace again. Nothing else runs on the thread in between.
fn spawn_elsewhere(command: &mut Command, go: impl FnOnce() -> io::Result<()>) -> io::Result<Child> {
    let own = std::fs::File::open("/proc/self/ns/pid")?;
    go()?;
    let child = command.spawn();
    // SAFETY: a descriptor of a namespace, and its kind.
    let back = check(unsafe { libc::setns(own.as_raw_fd(), libc::CLONE_NEWPID) }.into());
    match (child, back) {
        (Ok(mut child), Err(error)) => {
            // This thread could make no more threads, and its children would land in the wrong
            // namespace.
            let _ended_meanwhile = child.kill();
            Err(error)
        }
        (child, _) => child,
    }
}

fn check(returned: libc::c_long) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts a detached mount over /dev, in a mount namespace of this process's own.
fn cover_devices(devices: &OwnedFd) -> io::Result<()> {
    // SAFETY: numbers only; the process has one thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into())?;
    // A slave: what the host unmounts must not stay in use here.
    mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    move_mount(devices, c"", CWD, c"/dev", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Drops all capabilities but `kept` from the bounding set, and clears the ambient set.
fn limit_capabilities(kept: CapabilitySet) -> io::Result<()> {
    if kept == CapabilitySet::ALL {
        return Ok(());
    }
    for number in 0..u64::BITS {
        // SAFETY: numbers only. The kernel refuses those beyond its last with EINVAL.
        if !kept.has(number) && unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) } < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0) }.into())
}

/// Switches to a user and its one group. Makes the system calls directly, because the C library's
/// functions take locks.
fn become_user(user: u32) -> io::Result<()> {
    let user = libc::c_long::from(user);
    // SAFETY: numbers, and a list of no groups.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0usize, std::ptr::null::<libc::gid_t>()))?;
        check(libc::syscall(libc::SYS_setresgid, user, user, user))?;
        check(libc::syscall(libc::SYS_setresuid, user, user, user))
    }
}

/// Drops all capabilities of this process but `kept`.
fn keep_capabilities(kept: CapabilitySet) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    if kept == CapabilitySet::ALL {
        return Ok(());
    }
    let header = Header { version: CAPABILITY_VERSION, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: the published structures of version 3 (capget(2)): a header and two halves, which
    // outlive the calls.
    unsafe {
        check(libc::syscall(libc::SYS_capget, &raw const header, halves.as_mut_ptr()))?;
        for (half, kept) in halves.iter_mut().zip([kept.0 as u32, (kept.0 >> 32) as u32]) {
            let permitted = half.permitted & kept;
            *half = Half { effective: permitted, permitted, inheritable: 0 };
        }
        check(libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()))
    }
}

fn install(filter: &[FilterInstruction], flags: libc::c_ulong) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const FilterInstruction,
    }
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = Program { length, instructions: filter.as_ptr() };
    // SAFETY: the kernel copies `length` instructions, whose layout is `struct sock_filter`'s
    // (seccomp(2)).
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) } {
        0 => Ok(()),
        ..0 => Err(io::Error::last_os_error()),
        // The id of a thread that cannot be given the filter (SECCOMP_FILTER_FLAG_TSYNC).
        _ => Err(io::Error::from_raw_os_error(libc::EBUSY)),
    }
}

#[cfg(test)]
mod tests;
