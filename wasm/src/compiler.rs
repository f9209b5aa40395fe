// SPDX-License-Identifier: Apache-2.0
//! Compiles a module beside its container, in a process that can do nothing else.
//!
//! ```text
//!   keeper ── reads the module ──fork──> compiler: confined, then compiles into a memory file, and ends
//!          <── the memory file, sealed, or why there is no code
//! ```
//!
//! A module that takes over the compiler can deliver any code, but only as that module's own: the
//! keeper knows the digest of what it gave to the compiler. Beyond that, the compiler has nothing
//! to reach. It has a user that owns nothing, no capabilities, an empty folder in memory as its
//! root, no network, no other processes, no descriptor but its two outputs, and memory that it can
//! write or execute, never both.

use crate::engine::{Effort, Engine, Failure};
use crate::payload::Format;
use magnetar_core::confined::filter::{self, Rules, when};
use magnetar_core::error::{Context, Error, Result};
use magnetar_sys::bound::{self, CapabilitySet, FilterInstruction};
use magnetar_sys::fork;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus};
use rustix::thread::{Gid, Uid};
use seccompiler::SeccompCmpOp;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

/// The seals of code that cannot be changed any more.
const SEALED: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// The user and group of compilers: nobody, who owns no file.
const NOBODY: u32 = 65534;

/// How much memory a compiler may have if the container has no limit, in bytes.
const MEMORY: u64 = 4 << 30;

/// The largest stack of a thread, in bytes. All of it counts as memory of the compiler.
const STACK: u64 = 8 << 20;

/// How much processor time a compiler may take, in seconds.
const SECONDS: u64 = if cfg!(test) { 1 } else { 600 };

/// How much its folder may hold, and the largest file, in bytes.
const FILES: u64 = 1 << 30;

/// The longest text about a failure, in bytes.
const TEXT: u64 = 4096;

/// The exit codes of a compiler that has no code.
const REFUSED: i32 = 1;
const FAILED: i32 = 2;

/// Compiles a module, and returns its code in a sealed memory file. `memory` is the container's
/// limit in bytes. Run it in a process that has one thread and ends afterwards.
///
/// # Errors
/// Why the module cannot be run, or could not be compiled.
pub fn compile<E: Engine>(bytes: &[u8], format: Format, effort: Effort, memory: Option<u64>) -> std::result::Result<File, Failure> {
    let failed = |error: Error| Failure::Failed(error.to_string());
    E::prepare_to_compile().map_err(failed)?;
    let what = || "cannot start the compiler".to_string();
    let code = rustix::fs::memfd_create("compiled", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).context(what).map_err(failed)?;
    let (mut said, says) = std::io::pipe().context(what).map_err(failed)?;
    let limit = memory.unwrap_or(MEMORY);
    let keeper = rustix::process::getpid();
    let child = fork::spawn(|| {
        fork::keep_only(&[code.as_fd(), says.as_fd()]);
        let outcome = confine(keeper, limit).map_err(|error| Failure::Failed(error.to_string()));
        let outcome = outcome.and_then(|()| E::compile(bytes, format, effort, &mut File::from(own(&code)?)));
        match outcome {
            Ok(()) => 0,
            Err(failure) => {
                let (Failure::Refused(why) | Failure::Failed(why)) = &failure;
                let _unheard = (&says).write_all(why.as_bytes().get(..TEXT as usize).unwrap_or(why.as_bytes()));
                if matches!(failure, Failure::Refused(_)) { REFUSED } else { FAILED }
            }
        }
    })
    .context(what)
    .map_err(failed)?;
    drop(says);
    let mut text = Vec::new();
    let _as_far_as_it_was_said = (&mut said).take(TEXT).read_to_end(&mut text);
    let text = || String::from_utf8_lossy(&text).into_owned();
    let ended = rustix::process::waitpid(Pid::from_raw(child.cast_signed()), WaitOptions::empty()).context(what).map_err(failed)?;
    match ended.map(|(_, status)| status) {
        Some(status) if status.exit_status() == Some(0) => sealed(code).map_err(failed),
        Some(status) if status.exit_status() == Some(REFUSED) => Err(Failure::Refused(text())),
        Some(status) if status.exit_status() == Some(FAILED) => Err(Failure::Failed(text())),
        Some(status) => Err(Failure::Failed(interrupted(status, limit))),
        None => Err(Failure::Failed(what())),
    }
}

fn own(fd: &OwnedFd) -> std::result::Result<OwnedFd, Failure> {
    fd.try_clone().map_err(|error| Failure::Failed(error.to_string()))
}

fn sealed(code: OwnedFd) -> Result<File> {
    let what = || "cannot keep compiled code from being changed".to_string();
    rustix::fs::fcntl_add_seals(&code, SEALED).context(what)?;
    let mut code = File::from(code);
    code.rewind().context(what)?;
    Ok(code)
}

/// Why a compiler ended that has said nothing.
fn interrupted(status: WaitStatus, limit: u64) -> String {
    match status.terminating_signal() {
        Some(signal) if signal == Signal::XCPU.as_raw() => format!("compiling it takes more than {SECONDS} s of processor time"),
        Some(signal) => format!(
            "out of memory: it cannot be compiled with the {} MiB that the container's limit leaves (the compiler was ended by signal {signal})",
            limit >> 20
        ),
        None => format!("the compiler ended with code {}", status.exit_status().unwrap_or_default()),
    }
}

/// Confines this process, which has one thread. It is killed with its parent, the keeper.
fn confine(keeper: Pid, memory: u64) -> Result<()> {
    let what = || "cannot confine the compiler".to_string();
    empty_root().context(what)?;
    rustix::thread::set_thread_groups(&[]).context(what)?;
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_res_gid(group, group, group).context(what)?;
    // Without root's user the process has no capabilities.
    rustix::thread::set_thread_res_uid(user, user, user).context(what)?;
    // After the change of user, which takes the death signal away (prctl(2)).
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context(what)?;
    if rustix::process::getppid() != Some(keeper) {
        return Err(Error::internal("the compiler's keeper has ended"));
    }
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let limits = [
        (Resource::Core, 0, 0),
        // Where the kernel kills it, nothing says that it was the time.
        (Resource::Cpu, SECONDS, 1),
        (Resource::Data, memory.saturating_add(threads.saturating_mul(STACK)), 0),
        (Resource::Fsize, FILES, 0),
        (Resource::Nofile, 64, 0),
    ];
    for (resource, limit, more) in limits {
        rustix::process::setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit + more) }).context(what)?;
    }
    rustix::thread::set_no_new_privs(true).context(what)?;
    bound::confine_self(CapabilitySet::ALL, &[filter()?]).context(what)
}

/// Makes an empty folder in memory this process's root. It is mounted nowhere.
fn empty_root() -> rustix::io::Result<()> {
    let tmpfs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let settings = [("size", FILES.to_string()), ("nr_inodes", "64".into()), ("mode", "0700".into())];
    let owner = [("uid", NOBODY.to_string()), ("gid", NOBODY.to_string())];
    for (key, value) in settings.into_iter().chain(owner) {
        rustix::mount::fsconfig_set_string(tmpfs.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_create(tmpfs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let root = rustix::mount::fsmount(tmpfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    rustix::process::fchdir(&root)?;
    rustix::process::chroot(".")
}

/// The system calls that a compiler needs for memory, threads and the files in its folder. Memory
/// for code, threads and signals have rules of their own ([`filter()`]).
const ALLOWED: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads, and exit.
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Its identity, and the node's size.
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // Files.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_mkdirat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_umask,
    // Calls that newer architectures do not have.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
];

/// The filter. Whatever it does not allow fails as a call that the kernel does not know, for which
/// libraries have a fallback.
fn filter() -> Result<Vec<FilterInstruction>> {
    let mut rules: Rules = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![when(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    // Threads, and no processes. clone3(2) has its flags in memory, where no filter sees them;
    // without it the C library uses clone(2).
    let thread = (libc::CLONE_THREAD | libc::CLONE_VM) as u64;
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    // Signals to itself, for abort(3).
    rules.insert(libc::SYS_tgkill, vec![when(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?]);
    // Names of threads and of memory.
    let names = [libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64];
    rules.insert(libc::SYS_prctl, names.into_iter().map(|name| when(0, SeccompCmpOp::Eq, name)).collect::<Result<_>>()?);
    // Limits can be asked for, and not changed.
    rules.insert(libc::SYS_prlimit64, vec![when(2, SeccompCmpOp::Eq, 0)?]);
    filter::allow(rules)
}

#[cfg(test)]
mod tests;
