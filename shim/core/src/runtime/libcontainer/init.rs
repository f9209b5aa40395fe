// SPDX-License-Identifier: Apache-2.0
//! Makes the first process of a container, without libcontainer's builder.
//!
//! ```text
//! maker     opens everything that will be mounted; forks, and waits for a line from each process
//!  ├─ entrance   joins the cgroup and the namespaces, leaves the host's root; forks init as its sibling, and ends
//!  └─ init       makes mounts, devices, links by descriptor beneath its root; drops privileges; waits for Start; becomes the program
//! ```
//!
//! The builder makes devices by paths of the host, which another container of the pod can exchange
//! meanwhile. Its processes are also visible in a shared PID namespace before they have left the
//! host's root. Here init is forked only after the host's root was left. Other parts of the crate
//! are used: cgroups, capabilities, seccomp, AppArmor, terminals, the state on disk.
//!
//! Start is one byte in a FIFO. Init needs only `read` for it, which every seccomp filter allows.
//!
//! Deliberately absent: settings that no container of the CRI has by default. The builder makes
//! containers with those ([`is_for`]).

use super::START;
use super::exec::{become_user, flags, give_up_privileges, join_keys, set_streams};
use super::executor::Program;
use super::inside::Inside;
use super::mounts;
use super::report::{self, chain, failure};
use crate::error::{Context, Error, Result};
use crate::ids::ContainerId;
use crate::stdio::ChildStreams;
use libcgroups::common::{CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
use libcontainer::config::YoukiConfig;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use libcontainer::syscall::syscall::SyscallType;
use magnetar_sys::keyring;
use magnetar_sys::namespace::{self, Attributes};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Pid, Signal, Uid, WaitOptions};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The inputs for making a container.
pub struct Order<'a> {
    /// Its name.
    pub container: &'a ContainerId,
    /// The directory of its state, which is made here.
    pub dir: &'a Path,
    /// The adapted bundle.
    pub bundle: &'a Path,
    /// Whether its cgroup is made through systemd.
    pub systemd_cgroup: bool,
    /// The socket for its terminal's master.
    pub console: Option<UnixStream>,
    /// Its streams, if it has no terminal.
    pub streams: Option<ChildStreams>,
}

/// Whether a specification has only settings that are implemented here.
pub fn is_for(spec: &Spec) -> bool {
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| {
        let before_the_program = [hooks.create_runtime(), hooks.create_container(), hooks.start_container()];
        #[allow(deprecated, reason = "clients still set the deprecated fields")]
        let prestart = hooks.prestart();
        before_the_program.into_iter().chain([prestart]).any(|hooks| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty()))
    });
    let (Some(linux), Some(process)) = (spec.linux(), spec.process()) else { return false };
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let new = |kind| namespaces.iter().any(|namespace| namespace.typ() == kind && namespace.path().is_none());
    let notifies = linux.seccomp().as_ref().is_some_and(libcontainer::seccomp::is_notify);
    let rare = [
        hooks,
        notifies,
        new(LinuxNamespaceType::User),
        new(LinuxNamespaceType::Time),
        !new(LinuxNamespaceType::Mount),
        linux.intel_rdt().is_some(),
        linux.personality().is_some(),
        linux.memory_policy().is_some(),
        linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()),
        process.scheduler().is_some(),
        process.io_priority().is_some(),
    ];
    !rare.contains(&true)
}

/// Makes the container up to the point where its init waits for Start. Returns init's process id;
/// it is a child of this process.
///
/// # Errors
/// Why it cannot be made. Only its cgroup is left then.
pub fn make<P: Program>(order: Order<'_>, spec: &Spec, json: &Value, program: P) -> Result<u32> {
    let Order { container, dir, bundle, systemd_cgroup, console, streams } = order;
    rustix::fs::mkdir(dir, Mode::RWXU).context(|| format!("cannot make {}", dir.display()))?;
    let made = (|| {
        let mut state = Container::new(container.as_str(), ContainerStatus::Creating, None, bundle, dir).map_err(failure)?;
        state.set_systemd(systemd_cgroup).set_annotations(spec.annotations().clone());
        state.save().map_err(failure)?;
        let config = YoukiConfig::from_spec(spec, container.as_str()).and_then(|config| config.save(dir));
        config.map_err(|e| Error::internal(chain(&e)))?;
        let start = start_fifo(dir)?;
        let new = Init::prepare(spec, json, systemd_cgroup, container, console, streams, start)?;
        let pid = new.spawn(spec, program)?;
        state.set_pid(pid as i32).set_status(ContainerStatus::Created).save().map_err(failure)?;
        Ok(pid)
    })();
    if made.is_err() {
        // The error above is reported. If the directory stays, Delete removes it.
        let _left = std::fs::remove_dir_all(dir);
    }
    made
}

/// Makes the FIFO at which init waits. It is opened for reading and writing, so that it never ends
/// for lack of a writer.
fn start_fifo(dir: &Path) -> Result<OwnedFd> {
    let path = dir.join(START);
    let what = || format!("cannot make {}", path.display());
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).context(what)?;
    rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(what)
}

/// Everything that is opened on the host before any process of the container exists.
struct Init {
    cgroup: CgroupConfig,
    root: OwnedFd,
    inside: Inside,
    entered: Vec<(CloneFlags, OwnedFd)>,
    made: CloneFlags,
    streams: Option<ChildStreams>,
    start: OwnedFd,
}

impl Init {
    fn prepare(
        spec: &Spec,
        json: &Value,
        systemd_cgroup: bool,
        container: &ContainerId,
        console: Option<UnixStream>,
        streams: Option<ChildStreams>,
        start: OwnedFd,
    ) -> Result<Self> {
        let missing = |what: &str| Error::invalid(format!("the specification has no {what}"));
        let linux = spec.linux().as_ref().ok_or_else(|| missing("linux"))?;
        let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
        let mut made = CloneFlags::empty();
        let mut entered = Vec::new();
        for namespace in linux.namespaces().as_deref().unwrap_or_default() {
            match opened(namespace)? {
                Some(fd) => entered.push((flags(std::slice::from_ref(namespace)), fd)),
                None => made |= flags(std::slice::from_ref(namespace)),
            }
        }
        let has_users = entered.iter().any(|(kind, _)| *kind == CloneFlags::CLONE_NEWUSER);
        let tree = mounts::copy(root.path(), true)?;
        let private = Attributes { propagation: libc::MS_PRIVATE, ..Attributes::default() };
        namespace::set_attributes(&tree, private, true).context(|| "cannot make the container's mounts private".into())?;
        Ok(Self {
            cgroup: CgroupConfig {
                cgroup_path: linux.cgroups_path().clone().unwrap_or_else(|| PathBuf::from(container.as_str())),
                systemd_cgroup,
                container_name: container.to_string(),
            },
            root: tree,
            inside: Inside::prepare(spec, json, has_users, console)?,
            entered,
            made,
            streams,
            start,
        })
    }

    /// Forks the entrance, which makes init. Returns when init waits for Start.
    fn spawn<P: Program>(self, spec: &Spec, program: P) -> Result<u32> {
        let what = || "cannot make the container's first process".to_string();
        let (words, says) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(what)?;
        let entrance = magnetar_sys::fork::spawn(|| exit_code(self.enter(spec, program, &says))).context(what)?;
        drop(says);
        let mut lines = Lines::default();
        // Init keeps the other end until it becomes the program, and some programs until their end.
        // So do not wait for the pipe's end, but for the lines.
        let mut words = File::from(words);
        let mut byte = [0];
        while lines.pid.is_none() || !lines.ready {
            match words.read(&mut byte) {
                Ok(1) => lines.take(byte[0]),
                Ok(_) | Err(_) => break,
            }
        }
        wait(entrance);
        match (lines.pid, lines.ready) {
            (Some(pid), true) => Ok(pid),
            (pid, _) => {
                if let Some(pid) = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
                    // It is our child and has not been reaped, so no other process can have its id.
                    let _ended_already = rustix::process::kill_process(pid, Signal::KILL);
                    let _reaped = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                }
                // The process that failed has usually reported why. This error is for a process
                // that could not.
                Err(Error::internal("the container's first process ended before it was ready"))
            }
        }
    }

    /// Runs in the entrance.
    fn enter<P: Program>(self, spec: &Spec, program: P, says: &OwnedFd) -> Result<i32> {
        let manager = create_cgroup_manager(self.cgroup.clone()).map_err(|e| Error::internal(chain(&e)))?;
        // The id's type is of another version of nix, so it is made this way.
        let own = Container::default().set_pid(std::process::id() as i32).pid().ok_or_else(|| Error::internal("no process id"))?;
        manager.add_task(own).map_err(|e| Error::internal(format!("cannot join the container's cgroup: {}", chain(&e))))?;
        if let Some(resources) = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) {
            let limits = ControllerOpt { resources, disable_oom_killer: false, oom_score_adj: None, freezer_state: None };
            manager.apply(&limits).map_err(|e| Error::internal(format!("cannot limit the container: {}", chain(&e))))?;
        }
        // Raising a hard limit needs the host's privileges.
        let syscall = SyscallType::Linux.create_syscall();
        for limit in spec.process().as_ref().and_then(|process| process.rlimits().as_ref()).into_iter().flatten() {
            syscall.set_rlimit(limit).map_err(|e| Error::internal(format!("cannot set the limit {:?}: {e}", limit.typ())))?;
        }
        let users = self.entered.iter().find(|(kind, _)| *kind == CloneFlags::CLONE_NEWUSER);
        // With the host's rights, because some namespaces may be the host's: for example UTS, in a
        // pod with the host's network.
        for (kind, fd) in self.entered.iter().filter(|(kind, _)| *kind != CloneFlags::CLONE_NEWUSER) {
            setns(fd, *kind).context(|| format!("cannot enter a namespace of the container ({kind:?})"))?;
        }
        if let Some((kind, fd)) = users {
            setns(fd, *kind).context(|| "cannot enter the container's user namespace".into())?;
            become_user(Uid::ROOT, Gid::ROOT, &[])?;
        }
        unshare(self.made).context(|| format!("cannot make the container's namespaces ({:?})", self.made))?;
        if self.made.contains(CloneFlags::CLONE_NEWUTS) {
            if let Some(name) = spec.hostname() {
                rustix::system::sethostname(name.as_bytes()).context(|| format!("cannot set the hostname {name:?}"))?;
            }
            if let Some(name) = spec.domainname() {
                rustix::system::setdomainname(name.as_bytes()).context(|| format!("cannot set the domain name {name:?}"))?;
            }
        }
        let has_users = users.is_some();
        let downstream = MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM;
        rustix::mount::mount_change("/", downstream).context(|| "cannot keep the container's mounts from the host".into())?;
        let old = mounts::enter(&self.root)?;
        // In a user namespace, /proc can be mounted only while another one is visible that hides
        // nothing.
        let old = if has_users { Some(old) } else { mounts::forget(old).map(|()| None)? };
        let init = magnetar_sys::fork::sibling(|| match self.become_program(spec, old, program, says) {
            Ok(never) => match never {},
            Err(error) => {
                report::failed(error);
                // A shell's exit code for a program that cannot be run.
                126
            }
        });
        let pid = init.context(|| "cannot fork the container's first process".into())?;
        report_line(says, &format!("pid {pid}\n"))?;
        Ok(0)
    }

    /// Runs in init.
    fn become_program<P: Program>(
        mut self,
        spec: &Spec,
        old: Option<OwnedFd>,
        program: P,
        says: &OwnedFd,
    ) -> Result<std::convert::Infallible> {
        rustix::process::setsid().context(|| "cannot make a session".into())?;
        join_keys(&self.cgroup.container_name, keyring::make_session)?;
        if let Some(streams) = self.streams.take() {
            set_streams(&streams)?;
        }
        self.inside.set_up(spec, old)?;
        give_up_privileges(spec)?;
        program.validate(spec).map_err(|e| Error::invalid(chain(&e)))?;
        program.setup_envs(std::collections::HashMap::new()).map_err(|e| Error::invalid(chain(&e)))?;
        report_line(says, READY)?;
        wait_for_start(&self.start)?;
        match program.exec(spec) {
            Ok(()) => Err(Error::internal("the program was not run")),
            Err(e) => Err(Error::invalid(chain(&e))),
        }
    }
}

/// The line of an init that waits for Start.
const READY: &str = "ready\n";

/// The lines of the two processes so far, in either order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lines {
    line: String,
    pid: Option<u32>,
    ready: bool,
}

impl Lines {
    fn take(&mut self, byte: u8) {
        self.line.push(char::from(byte));
        if byte == b'\n' {
            self.ready |= self.line == READY;
            self.pid = self.pid.or_else(|| self.line.trim_end().strip_prefix("pid ")?.parse().ok());
            self.line.clear();
        }
    }
}

fn report_line(says: &OwnedFd, word: &str) -> Result<()> {
    // A short write to a pipe is atomic.
    rustix::io::write(says, word.as_bytes()).map(drop).context(|| "cannot report the container's first process to the maker".into())
}

/// The exit code of a forked process. Reports an error.
fn exit_code(outcome: Result<i32>) -> i32 {
    outcome.unwrap_or_else(|error| {
        report::failed(error);
        126
    })
}

fn wait(child: u32) {
    if let Some(pid) = i32::try_from(child).ok().and_then(Pid::from_raw) {
        let _reaped = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    }
}

fn wait_for_start(start: &OwnedFd) -> Result<()> {
    let mut byte = [0];
    loop {
        match rustix::io::read(start, &mut byte[..]) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error).context(|| "cannot wait for the start".into()),
        }
    }
}

fn opened(namespace: &LinuxNamespace) -> Result<Option<OwnedFd>> {
    let Some(path) = namespace.path() else { return Ok(None) };
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    fd.map(Some).context(|| format!("cannot open the namespace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_understood_in_either_order() {
        for words in ["pid 7\nready\n", "ready\npid 7\n"] {
            let mut lines = Lines::default();
            words.bytes().for_each(|byte| lines.take(byte));
            assert_eq!((lines.pid, lines.ready), (Some(7), true), "{words:?}");
        }
        let mut lines = Lines::default();
        "pid seven\nrea".bytes().for_each(|byte| lines.take(byte));
        assert_eq!((lines.pid, lines.ready), (None, false));
    }

    #[test]
    fn specifications_with_rare_settings_are_left_to_the_builder() {
        let spec = |linux: &str, more: &str| {
            let text = format!(
                r#"{{"ociVersion":"1.1.0","root":{{"path":"r"}},"process":{{"user":{{"uid":0,"gid":0}},"args":["x"],"cwd":"/"}},"linux":{{{linux}}}{more}}}"#
            );
            serde_json::from_str::<Spec>(&text).unwrap()
        };
        let plain = r#""namespaces":[{"type":"mount"},{"type":"pid"},{"type":"network","path":"/proc/1/ns/net"}]"#;
        assert!(is_for(&spec(plain, "")));
        assert!(is_for(&spec(plain, r#","hooks":{"poststart":[{"path":"/bin/true"}]}"#)));
        for (linux, more) in [
            (r#""namespaces":[{"type":"pid"}]"#, ""),
            (r#""namespaces":[{"type":"mount"},{"type":"user"}]"#, ""),
            (plain, r#","hooks":{"createContainer":[{"path":"/bin/true"}]}"#),
        ] {
            assert!(!is_for(&spec(linux, more)), "{linux} {more}");
        }
    }
}
