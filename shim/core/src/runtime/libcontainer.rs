// SPDX-License-Identifier: Apache-2.0
//! Makes containers through the libcontainer crate, so that no OCI runtime has to be installed.
//!
//! ```text
//! sandbox process ──Request, streams──> maker ──libcontainer──> init ──start──> the user's program
//!        ^                                │                       │
//!        └──────────── Answers ───────────┴───────────────────────┘
//! ```
//!
//! A process that forks must have one thread, and the sandbox process may have more. So containers
//! are made by a *maker*: a program that is executed for one task and then ends. The process that
//! it made becomes a child of the sandbox process, a subreaper, as with any OCI runtime. Only the
//! maker is compiled with libcontainer (the feature of that name): the relocations of libcontainer
//! alone are 250 KiB of private memory, in every pod if the sandboxer itself had them.
//!
//! Why not a helper that is forked once and stays? Executing costs about a millisecond, and saves
//! the memory of a second process per pod. Changes to the maker's process end with it (such as
//! `oom_score_adj`, which needs CAP_SYS_RESOURCE to be changed back). A crash fails only one call.
//!
//! Start needs no maker: init waits at a FIFO. Init keeps the answers' socket open until it runs
//! the user's program, so Start knows that the program runs when the socket is closed.
//!
//! Deliberately absent: checkpoints. libcontainer needs CRIU for them, and cannot restore them.

#[cfg(feature = "libcontainer")]
mod adapt;
mod answers;
#[cfg(feature = "libcontainer")]
mod binds;
mod companions;
#[cfg(feature = "libcontainer")]
mod devices;
#[cfg(feature = "libcontainer")]
mod env;
#[cfg(feature = "libcontainer")]
mod exec;
#[cfg(feature = "libcontainer")]
mod executor;
mod features;
#[cfg(feature = "libcontainer")]
mod init;
#[cfg(feature = "libcontainer")]
mod inside;
#[cfg(feature = "libcontainer")]
mod label;
#[cfg(feature = "libcontainer")]
mod maker;
#[cfg(feature = "libcontainer")]
mod mounts;
#[cfg(feature = "libcontainer")]
mod nodes;
#[cfg(feature = "libcontainer")]
mod process;
#[cfg(feature = "libcontainer")]
mod report;
#[cfg(feature = "libcontainer")]
mod root;
#[cfg_attr(not(feature = "libcontainer"), allow(dead_code, reason = "only the maker uses the other half"))]
mod wire;

#[cfg(feature = "libcontainer")]
pub use executor::{Entry, Native, Prepared, Program, candidates, look_for_program};
#[cfg(feature = "libcontainer")]
pub use maker::run_if_asked;
#[cfg(feature = "libcontainer")]
pub use report::{ask_for_companion, failed, program_runs, warn};

pub use companions::{Asked, Companions};
pub use features::features;

use super::{Checkpoint, Creation, Execution, Made, Runtime, Streams};
use crate::config::RuntimeConfig;
use crate::error::{Code, Context, Error, Result};
use crate::ids::ContainerId;
use crate::packet;
use crate::reaper::Reaper;
use crate::record::PodDir;
use crate::stdio::ChildStreams;
use crate::terminal::ConsoleSocket;
use answers::Answers;
use rustix::fs::{Gid, MemfdFlags, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use wire::{Answer, Making, Request, Task};

/// `runtime.name` for containers made this way.
pub const NAME: &str = "libcontainer";

/// The FIFO in a container's state directory at which its init waits for Start.
const START: &str = "start";

/// `notify_socket::NOTIFY_FILE` of libcontainer, for the few containers that its builder makes.
const NOTIFY: &str = "notify.sock";

/// Where to ask for the images of containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    /// containerd's socket.
    pub address: PathBuf,
    /// The pod's namespace there.
    pub namespace: String,
}

/// libcontainer as a runtime.
#[derive(Debug)]
pub struct Libcontainer {
    /// The maker's program on a read-only mount, from which it is run.
    sealed: OwnedFd,
    /// A smaller maker for tasks that run no program of the container.
    helper: Option<OwnedFd>,
    /// A maker for programs that the first one cannot run.
    other: Option<OwnedFd>,
    /// An argument for the maker's own `main`.
    argument: Option<&'static str>,
    root: PathBuf,
    systemd_cgroup: bool,
    images: Option<Images>,
    companions: Option<Box<dyn Companions>>,
    reaper: Reaper,
    calls: AtomicU64,
    created: Mutex<BTreeMap<ContainerId, Created>>,
}

/// A container that waits for Start.
#[derive(Debug)]
struct Created {
    answers: Answers,
    hooks_after_start: bool,
}

impl Libcontainer {
    /// A runtime whose containers have their state in the pod's directory, and are made by the
    /// program `maker`. The maker's `main` calls `run_if_asked`.
    ///
    /// # Errors
    /// `InvalidArgument` if libcontainer cannot do what the configuration asks for on this host,
    /// `NotFound` if there is no such program.
    pub fn new(config: &RuntimeConfig, pod: &PodDir, reaper: Reaper, maker: PathBuf) -> Result<Self> {
        if config.systemd_cgroup && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            return Err(Error::invalid(
                "runtime.systemd_cgroup with runtime.name = \"libcontainer\" needs cgroup v2: use runc or crun here",
            ));
        }
        let root = pod.runtime_root();
        std::fs::create_dir_all(&root).context(|| format!("cannot make {}", root.display()))?;
        Ok(Self {
            sealed: seal(&maker)?,
            helper: None,
            other: None,
            argument: None,
            root,
            systemd_cgroup: config.systemd_cgroup,
            images: None,
            companions: None,
            reaper,
            calls: AtomicU64::new(0),
            created: Mutex::default(),
        })
    }

    /// Lets the maker ask for images.
    #[must_use]
    pub fn with_images(self, images: Images) -> Self {
        Self { images: Some(images), ..self }
    }

    /// Performs tasks that run no program of the container by another maker, which is smaller.
    ///
    /// # Errors
    /// `NotFound` if there is no such program.
    pub fn with_helper(self, helper: &Path) -> Result<Self> {
        Ok(Self { helper: Some(seal(helper)?), ..self })
    }

    /// Has another maker repeat a task of which the first answers that it cannot run the program.
    ///
    /// # Errors
    /// `NotFound` if there is no such program.
    pub fn with_other(self, other: &Path) -> Result<Self> {
        Ok(Self { other: Some(seal(other)?), ..self })
    }

    /// Gives the maker an argument, which is meant for its own `main`.
    #[must_use]
    pub fn with_argument(self, argument: Option<&'static str>) -> Self {
        Self { argument, ..self }
    }

    /// Runs what containers need beside them.
    #[must_use]
    pub fn with_companions(self, companions: Box<dyn Companions>) -> Self {
        Self { companions: Some(companions), ..self }
    }

    /// Has a maker perform a task. Returns its final answer, and the socket for later answers.
    async fn call(&self, container: &ContainerId, task: Task, streams: Option<ChildStreams>) -> Result<(Answer, Answers)> {
        let program = match (&task, &self.helper) {
            (Task::Create { .. } | Task::Exec { .. }, _) | (_, None) => &self.sealed,
            (Task::Started | Task::Freeze(_) | Task::Update(_) | Task::Delete, Some(helper)) => helper,
        };
        let request = Request {
            root: self.root.clone(),
            container: container.to_string(),
            systemd_cgroup: self.systemd_cgroup,
            images: self.images.clone(),
            task,
        };
        match (self.ask(program, &request, streams.as_ref()).await?, &self.other) {
            ((Answer::ForOther, _), Some(other)) => self.ask(other, &request, streams.as_ref()).await,
            (done, _) => Ok(done),
        }
    }

    /// Runs a maker for a request.
    async fn ask(&self, program: &OwnedFd, request: &Request, streams: Option<&ChildStreams>) -> Result<(Answer, Answers)> {
        let what = || "cannot call the process that makes containers".to_string();
        let text = serde_json::to_vec(request).map_err(|e| Error::internal(format!("{}: {e}", what())))?;
        let file = rustix::fs::memfd_create("request", MemfdFlags::CLOEXEC).context(what)?;
        let mut file = std::fs::File::from(file);
        file.write_all(&text).and_then(|()| file.rewind()).context(what)?;
        let (ours, theirs) = packet::pair().context(what)?;
        if let Some(streams) = streams {
            wire::send_streams(&ours, streams).context(what)?;
        }
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.arg(wire::FLAG).args(self.argument).env_clear().stdin(file).stdout(theirs).stderr(Stdio::inherit());
        let child = command.spawn().context(what)?;
        // Nothing was awaited since the spawn, so the reaper cannot have reaped it yet.
        let ended = self.reaper.watch(child.id());
        // Close our copy, so that only the maker and the container have this descriptor.
        drop(command);
        let mut answers = Answers::new(ours)?;
        let answer = answers.last().await;
        // The new process becomes our child only when the maker has ended.
        let exit = ended.await;
        match (answer, exit) {
            (Some(Answer::Failed(error)), _) => Err(answers.explained(error)),
            (Some(answer), _) => Ok((answer, answers)),
            (None, Ok(exit)) => {
                Err(answers.explained(Error::internal(format!("the process that makes containers ended with code {}", exit.code))))
            }
            (None, Err(_)) => Err(Error::internal("the process that makes containers ended, and its exit status was lost")),
        }
    }

    /// [`call`](Self::call) for a task that makes no process.
    async fn simple(&self, container: &ContainerId, task: Task) -> Result<()> {
        self.call(container, task, None).await.map(drop)
    }

    /// [`call`](Self::call) for a task that makes a process. `begin` gets the socket for later
    /// answers: when it is closed, the user's program runs.
    async fn make(
        &self,
        container: &ContainerId,
        streams: Streams,
        task: impl FnOnce(Option<PathBuf>) -> Task,
        begin: impl AsyncFnOnce(&Making, Answers) -> Result<()>,
    ) -> Result<Made> {
        let (streams, console) = match streams {
            Streams::Pipes(streams) => (Some(streams), None),
            Streams::Terminal => {
                let name = format!(".{}.tty", self.calls.fetch_add(1, Ordering::Relaxed));
                (None, Some(ConsoleSocket::bind(self.root.join(name))?))
            }
        };
        let path = console.as_ref().map(|socket| socket.path().to_owned());
        let (answer, answers) = self.call(container, task(path), streams).await?;
        let Answer::Made(making) = answer else { return Err(Error::internal("the process that makes containers did not make a process")) };
        begin(&making, answers).await?;
        let terminal = console.map(|socket| socket.receive().and_then(|master| give_terminal(master, making.owner))).transpose()?;
        Ok(Made { pid: making.pid, terminal })
    }

    fn created(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Created>> {
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime for Libcontainer {
    async fn create(&self, creation: Creation<'_>) -> Result<Made> {
        if creation.checkpoint.is_some() {
            return Err(no_checkpoints());
        }
        let id = creation.container;
        let bundle = creation.bundle.to_owned();
        self.make(
            id,
            creation.streams,
            |console| Task::Create { bundle, console },
            async |making, mut answers| {
                if let Some(asked) = answers.asked.take() {
                    let none = || Error::internal("the container asks for what nobody here runs");
                    self.companions.as_ref().ok_or_else(none)?.begin(id, creation.cgroup, asked)?;
                }
                self.created().insert(id.clone(), Created { answers, hooks_after_start: making.hooks_after_start });
                Ok(())
            },
        )
        .await
    }

    async fn start(&self, container: &ContainerId) -> Result<()> {
        let created = self.created().remove(container);
        let created = created.ok_or_else(|| Error::precondition("the container is not waiting to be started"))?;
        notify(&self.root.join(container.as_str()))?;
        created.answers.end().await?;
        if created.hooks_after_start {
            self.simple(container, Task::Started).await?;
        }
        Ok(())
    }

    async fn exec(&self, execution: Execution<'_>) -> Result<Made> {
        let process = String::from_utf8(execution.process.to_vec());
        let process = process.map_err(|_| Error::invalid(format!("the process of exec {} is not UTF-8", execution.exec)))?;
        let task = |console| Task::Exec { process, console };
        self.make(execution.container, execution.streams, task, async |_, answers| answers.end().await).await
    }

    async fn freeze(&self, container: &ContainerId, frozen: bool) -> Result<()> {
        self.simple(container, Task::Freeze(frozen)).await
    }

    async fn update(&self, container: &ContainerId, resources: &[u8]) -> Result<()> {
        let resources = String::from_utf8(resources.to_vec());
        let resources = resources.map_err(|_| Error::invalid(format!("the new limits of container {container} are not UTF-8")))?;
        self.simple(container, Task::Update(resources)).await
    }

    async fn checkpoint(&self, _: &ContainerId, _: Checkpoint) -> Result<()> {
        Err(no_checkpoints())
    }

    async fn delete(&self, container: &ContainerId) -> Result<()> {
        self.created().remove(container);
        if let Some(companions) = &self.companions {
            companions.end(container).await;
        }
        if self.root.join(container.as_str()).exists() {
            self.simple(container, Task::Delete).await?;
        }
        let bundle = wire::bundle_dir(&self.root, container);
        match std::fs::remove_dir_all(&bundle) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(|| format!("cannot remove {}", bundle.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Mounts a program read-only at no path, so that nobody can change it or put another in its place.
fn seal(program: &Path) -> Result<OwnedFd> {
    magnetar_sys::sealed::read_only(program).context(|| format!("cannot mount {} read-only", program.display()))
}

fn no_checkpoints() -> Error {
    Error::new(Code::Unimplemented, "no checkpoints with runtime.name = \"libcontainer\": use runc, with criu installed")
}

/// Lets the waiting init go on: through its FIFO, or through a socket if libcontainer's builder
/// made it. The socket's path is too long for an address, so it is reached through its directory.
fn notify(state: &Path) -> Result<()> {
    let what = || "cannot reach the init, which has ended".to_string();
    // Non-blocking, because the FIFO has no reader if the init has ended.
    match rustix::fs::open(state.join(START), OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fifo) => return rustix::io::write(&fifo, b"!").map(drop).context(what),
        Err(rustix::io::Errno::NXIO) => return Err(Error::precondition(what())),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).context(what),
    }
    let dir = rustix::fs::open(state, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("cannot open {}", state.display()))?;
    let mut init = UnixStream::connect(format!("/proc/self/fd/{}/{NOTIFY}", dir.as_raw_fd())).context(what)?;
    init.write_all(b"start container").context(what)
}

/// Makes a terminal belong to the user who may reopen it by its name.
fn give_terminal(master: OwnedFd, owner: u32) -> Result<OwnedFd> {
    if owner != 0 {
        let what = || "cannot give the terminal to the container's user".to_string();
        let slave =
            rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context(what)?;
        rustix::fs::fchown(&slave, Some(Uid::from_raw(owner)), None::<Gid>).context(what)?;
    }
    Ok(master)
}
