// SPDX-License-Identifier: Apache-2.0
//! Starts an exec: another process in a running container.
//!
//! libcontainer 0.7 has a builder for it, which is not used: its processes get no seccomp filter,
//! do not enter the container's user namespace (they are root on the host), and each leaves a
//! socket behind. The crate's other parts are used: capabilities, seccomp, AppArmor, terminals.
//!
//! ```text
//! maker   joins all namespaces of init, forks, reports the process id and ends
//!  └─ copy   is in the PID namespace too; joins the cgroup, sets terminal or streams, drops privileges, becomes the program
//! ```

use super::adapt;
use super::devices;
use super::env;
use super::process::{adjust_oom_score, give_to};
use super::report::{self, chain};
use super::wire::Making;
use crate::cgroup::Cgroup;
use crate::error::{Code, Context, Error, Result};
use crate::stdio::ChildStreams;
use libcontainer::container::Container;
use libcontainer::oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Process, Spec};
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::Executor;
use libcontainer::{apparmor, capabilities, seccomp, tty};
use magnetar_sys::keyring;
use nix::sched::CloneFlags;
use rustix::process::{DumpableBehavior, Gid, Pid, PidfdFlags, Uid};
use std::ffi::{CStr, CString};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// `CLONE_NEWTIME` of `linux/sched.h`, which nix does not have.
const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

/// Starts `process`, JSON, in `container`.
///
/// # Errors
/// Why the copy cannot be made. Later errors are reported by the copy itself.
pub fn run(
    container: &Container,
    process: &str,
    console: Option<&Path>,
    streams: Option<ChildStreams>,
    executor: impl Executor,
) -> Result<Making> {
    let unreadable = |e: serde_json::Error| Error::invalid(format!("the process does not parse: {e}"));
    let mut process = serde_json::from_str(process).map_err(unreadable)?;
    adapt::leave_out_unknown(&mut process);
    let process: Process = serde_json::from_value(process.into()).map_err(unreadable)?;
    let init = container.pid().and_then(|pid| Pid::from_raw(pid.as_raw()));
    let init = init.ok_or_else(|| Error::precondition("the container has no process"))?;
    let mut spec = Spec::load(container.bundle().join("config.json")).map_err(|e| Error::internal(chain(&e)))?;
    refuse_unsupported(&process)?;
    spec.set_process(Some(process));
    let owner = adapt::owner(&spec);
    if let Some(streams) = &streams {
        give_to(&spec, streams)?;
    }
    let console = console.map(UnixStream::connect).transpose().context(|| "cannot reach the terminal's socket".into())?;
    // The container's processes must not look into this one (CVE-2016-9962).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context(|| "cannot protect the maker from the container's processes".into())?;
    // Only the copy joins the cgroup: if the container is at its limit of processes, this process
    // could not fork the copy in there.
    let cgroup = entrance(&spec, init)?;
    enter(&spec, init)?;
    let pid = magnetar_sys::fork::spawn(|| {
        let Err(error) = become_program(&spec, container.id(), cgroup, console, streams, executor);
        report::failed(error);
        // A shell's exit code for a program that cannot be run.
        126
    });
    Ok(Making { pid: pid.context(|| "cannot fork".into())?, owner, hooks_after_start: false })
}

/// Refuses settings that libcontainer has for an init only. No client has asked for them in an
/// exec.
fn refuse_unsupported(process: &Process) -> Result<()> {
    let asked = [
        ("scheduler", process.scheduler().is_some()),
        ("ioPriority", process.io_priority().is_some()),
        ("execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((name, _)) => {
            Err(Error::unimplemented(format!("process.{name} of an exec is not supported with runtime.name = \"libcontainer\"")))
        }
        None => Ok(()),
    }
}

fn enter(spec: &Spec, init: Pid) -> Result<()> {
    let process = spec.process().as_ref();
    if let Some(adjustment) = process.and_then(Process::oom_score_adj) {
        adjust_oom_score(adjustment.into());
    }
    let pidfd = rustix::process::pidfd_open(init, PidfdFlags::empty()).context(|| "the container has ended".into())?;
    // Raising a hard limit needs the host's privileges.
    let syscall = SyscallType::Linux.create_syscall();
    for limit in process.and_then(|process| process.rlimits().as_ref()).into_iter().flatten() {
        syscall.set_rlimit(limit).map_err(|e| Error::internal(format!("cannot set the limit {:?}: {e}", limit.typ())))?;
    }
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let flags = flags(namespaces);
    nix::sched::setns(&pidfd, flags).context(|| format!("cannot enter the container's namespaces ({flags:?})"))?;
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        become_user(Uid::ROOT, Gid::ROOT, &[])?;
    }
    Ok(())
}

/// Opens the container's cgroup for joining. With v2 a container may have moved its processes into
/// cgroups below (systemd does), and then no process can join the cgroup itself. In that case it is
/// the cgroup of init, if that is below.
fn entrance(spec: &Spec, init: Pid) -> Result<Vec<OwnedFd>> {
    let Some(cgroup) = devices::cgroup_of(spec)? else { return Ok(Vec::new()) };
    if let Cgroup::V2 { dir } = &cgroup
        && std::fs::read_to_string(dir.join("cgroup.subtree_control")).is_ok_and(|handed_on| !handed_on.trim().is_empty())
        && let Cgroup::V2 { dir: inits } = Cgroup::of_process(init.as_raw_nonzero().get() as u32)?
        && inits.starts_with(dir)
    {
        return Cgroup::V2 { dir: inits }.entrance();
    }
    cgroup.entrance()
}

pub(super) fn flags(namespaces: &[LinuxNamespace]) -> CloneFlags {
    let flag = |namespace: &LinuxNamespace| match namespace.typ() {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::Time => CLONE_NEWTIME,
    };
    namespaces.iter().map(flag).collect()
}

/// Runs in the copy.
fn become_program(
    spec: &Spec,
    container: &str,
    cgroup: Vec<OwnedFd>,
    console: Option<UnixStream>,
    streams: Option<ChildStreams>,
    executor: impl Executor,
) -> Result<std::convert::Infallible> {
    for procs in cgroup {
        rustix::io::write(&procs, b"0").context(|| "cannot join the container's cgroup".into())?;
    }
    rustix::process::setsid().context(|| "cannot make a session".into())?;
    join_keys(container, keyring::join_session)?;
    if let Some(console) = console {
        set_console(console, false, spec.process().as_ref())?;
    }
    if let Some(streams) = streams {
        set_streams(&streams)?;
    }
    give_up_privileges(spec)?;
    let spec = with_variables(spec)?;
    executor.validate(&spec).map_err(|e| Error::invalid(chain(&e)))?;
    match executor.exec(&spec) {
        Ok(()) => Err(Error::internal("the program was not run")),
        Err(e) => Err(Error::invalid(chain(&e))),
    }
}

/// Joins the session keyring of the container's processes, which no other container has. It has the
/// same name as with runc.
pub(super) fn join_keys(container: &str, join: fn(&CStr) -> std::io::Result<()>) -> Result<()> {
    let what = || "cannot join the container's ring of keys".to_string();
    let name = CString::new(format!("_ses.{container}")).map_err(|_| Error::internal(what()))?;
    match join(&name) {
        // The kernel has no keyrings.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        joined => joined.context(what),
    }
}

/// Makes a new terminal the controlling terminal of this process, and sends its master through
/// `socket`. With `mount`, it is the container's console as well. It belongs to the user that
/// `process` becomes, who could not open it otherwise.
pub(super) fn set_console(socket: UnixStream, mount: bool, process: Option<&Process>) -> Result<()> {
    let syscall = SyscallType::Linux.create_syscall();
    tty::setup_console(syscall.as_ref(), socket.into_raw_fd(), mount).map_err(|e| Error::internal(chain(&e)))?;
    let user = process.map(|process| Uid::from_raw(process.user().uid()));
    rustix::fs::fchown(rustix::stdio::stdin(), user, None).context(|| "cannot give the terminal to the process's user".into())
}

/// Makes them standard input, output and error.
pub(super) fn set_streams(streams: &ChildStreams) -> Result<()> {
    let what = || "cannot set the process's streams".to_string();
    rustix::stdio::dup2_stdin(&streams.stdin).context(what)?;
    rustix::stdio::dup2_stdout(&streams.stdout).context(what)?;
    rustix::stdio::dup2_stderr(&streams.stderr).context(what)
}

/// Switches to the user, capabilities and working directory of the specification's process. Steps
/// that need privileges come before the privileges are dropped. The seccomp filter comes as late as
/// possible.
pub(super) fn give_up_privileges(spec: &Spec) -> Result<()> {
    let process = spec.process().as_ref().ok_or_else(|| Error::internal("no process"))?;
    let syscall = SyscallType::Linux.create_syscall();
    let syscall = syscall.as_ref();
    let user = process.user();
    if let Some(profile) = process.apparmor_profile() {
        apparmor::apply_profile(profile).map_err(|e| Error::internal(chain(&e)))?;
    }
    if let Some(umask) = user.umask() {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
    }
    let confined = process.no_new_privileges().unwrap_or_default();
    if confined {
        rustix::thread::set_no_new_privs(true).context(|| "cannot set no_new_privs".into())?;
    }
    let in_place = change_dir(process, false)?;
    if !confined {
        filter_calls(spec)?;
    }
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    become_user(Uid::from_raw(user.uid()), Gid::from_raw(user.gid()), &groups)?;
    syscall.close_range(0).map_err(|e| Error::internal(format!("cannot close what the program must not have: {e}")))?;
    capabilities::reset_effective(syscall).map_err(|e| Error::internal(chain(&e)))?;
    if let Some(capabilities) = process.capabilities() {
        capabilities::drop_privileges(capabilities, syscall)
            .map_err(|e| Error::internal(format!("cannot set the capabilities: {}", chain(&e))))?;
    }
    if !in_place {
        change_dir(process, true)?;
    }
    // A working directory outside of the container's root would be a way out of it
    // (CVE-2024-21626).
    std::env::current_dir().context(|| "the working directory is not in the container".into())?;
    if confined {
        filter_calls(spec)?;
    }
    Ok(())
}

/// Changes to the working directory; returns whether that worked. Root may not be allowed where the
/// user is, as on NFS; then it is tried again as the user.
fn change_dir(process: &Process, as_user: bool) -> Result<bool> {
    let dir = process.cwd();
    if dir.as_os_str().is_empty() {
        return Ok(true);
    }
    match rustix::process::chdir(dir) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) if !as_user => Ok(false),
        Err(e) => Err(e).context(|| format!("cannot change to the working directory {}", dir.display())),
    }
}

pub(super) fn become_user(uid: Uid, gid: Gid, groups: &[Gid]) -> Result<()> {
    let what = || format!("cannot become the user {}:{}", uid.as_raw(), gid.as_raw());
    rustix::thread::set_keep_capabilities(true).context(what)?;
    rustix::thread::set_thread_groups(groups).context(what)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).context(what)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).context(what)
}

fn filter_calls(spec: &Spec) -> Result<()> {
    let Some(filter) = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else { return Ok(()) };
    if seccomp::is_notify(filter) {
        return Err(Error::new(Code::Unimplemented, "a seccomp filter that asks an agent is not supported for an exec"));
    }
    seccomp::initialize_seccomp(filter).map(drop).map_err(|e| Error::internal(chain(&e)))
}

/// The specification with the process's final environment.
fn with_variables(spec: &Spec) -> Result<Spec> {
    let mut spec = spec.clone();
    if let Some(process) = spec.process_mut() {
        let uid = process.user().uid().into();
        let given = process.env().clone().unwrap_or_default();
        process.set_env(Some(env::settled(given, || env::home_here(uid).unwrap_or_else(env::default_home))?));
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::oci_spec::runtime::LinuxNamespaceBuilder;

    #[test]
    fn an_exec_enters_all_namespaces_of_the_container() {
        let namespace = |typ| LinuxNamespaceBuilder::default().typ(typ).build().unwrap();
        let all = [LinuxNamespaceType::User, LinuxNamespaceType::Mount, LinuxNamespaceType::Time].map(namespace);
        assert_eq!(flags(&all), CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CLONE_NEWTIME);
        assert_eq!(flags(&[]), CloneFlags::empty());
    }
}
