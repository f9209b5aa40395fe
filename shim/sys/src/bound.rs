// SPDX-License-Identifier: Apache-2.0
//! Programs that do not outlive whoever runs them, never gain privileges, and give up what they do not need before their first
//! instruction.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
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
    /// What it does.
    pub code: u16,
    /// How far to jump if so.
    pub jump_true: u8,
    /// How far to jump if not.
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

/// What a program is run with, and what it is left.
#[derive(Debug)]
pub struct Bounds {
    /// The cgroup that it is in: its `cgroup.procs`, in each hierarchy, open for writing.
    pub entrance: Vec<OwnedFd>,
    /// The user and group that it is run as, with no other groups; whoever runs it if there is none.
    pub user: Option<u32>,
    /// The capabilities that it, and whatever it executes, can ever have. Another user than root has none.
    pub capabilities: CapabilitySet,
    /// Whether it loses the protection from the kernel's killer that whoever runs it may have: a negative `oom_score_adj` becomes 0.
    pub plain_oom_score: bool,
    /// What Landlock leaves it of the file system, if that is to be less than all (landlock(7)).
    pub ruleset: Option<OwnedFd>,
    /// Its seccomp filters, which come last: they must let it be executed.
    pub filters: Vec<Vec<FilterInstruction>>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            entrance: Vec::new(),
            user: None,
            capabilities: CapabilitySet::ALL,
            plain_oom_score: false,
            ruleset: None,
            filters: Vec::new(),
        }
    }
}

/// Has the program that `command` runs be killed by the kernel when the calling thread ends, and be run within `bounds` without
/// ever gaining privileges by executing something (`no_new_privs`).
///
/// The death signal follows the thread that runs the command: to be called, and spawned, by a thread that lives as long as
/// the process.
///
/// # Errors
/// Where descriptors ran out.
pub fn bind(command: &mut Command, bounds: Bounds) -> io::Result<()> {
    let parent = pidfd_open(getpid(), PidfdFlags::empty())?;
    let prepare = move || {
        for procs in &bounds.entrance {
            // The kernel asks what the one who has opened the file may do, who was root.
            rustix::io::write(procs, b"0")?;
        }
        if bounds.plain_oom_score {
            let file = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            let mut sign = [0];
            // To lower it takes a privilege that a node in a container may not have, and is not wanted.
            if rustix::io::pread(&file, &mut sign, 0)? == 1 && sign == *b"-" {
                rustix::io::pwrite(&file, b"0", 0)?;
            }
        }
        limit_capabilities(bounds.capabilities)?;
        match bounds.user {
            Some(user) => become_user(user)?,
            None => keep_capabilities(bounds.capabilities)?,
        }
        // After the change of user, which takes the death signal away (prctl(2)).
        // SAFETY: system calls without pointers, which are safe between fork and exec.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) }.into())?;
        // It may have died before that. Its id says nothing where this process is in a PID namespace of its own.
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

/// Confines this process itself: it keeps `capabilities`, and whatever it executes can have no others; `filters` hold for all its
/// threads. Threads that it has already keep their capabilities.
///
/// # Errors
/// What the kernel says. Then it may be confined in part.
pub fn confine_self(capabilities: CapabilitySet, filters: &[Vec<FilterInstruction>]) -> io::Result<()> {
    limit_capabilities(capabilities)?;
    // Before the capability to do so may be gone: the filters forbid nothing that this needs.
    filters.iter().try_for_each(|filter| install(filter, libc::SECCOMP_FILTER_FLAG_TSYNC))?;
    keep_capabilities(capabilities)
}

/// Runs a command as the first process of a PID namespace of its own, in which it sees, and can signal and trace, nobody else.
/// What it leaves when it ends, the kernel kills.
///
/// # Errors
/// What the kernel says, of the namespace or of the program.
pub fn spawn_alone(command: &mut Command) -> io::Result<Child> {
    // SAFETY: it changes nothing but where this thread's next children are.
    spawn_elsewhere(command, || check(unsafe { libc::unshare(libc::CLONE_NEWPID) }.into()))
}

/// Runs a command in the PID namespace that process `holder` is in. It dies with the first process of that namespace.
///
/// # Errors
/// What the kernel says, of the namespace or of the program.
pub fn spawn_beside(command: &mut Command, holder: u32) -> io::Result<Child> {
    let namespace = std::fs::File::open(format!("/proc/{holder}/ns/pid"))?;
    // SAFETY: a descriptor of a namespace, and its kind; it changes nothing but where this thread's next children are.
    spawn_elsewhere(command, || check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWPID) }.into()))
}

/// Nothing else runs on this thread between `go` and the way back.
fn spawn_elsewhere(command: &mut Command, go: impl FnOnce() -> io::Result<()>) -> io::Result<Child> {
    let own = std::fs::File::open("/proc/self/ns/pid")?;
    go()?;
    let child = command.spawn();
    // SAFETY: a descriptor of a namespace, and its kind.
    let back = check(unsafe { libc::setns(own.as_raw_fd(), libc::CLONE_NEWPID) }.into());
    match (child, back) {
        (Ok(mut child), Err(error)) => {
            // Children could not be made any more, nor threads.
            let _ended_meanwhile = child.kill();
            Err(error)
        }
        (child, _) => child,
    }
}

fn check(returned: libc::c_long) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes everything else out of the bounding set, and all ambient ones.
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

/// Becomes a user who is nobody else, with one group. The system calls themselves: the C library's functions take locks.
fn become_user(user: u32) -> io::Result<()> {
    let user = libc::c_long::from(user);
    // SAFETY: numbers, and a list of no groups.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0usize, std::ptr::null::<libc::gid_t>()))?;
        check(libc::syscall(libc::SYS_setresgid, user, user, user))?;
        check(libc::syscall(libc::SYS_setresuid, user, user, user))
    }
}

/// Keeps no other capabilities, of those that this process has.
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
    // SAFETY: the published structures of version 3 (capget(2)): a header and two halves, which outlive the calls.
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
    // SAFETY: the kernel copies `length` instructions, whose layout is `struct sock_filter`'s (seccomp(2)).
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) } {
        0 => Ok(()),
        ..0 => Err(io::Error::last_os_error()),
        // The number of a thread that cannot take it on.
        _ => Err(io::Error::from_raw_os_error(libc::EBUSY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::Stdio;

    /// What a shell prints that is run within these bounds.
    fn said(bounds: Bounds, script: &str) -> String {
        let mut command = Command::new("/bin/sh");
        bind(command.args(["-c", script]).stdout(Stdio::piped()), bounds).unwrap();
        let mut child = command.spawn().unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        text
    }

    fn root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn who_is_bound_dies_with_the_thread_that_ran_it() {
        for user in [None, root().then_some(2_000_000_001)] {
            let mut child = std::thread::spawn(move || {
                let mut command = Command::new("/bin/sh");
                let script = "grep NoNewPrivs /proc/self/status; exec sleep 1000";
                bind(command.args(["-c", script]).stdout(Stdio::piped()), Bounds { user, ..Bounds::default() }).unwrap();
                let mut child = command.spawn().unwrap();
                let mut line = [0; 14];
                child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
                assert_eq!(&line, b"NoNewPrivs:\t1\n");
                child
            })
            .join()
            .unwrap();
            let status = child.wait().unwrap();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
        }
    }

    #[test]
    fn a_user_of_its_own_has_no_capability_and_can_get_none() {
        if !root() {
            return eprintln!("skipped: a_user_of_its_own_has_no_capability_and_can_get_none: only root can become somebody else");
        }
        let bounds = Bounds { user: Some(2_000_000_001), capabilities: CapabilitySet::NONE, ..Bounds::default() };
        let text = said(bounds, "id -u; id -G; grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status");
        let none = "0000000000000000";
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["2000000001", "2000000001"]);
        assert_eq!(lines.len(), 7);
        assert!(lines[2..].iter().all(|line| line.ends_with(none)), "{text}");
    }

    #[test]
    fn root_keeps_the_capabilities_that_are_named() {
        if !root() {
            return eprintln!("skipped: root_keeps_the_capabilities_that_are_named: only root has any");
        }
        let bounds = Bounds { capabilities: CapabilitySet::of(&[18]), ..Bounds::default() };
        let text = said(bounds, "grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status");
        assert_eq!(text, "CapPrm:\t0000000000040000\nCapEff:\t0000000000040000\nCapBnd:\t0000000000040000\n");
    }

    #[test]
    fn who_is_alone_is_the_first_process_it_sees() {
        if !root() {
            return eprintln!("skipped: who_is_alone_is_the_first_process_it_sees: only root can make a PID namespace");
        }
        // On a thread of its own, so that no other test's child is in there.
        let (alone, after) = std::thread::spawn(|| {
            let mut command = Command::new("/bin/sh");
            bind(command.args(["-c", "echo $$"]).stdout(Stdio::piped()), Bounds::default()).unwrap();
            let alone = spawn_alone(&mut command).unwrap().wait_with_output().unwrap();
            (alone, Command::new("/bin/sh").args(["-c", "echo $$"]).output().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(alone.stdout, b"1\n");
        assert_ne!(after.stdout, b"1\n", "children are made where they were before");
    }

    #[test]
    fn a_filter_is_in_force_from_the_first_instruction_on() {
        // Everything is allowed: that there is a filter is what /proc tells.
        let allow = FilterInstruction { code: 0x06, jump_true: 0, jump_false: 0, operand: 0x7fff_0000 };
        let text = said(Bounds { filters: vec![vec![allow]], ..Bounds::default() }, "grep Seccomp: /proc/self/status");
        assert_eq!(text, "Seccomp:\t2\n");
    }
}
