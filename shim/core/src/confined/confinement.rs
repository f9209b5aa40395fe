// SPDX-License-Identifier: Apache-2.0
//! What a pod's helper program may do, assuming that a guest has taken it over.
//!
//! ```text
//! a user of its own         it cannot signal or trace processes of others, nor read their files
//! no capabilities           except those it needs to confine itself further, also in its bounding set
//! a PID namespace           it sees and names no process but itself
//! Landlock                  of the host's files, only its libraries and the listed ones; no network
//! seccomp                   an allow list of system calls, or a deny list of those it never needs
//! ```
//!
//! Each layer works without the others. Most kernels since 5.13 have Landlock, but not all: it is
//! used where available.

mod calls;

use super::filter::{self, Rules};
use crate::error::{Context, Error, Result};
use calls::{INTRUSIVE, POD_PROCESS_ONLY, SERVER};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope,
};
use magnetar_sys::bound::{self, CapabilitySet, FilterInstruction};
use magnetar_sys::device_filter::COMMANDS;
use object::Endianness;
use object::elf::FileHeader64;
use object::read::ReadCache;
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use seccompiler::{SeccompCmpOp, SeccompRule};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The Landlock version of 2024, the first that restricts ioctl on devices, signals and abstract
/// sockets. An older kernel applies what it supports.
const LANDLOCK: ABI = ABI::V6;

/// Where programs have their libraries and data.
const LIBRARIES: [&str; 7] = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.preload", "/nix/store", "/gnu/store"];

/// What one program may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    /// The user and group that it runs as, without supplementary groups; root if `None`.
    pub user: Option<u32>,
    /// The capabilities that it can ever have.
    pub capabilities: CapabilitySet,
    /// Which processes it sees.
    pub pids: Pids,
    /// The host's files that it may use in addition to itself and its libraries; all files if
    /// `None`.
    pub files: Option<Files>,
    /// The system calls that it may make.
    pub calls: Calls,
}

/// Which processes a program sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pids {
    /// All processes that its parent sees.
    All,
    /// Only itself, as the first process of its own PID namespace.
    Itself,
    /// Itself and a holder: an idle process, which is the first one of their PID namespace. The
    /// holder dies with its parent, and the program dies with the holder. This is for a program
    /// that changes its user, because that clears its own parent-death signal (prctl(2)).
    ItselfAndHolder,
}

/// Files of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// Files that it may only read.
    pub read: Vec<PathBuf>,
    /// Devices, or directories of its own. It may do anything with them and create anything in
    /// them.
    pub own: Vec<PathBuf>,
}

/// Which system calls a program may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// All of them, because the program confines itself.
    All,
    /// All but those that reach into other processes, other namespaces or the kernel.
    DenyList,
    /// As `DenyList`, and of sockets only Unix ones. For a server with a device's driver, whose
    /// calls nobody knows beforehand.
    Driver,
    /// Those that a small server needs: memory, threads, files, Unix sockets and waiting for them.
    Server,
}

/// Capabilities that neither this process nor its hooks need once the pod runs. This process talks
/// to a guest, so it gives them up: CAP_LINUX_IMMUTABLE, NET_BROADCAST, IPC_LOCK, IPC_OWNER,
/// SYS_MODULE, SYS_RAWIO, SYS_PACCT, SYS_BOOT, SYS_TIME, SYS_TTY_CONFIG, LEASE, AUDIT_WRITE,
/// AUDIT_CONTROL, SETFCAP, MAC_OVERRIDE, MAC_ADMIN, SYSLOG, WAKE_ALARM, BLOCK_SUSPEND, AUDIT_READ,
/// PERFMON, BPF, CHECKPOINT_RESTORE.
const UNUSED_CAPABILITIES: [u32; 23] = [9, 11, 14, 15, 16, 17, 20, 22, 25, 26, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40];

/// Confines this process. It can still mount what containers need, create their device nodes, and
/// change which disks the hypervisor may open.
///
/// # Errors
/// Errors of the kernel.
pub fn confine_this_process() -> Result<()> {
    let mut denied: Rules = INTRUSIVE.iter().map(|call| (*call, Vec::new())).collect();
    denied.insert(libc::SYS_bpf, vec![bpf_but(&COMMANDS)?]);
    let filter = filter::deny(denied, libc::EPERM)?;
    let confined = bound::confine_self(CapabilitySet::but(&UNUSED_CAPABILITIES), &[filter]);
    confined.context(|| "cannot drop the capabilities and system calls that a running pod does not need".into())
}

/// Whether this kernel has the Landlock that programs with rules of their own ask for: version 3,
/// of Linux 6.2.
pub fn has_landlock() -> bool {
    let asked = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::from_all(ABI::V3));
    asked.and_then(Ruleset::create).is_ok()
}

impl Confinement {
    /// No confinement.
    pub const NONE: Self = Self { user: None, capabilities: CapabilitySet::ALL, pids: Pids::All, files: None, calls: Calls::All };

    /// The Landlock rules for `program`, which has its own /dev if there are `devices`. `None` if
    /// its files are not restricted, or the kernel has no Landlock.
    ///
    /// # Errors
    /// If the program, or a file that it may use, cannot be opened.
    pub fn ruleset(&self, program: &Path, devices: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>> {
        let Some(files) = &self.files else { return Ok(None) };
        let mut files = files.clone();
        files.own.extend(devices.map(|devices| PathBuf::from(format!("/proc/self/fd/{}", devices.as_raw_fd()))));
        ruleset(program, &files)
    }

    /// Its system call filters.
    ///
    /// # Errors
    /// If there is no filter for this architecture.
    pub fn filters(&self) -> Result<Vec<Vec<FilterInstruction>>> {
        match self.calls {
            Calls::All => Ok(Vec::new()),
            Calls::DenyList | Calls::Driver => {
                let mut denied: Rules = INTRUSIVE.iter().chain(POD_PROCESS_ONLY).map(|call| (*call, Vec::new())).collect();
                if self.calls == Calls::Driver {
                    denied.insert(libc::SYS_socket, vec![filter::when(0, SeccompCmpOp::Ne, UNIX)?]);
                }
                denied.insert(libc::SYS_clone, CLONE_NEW.iter().map(|flag| clone_with(*flag, *flag)).collect::<Result<_>>()?);
                // The flags of clone3(2) are in memory, where no filter sees them. Without this
                // call the C library uses clone(2).
                let absent = Rules::from([(libc::SYS_clone3, Vec::new())]);
                Ok(vec![filter::deny(denied, libc::EPERM)?, filter::deny(absent, libc::ENOSYS)?])
            }
            Calls::Server => {
                let mut allowed: Rules = SERVER.iter().map(|call| (*call, Vec::new())).collect();
                allowed.insert(libc::SYS_clone, vec![clone_with(CLONE_NEW.iter().fold(0, |all, flag| all | flag), 0)?]);
                // The program runs in the pod's network, so it gets Unix sockets only.
                allowed.insert(libc::SYS_socket, vec![filter::when(0, SeccompCmpOp::Eq, UNIX)?]);
                Ok(vec![filter::allow(allowed)?])
            }
        }
    }
}

/// The flags of clone(2) that make namespaces.
const CLONE_NEW: [u64; 7] = [
    libc::CLONE_NEWNS as u64,
    libc::CLONE_NEWUTS as u64,
    libc::CLONE_NEWIPC as u64,
    libc::CLONE_NEWUSER as u64,
    libc::CLONE_NEWPID as u64,
    libc::CLONE_NEWNET as u64,
    libc::CLONE_NEWCGROUP as u64,
];

/// A rule that matches clone(2) if its flags, masked by `mask`, are `flags`.
fn clone_with(mask: u64, flags: u64) -> Result<SeccompRule> {
    filter::when(0, SeccompCmpOp::MaskedEq(mask), flags)
}

/// A rule that matches bpf(2) with any other command than these.
fn bpf_but(commands: &[u64]) -> Result<SeccompRule> {
    filter::when_all(commands.iter().map(|command| (0, SeccompCmpOp::Ne, *command)))
}

/// The family of Unix sockets, which stay on this host.
const UNIX: u64 = libc::AF_UNIX as u64;

fn ruleset(program: &Path, files: &Files) -> Result<Option<OwnedFd>> {
    let what = || format!("cannot confine {} to its files", program.display());
    let failed = |error: landlock::RulesetError| Error::internal(format!("{}: {error}", what()));
    let execute = AccessFs::Execute | AccessFs::ReadFile;
    let mut rules: Vec<(PathBuf, BitFlags<AccessFs>)> = vec![(program.to_owned(), execute)];
    rules.extend(interpreter(program)?.map(|interpreter| (interpreter, execute)));
    // It may be installed under its own prefix, such as /opt/kata, with its data beside it.
    let real = program.canonicalize().context(what)?;
    let prefix = real.parent().and_then(Path::parent).filter(|prefix| prefix.parent().is_some());
    let read = LIBRARIES.iter().map(PathBuf::from).chain(prefix.map(Path::to_owned)).chain(files.read.iter().cloned());
    // Not every node has all of these paths.
    rules.extend(read.filter(|path| path.exists()).map(|path| (path, AccessFs::ReadFile | AccessFs::ReadDir)));
    rules.extend(files.own.iter().map(|path| (path.clone(), AccessFs::from_all(LANDLOCK) & !AccessFs::Execute)));
    let mut created = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(LANDLOCK)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(LANDLOCK)))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for (path, access) in rules {
        let opened = PathFd::new(&path).map_err(|error| Error::internal(format!("{}: {error}", what())))?;
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
        created = created.add_rule(PathBeneath::new(opened, access)).map_err(failed)?;
    }
    // None where the kernel has no Landlock.
    Ok(created.into())
}

/// The dynamic loader that the kernel runs for `program`, if it needs one (elf(5), `PT_INTERP`).
fn interpreter(program: &Path) -> Result<Option<PathBuf>> {
    let what = || format!("cannot read the program {}", program.display());
    let file = ReadCache::new(File::open(program).context(what)?);
    let no_program = |error: object::Error| Error::precondition(format!("{}: {error}; name the program itself, not a script", what()));
    let header = FileHeader64::<Endianness>::parse(&file).map_err(no_program)?;
    let endian = header.endian().map_err(no_program)?;
    for segment in header.program_headers(endian, &file).map_err(no_program)? {
        if let Some(path) = segment.interpreter(endian, &file).map_err(no_program)? {
            return Ok(Some(OsStr::from_bytes(path).into()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_sys::bound::Bounds;
    use std::process::{Command, Output};

    /// Runs a program with this confinement.
    fn run(confinement: &Confinement, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        let bounds = Bounds {
            ruleset: confinement.ruleset(Path::new(program), None).unwrap(),
            filters: confinement.filters().unwrap(),
            ..Bounds::default()
        };
        bound::bind(command.args(arguments), bounds).unwrap();
        command.output().unwrap()
    }

    fn confined(calls: Calls, files: Option<Files>) -> Confinement {
        Confinement { calls, files, ..Confinement::NONE }
    }

    #[test]
    fn a_programs_interpreter_is_found() {
        let interpreter = interpreter(Path::new("/bin/sh")).unwrap().unwrap();
        assert!(interpreter.is_file(), "{}", interpreter.display());
    }

    #[test]
    fn a_script_in_place_of_a_program_is_refused_with_advice() {
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&script, "#!/bin/sh\nexec qemu\n").unwrap();
        let error = interpreter(script.path()).unwrap_err().to_string();
        assert!(error.ends_with("name the program itself, not a script"), "{error}");
    }

    #[test]
    fn the_server_filter_allows_reading_and_denies_namespaces() {
        let output = run(&confined(Calls::Server, None), "/bin/cat", &["/proc/self/status"]);
        assert!(output.status.success(), "{output:?}");
        let output = run(&confined(Calls::Server, None), "/usr/bin/unshare", &["--user", "true"]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("Function not implemented"), "{output:?}");
    }

    #[test]
    fn the_deny_list_denies_namespaces_and_allows_a_shell() {
        let output = run(&confined(Calls::DenyList, None), "/usr/bin/unshare", &["--user", "true"]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("Operation not permitted"), "{output:?}");
        let output = run(&confined(Calls::DenyList, None), "/bin/sh", &["-c", "echo $(echo works)"]);
        assert_eq!(output.stdout, b"works\n", "{output:?}");
    }

    #[test]
    fn the_drivers_deny_list_has_no_network() {
        let is_denied = |calls| {
            let output = run(&confined(calls, None), "/bin/bash", &["-c", "exec 3<>/dev/tcp/127.0.0.1/9"]);
            String::from_utf8_lossy(&output.stderr).contains("Operation not permitted")
        };
        assert_eq!((is_denied(Calls::DenyList), is_denied(Calls::Driver)), (false, true));
        let output = run(&confined(Calls::Driver, None), "/usr/bin/unshare", &["--user", "true"]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("Operation not permitted"), "{output:?}");
    }

    #[test]
    fn landlock_allows_only_the_listed_files() {
        if confined(Calls::All, Some(Files::default())).ruleset(Path::new("/bin/cat"), None).unwrap().is_none() {
            return eprintln!("skipped: landlock_allows_only_the_listed_files: this kernel has no Landlock");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["named", "other"] {
            std::fs::write(path(name), name).unwrap();
        }
        let files = Some(Files { read: vec![path("named")], own: Vec::new() });
        let [named, other] = [path("named"), path("other")].map(|path| path.display().to_string());
        let output = run(&confined(Calls::All, files.clone()), "/bin/cat", &[&named, &other]);
        assert_eq!(output.stdout, b"named");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"), "{output:?}");
        // No other program can be executed.
        let output = run(&confined(Calls::All, files), "/bin/sh", &["-c", "/bin/cat /dev/null"]);
        assert!(!output.status.success(), "{output:?}");
        let own = Some(Files { read: Vec::new(), own: vec![dir.path().to_owned()] });
        let output = run(&confined(Calls::All, own), "/bin/rm", &[&other]);
        assert!(output.status.success() && !path("other").exists(), "{output:?}");
    }
}
