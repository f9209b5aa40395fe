// SPDX-License-Identifier: Apache-2.0
//! Makes containers through the OCI command line of runc, crun and compatible programs.
//!
//! The command line is the one that runc documents and crun follows. The runtime logs JSON, and the
//! caller gets the last error in the log. The log is a memory file of this process, not a file on
//! the host, because an exec has it open for a moment in which the container's other processes may
//! see it. The [`Reaper`] reaps the runtime's processes like any other child.

use super::{Checkpoint, Creation, Execution, Made, Runtime, Streams};
use crate::config::RuntimeConfig;
use crate::error::{Code, Context, Error, Result};
use crate::ids::ContainerId;
use crate::reaper::{Exit, Reaper};
use crate::record::PodDir;
use crate::stdio::ChildStreams;
use crate::terminal::ConsoleSocket;
use rustix::fs::MemfdFlags;
use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task;
use tokio::sync::oneshot;

/// How many bytes of the runtime's log are searched for its last error. Each call has a log of its
/// own.
const LOG: usize = 64 * 1024;

/// An OCI runtime as a program.
#[derive(Debug)]
pub struct CommandLine {
    program: PathBuf,
    systemd_cgroup: bool,
    root: PathBuf,
    reaper: Reaper,
    calls: AtomicU64,
}

impl CommandLine {
    /// The runtime that `config` names, with its state in the pod's directory.
    ///
    /// # Errors
    /// `NotFound` if the program is not installed.
    pub fn new(config: &RuntimeConfig, pod: &PodDir, reaper: Reaper) -> Result<Self> {
        Ok(Self {
            program: find(&config.name)?,
            systemd_cgroup: config.systemd_cgroup,
            root: pod.runtime_root(),
            reaper,
            calls: AtomicU64::new(0),
        })
    }

    fn is_runc(&self) -> bool {
        self.program.file_name().is_some_and(|name| name == "runc")
    }

    /// A path in the pod's directory that no other call uses. It is not made of the container's
    /// name, because a socket's path must stay short.
    fn scratch(&self, kind: &str) -> PathBuf {
        self.root.join(format!(".{}.{kind}", self.calls.fetch_add(1, Ordering::Relaxed)))
    }

    async fn run(&self, what: &str, arguments: &[OsString], streams: ChildStreams) -> Result<()> {
        let log = rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC).context(|| "cannot make a log for the OCI runtime".into())?;
        let log = std::fs::File::from(log);
        // The runtime opens the log by this path. It does not inherit the descriptor.
        let path = format!("/proc/{}/fd/{}", std::process::id(), log.as_raw_fd());
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(["--log", &path, "--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.args(arguments).stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr);
        let child = command.spawn().context(|| format!("cannot run {}", self.program.display()))?;
        // Nothing was awaited since the spawn, so the reaper cannot have reaped it yet.
        let exit = Running { pid: child.id(), exit: self.reaper.watch(child.id()), reaper: &self.reaper }.await;
        // The command holds our copies of the container's streams.
        drop(command);
        match exit {
            Ok(exit) if exit.code == 0 => Ok(()),
            Ok(exit) => Err(failure(&self.program, what, exit.code, &log)),
            Err(_) => Err(Error::internal(format!("{} {what}: its exit status was lost", self.program.display()))),
        }
    }

    /// Runs a command that makes a process, and reads the process's id.
    async fn make(&self, what: &str, mut arguments: Vec<OsString>, container: &ContainerId, streams: Streams) -> Result<Made> {
        let pid_file = Scratch(self.scratch("pid"));
        arguments.extend(["--pid-file".into(), pid_file.0.clone().into()]);
        let (streams, console) = match streams {
            Streams::Pipes(streams) => (streams, None),
            Streams::Terminal => {
                let socket = ConsoleSocket::bind(self.scratch("tty"))?;
                arguments.extend(["--console-socket".into(), socket.path().into()]);
                (ChildStreams::null()?, Some(socket))
            }
        };
        arguments.push(container.as_str().into());
        self.run(what, &arguments, streams).await?;
        let terminal = console.map(|socket| socket.receive()).transpose()?;
        let text = std::fs::read_to_string(&pid_file.0).context(|| format!("{} {what} left no process id", self.program.display()))?;
        let pid = text
            .trim()
            .parse()
            .map_err(|_| Error::internal(format!("{} {what} wrote {text:?} as the process id", self.program.display())))?;
        Ok(Made { pid, terminal })
    }

    async fn simple(&self, what: &str, container: &ContainerId, options: &[OsString]) -> Result<()> {
        let mut arguments = vec![what.into()];
        arguments.extend_from_slice(options);
        arguments.push(container.as_str().into());
        self.run(what, &arguments, ChildStreams::null()?).await
    }
}

impl Runtime for CommandLine {
    async fn create(&self, creation: Creation<'_>) -> Result<Made> {
        let bundle = ["--bundle".into(), creation.bundle.into()];
        match creation.checkpoint {
            None => {
                let arguments = [vec!["create".into()], bundle.to_vec()].concat();
                self.make("create", arguments, creation.container, creation.streams).await
            }
            Some(image) => {
                let image = ["--detach".into(), "--image-path".into(), image.into()];
                let arguments = [vec!["restore".into()], bundle.to_vec(), image.to_vec()].concat();
                self.make("restore", arguments, creation.container, creation.streams).await
            }
        }
    }

    async fn start(&self, container: &ContainerId) -> Result<()> {
        self.simple("start", container, &[]).await
    }

    async fn exec(&self, execution: Execution<'_>) -> Result<Made> {
        let process = Scratch(self.scratch("process"));
        std::fs::write(&process.0, execution.process).context(|| format!("cannot write the process of exec {}", execution.exec))?;
        let arguments = vec!["exec".into(), "--detach".into(), "--process".into(), process.0.clone().into()];
        self.make("exec", arguments, execution.container, execution.streams).await
    }

    async fn freeze(&self, container: &ContainerId, frozen: bool) -> Result<()> {
        self.simple(if frozen { "pause" } else { "resume" }, container, &[]).await
    }

    async fn update(&self, container: &ContainerId, resources: &[u8]) -> Result<()> {
        let file = Scratch(self.scratch("resources"));
        std::fs::write(&file.0, resources).context(|| format!("cannot write the new limits of container {container}"))?;
        self.simple("update", container, &["--resources".into(), file.0.clone().into()]).await
    }

    async fn checkpoint(&self, container: &ContainerId, checkpoint: Checkpoint) -> Result<()> {
        let mut options: Vec<OsString> = vec!["--image-path".into(), checkpoint.image.into()];
        if !checkpoint.exit {
            options.push("--leave-running".into());
        }
        self.simple("checkpoint", container, &options).await
    }

    async fn delete(&self, container: &ContainerId) -> Result<()> {
        if !self.root.join(container.as_str()).exists() {
            return Ok(());
        }
        self.simple("delete", container, &["--force".into()]).await
    }

    /// runc moves the first process of an exec while that process still starts threads. If the pod
    /// is at its limit of processes, threads after the move are refused, and the exec fails
    /// (`procReady not received`, seen with 1.3.6).
    fn execs_into_warm_cgroups(&self) -> bool {
        !self.is_runc()
    }

    fn undoes_hooks(&self) -> bool {
        self.is_runc()
    }
}

/// The running runtime. It is killed when this is dropped.
struct Running<'a> {
    pid: u32,
    exit: oneshot::Receiver<Exit>,
    reaper: &'a Reaper,
}

impl Future for Running<'_> {
    type Output = Result<Exit, oneshot::error::RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<Self::Output> {
        Pin::new(&mut self.exit).poll(cx)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ended_meanwhile = self.reaper.signal(self.pid, libc::SIGKILL as u32);
    }
}

/// A file that is removed when this is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been made. A file that stays is removed with the pod's directory.
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// The program for a name in the configuration.
///
/// `auto` prefers crun, which makes a container in less than half of runc's time. It takes runc
/// where crun does not work: crun refuses a hybrid cgroup hierarchy.
///
/// # Errors
/// `NotFound`, with the programs that were searched.
pub fn find(name: &str) -> Result<PathBuf> {
    let hybrid = Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists();
    let candidates: &[&str] = match name {
        "auto" if hybrid => &["runc"],
        "auto" => &["crun", "runc"],
        name => &[name],
    };
    candidates.iter().find_map(|candidate| in_path(candidate)).ok_or_else(|| {
        Error::not_found(format!("no OCI runtime: {} is not installed in {}", candidates.join(" nor "), search_path().join(":")))
    })
}

/// Searches a program as a shell does. An absolute path is taken as it is.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let executable = |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if name.starts_with('/') {
        return Some(PathBuf::from(name)).filter(|path| executable(path));
    }
    search_path().iter().map(|dir| Path::new(dir).join(name)).find(|path| executable(path))
}

/// `PATH`, or the usual folders if the service manager has not set it.
fn search_path() -> Vec<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut dirs: Vec<String> = path.split(':').filter(|dir| dir.starts_with('/')).map(String::from).collect();
    for usual in ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"] {
        if !dirs.iter().any(|dir| dir == usual) {
            dirs.push(usual.into());
        }
    }
    dirs
}

/// The runtime's own message about its failure, as an error with a fitting code.
fn failure(program: &Path, what: &str, code: u32, log: &std::fs::File) -> Error {
    let mut text = vec![0; LOG];
    // A log that cannot be read counts as empty.
    let length = log.read_at(&mut text, 0).unwrap_or_default();
    let said = last_error(&text[..length]);
    let message = match &said {
        // docker's client recognises a missing program by runc's message for it.
        Some(said) if said.starts_with("executable file") => {
            format!("{} {what} failed: {said}: executable file not found", program.display())
        }
        Some(said) => format!("{} {what} failed: {said}", program.display()),
        None => format!("{} {what} failed with exit code {code} and logged nothing", program.display()),
    };
    Error::new(code_of(said.as_deref().unwrap_or_default()), message)
}

/// The last message of level error or above in a log of JSON objects. runc writes one a line; crun
/// writes them over several lines.
pub fn last_error(log: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Entry {
        level: String,
        msg: String,
    }
    let entries = serde_json::Deserializer::from_slice(log).into_iter::<Entry>();
    entries
        .map_while(|entry| entry.ok())
        .filter(|entry| matches!(entry.level.as_str(), "error" | "fatal" | "panic"))
        .map(|entry| entry.msg)
        .last()
}

/// The code of a message. All failures have the same exit code; these two are recognised by their
/// text, because containerd acts on them.
fn code_of(said: &str) -> Code {
    if said.contains("does not exist") {
        Code::NotFound
    } else if said.contains("is not running") || said.contains("not running") {
        Code::FailedPrecondition
    } else {
        Code::Internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_the_log_is_the_message() {
        let runc = concat!(
            r#"{"level":"error","msg":"first","time":"x"}"#,
            "\n",
            r#"{"level":"warning","msg":"noise","time":"x"}"#,
            "\n",
            r#"{"level":"error","msg":"container does not exist","time":"x"}"#,
            "\nnot json\n"
        );
        assert_eq!(last_error(runc.as_bytes()).as_deref(), Some("container does not exist"));
        let crun = b"{\n  \"msg\": \"no such file\",\n  \"level\": \"error\",\n  \"time\": \"x\"\n}\n\n";
        assert_eq!(last_error(crun).as_deref(), Some("no such file"));
        assert_eq!(last_error(b"{\"level\":"), None);
        assert_eq!(last_error(b""), None);
    }

    #[test]
    fn a_missing_runtime_is_named() {
        let error = find("no-such-runtime").unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert!(error.to_string().contains("no-such-runtime"));
        assert!(in_path("sh").is_some());
        assert!(in_path("/etc/passwd").is_none(), "not executable");
    }
}
