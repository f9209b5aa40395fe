// SPDX-License-Identifier: Apache-2.0
//! The maker: a program that is executed for one task.
//!
//! It never starts a second thread, so it can fork safely. It inherits only its three descriptors.
//! Changes that libcontainer makes to the process (the working directory, `oom_score_adj`, the
//! dumpable flag) end with the task.

use super::adapt;
use super::devices;
use super::exec;
use super::executor::{Entry, Prepared, Program};
use super::init;
use super::label;
use super::process::{adjust_oom_score, give_to};
use super::report::{self, chain, failure};
use super::wire::{self, Answer, Making, Request, Task};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::ids::ContainerId;
use crate::stdio::ChildStreams;
use libcgroups::common::{CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

/// Performs the task if this process was started for one; `main` must then return the exit code.
/// Call it first in `main`. `program` is what the container's process becomes.
pub fn run_if_asked<P: Program>(program: P) -> Option<ExitCode> {
    let asked = std::env::args_os().nth(1).is_some_and(|argument| argument == wire::FLAG);
    asked.then(|| match begin().and_then(|(request, streams)| perform(request, streams, program)) {
        Ok(answer) => {
            report::answer(&answer);
            ExitCode::SUCCESS
        }
        Err(error) => {
            report::failed(error);
            ExitCode::FAILURE
        }
    })
}

fn begin() -> Result<(Request, Option<ChildStreams>)> {
    let what = || "cannot become the process that makes containers".to_string();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context(what)?;
    magnetar_sys::fork::default_signals();
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    rustix::thread::set_thread_groups(&[]).context(what)?;
    let mut text = Vec::new();
    std::io::stdin().lock().read_to_end(&mut text).context(what)?;
    let socket = std::io::stdout().as_fd().try_clone_to_owned().context(what)?;
    let streams = wire::receive_streams(&socket).context(what)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(what)?;
    rustix::stdio::dup2_stdin(&null).context(what)?;
    rustix::stdio::dup2_stdout(&null).context(what)?;
    report::start(socket);
    // The container's processes may see processes that are forked from here on, and must not get
    // our log. Errors go through the socket.
    rustix::stdio::dup2_stderr(&null).context(what)?;
    label::look();
    let request = serde_json::from_slice(&text).map_err(|e| Error::internal(format!("{}: {e}", what())))?;
    Ok((request, streams))
}

fn perform<P: Program>(request: Request, streams: Option<ChildStreams>, mut program: P) -> Result<Answer> {
    let container = ContainerId::parse(request.container)?;
    let dir = request.root.join(container.as_str());
    match request.task {
        Task::Create { bundle, console } => {
            let adapted_dir = wire::bundle_dir(&request.root, &container);
            let adapted = adapt::write(&bundle, &adapted_dir, |spec| program.prepare(spec, &bundle, request.images.as_ref()))?;
            let Some(adapted) = adapted else { return Ok(Answer::ForOther) };
            if let Some(adjustment) = adapted.oom_score_adj {
                adjust_oom_score(adjustment);
            }
            let spec = &adapted.spec;
            join_rest(spec)?;
            if let Some(process) = spec.process() {
                report::remember_directory(process.cwd());
            }
            if let Some(streams) = &streams {
                give_to(spec, streams)?;
            }
            if adapted.is_plain {
                let console = console.map(UnixStream::connect).transpose().context(|| "cannot reach the terminal's socket".into())?;
                let systemd_cgroup = request.systemd_cgroup;
                let order = init::Order { container: &container, dir: &dir, bundle: &adapted_dir, systemd_cgroup, console, streams };
                let pid = init::make(order, spec, &adapted.json, program)?;
                return made(spec, pid);
            }
            let mut builder = ContainerBuilder::new(container.to_string(), SyscallType::Linux)
                .with_root_path(&request.root)
                .map_err(failure)?
                .with_executor(program)
                .with_console_socket(console);
            if let Some(streams) = streams {
                let ChildStreams { stdin, stdout, stderr } = streams;
                builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
            }
            let built = builder.as_init(&adapted_dir).with_systemd(request.systemd_cgroup).with_detach(true).build().map_err(failure)?;
            let pid = built.pid().ok_or_else(|| Error::internal("libcontainer made a container without a process"))?;
            made(spec, pid.as_raw() as u32)
        }
        Task::Started => {
            let container = running(&dir)?;
            let spec = load_spec(container.bundle())?;
            let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref());
            libcontainer::hooks::run_hooks(hooks, Some(&container.state), Some(&container.root), None, None)
                .map_err(|e| Error::internal(chain(&e)))?;
            Ok(Answer::Done)
        }
        Task::Exec { process, console } => {
            let container = running(&dir)?;
            let init = container.pid().ok_or_else(|| Error::precondition("the container has no process"))?.as_raw() as u32;
            let entry = Entry { bundle: container.bundle(), process: &process, init, images: request.images.as_ref() };
            if program.prepare_exec(&entry)? == Prepared::ByOther {
                return Ok(Answer::ForOther);
            }
            exec::run(&container, &process, console.as_deref(), streams, program).map(Answer::Made)
        }
        Task::Freeze(true) => running(&dir)?.pause().map_err(failure).map(|()| Answer::Done),
        Task::Freeze(false) => Container::load(dir).map_err(failure)?.resume().map_err(failure).map(|()| Answer::Done),
        Task::Update(resources) => update(&Container::load(dir).map_err(failure)?, &resources),
        Task::Delete => delete(&dir),
    }
}

/// Limits a container that waits for Start to its devices, and returns the answer about it.
fn made(spec: &Spec, pid: u32) -> Result<Answer> {
    devices::confine(spec)?;
    let hooks_after_start = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref()).is_some_and(|hooks| !hooks.is_empty());
    Ok(Answer::Made(Making { pid, owner: adapt::owner(spec), hooks_after_start }))
}

/// With v1, makes the container's cgroup, and joins it in the hierarchies that libcontainer does
/// not use, systemd's among them. So the processes that this one forks are in the container's
/// cgroup there, and not among the host's.
fn join_rest(spec: &Spec) -> Result<()> {
    let Some(cgroup @ Cgroup::V1 { .. }) = devices::cgroup_of(spec)? else { return Ok(()) };
    cgroup.create()?;
    cgroup.without(&adapt::CONTROLLERS).join(std::process::id())
}

/// Loads the container as a running one. libcontainer would write that state to a file at Start,
/// which only later tasks need. So it is set when such a task needs it.
fn running(dir: &Path) -> Result<Container> {
    let mut container = Container::load(dir.to_owned()).map_err(failure)?;
    match container.status() {
        ContainerStatus::Creating | ContainerStatus::Created => {
            container.set_status(ContainerStatus::Running);
            container.save().map_err(failure)?;
            Ok(container)
        }
        ContainerStatus::Running => Ok(container),
        status @ (ContainerStatus::Stopped | ContainerStatus::Paused) => Err(Error::precondition(format!("the container is {status}"))),
    }
}

fn update(container: &Container, resources: &str) -> Result<Answer> {
    let resources = serde_json::from_str(resources).map_err(|e| Error::invalid(format!("the new limits do not parse: {e}")))?;
    let config = CgroupConfig {
        cgroup_path: container.spec().map_err(failure)?.cgroup_path,
        systemd_cgroup: container.systemd(),
        container_name: container.id().to_owned(),
    };
    let changes = ControllerOpt { resources: &resources, disable_oom_killer: false, oom_score_adj: None, freezer_state: None };
    let manager = create_cgroup_manager(config).map_err(|e| Error::internal(chain(&e)))?;
    manager.apply(&changes).map_err(|e| Error::invalid(chain(&e)))?;
    Ok(Answer::Done)
}

fn delete(dir: &Path) -> Result<Answer> {
    if dir.exists() {
        match Container::load(dir.to_owned()) {
            Ok(mut container) => container.delete(true).map_err(failure)?,
            // It was never completed, so its state names no process.
            Err(_) => std::fs::remove_dir_all(dir).context(|| format!("cannot remove {}", dir.display()))?,
        }
    }
    Ok(Answer::Done)
}

fn load_spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    Spec::load(&path).map_err(|e| Error::invalid(format!("{} is no OCI specification: {}", path.display(), chain(&e))))
}
