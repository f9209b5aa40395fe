// SPDX-License-Identifier: Apache-2.0
//! Launches a pod's sandbox process: makes the directory, the record and the listening socket, then
//! starts the program.
//!
//! Sandboxers rely on this order. The socket listens before the program exists, so an early
//! connection waits in the kernel's queue, and no client has to poll. The program gets the socket
//! on fd 3 and `--pod-dir DIR` as its only arguments. It says on fd 4 whether it serves.

use crate::stage::Stage;
use command_fds::{CommandFdExt, FdMapping};
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::record::{PodDir, PodRecord};
use magnetar_sys::listener::LISTENER_FD;
use magnetar_sys::notification::{NOTIFICATION_FD, Readiness, ReadinessPipe};
use std::fmt::Display;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tracing::warn;

/// The folders in which sandboxers are searched.
#[derive(Debug, Clone)]
pub struct Places(Vec<PathBuf>);

/// Where a sandbox process writes its log.
#[derive(Debug)]
pub enum Log {
    /// To our own standard error, which is the journal.
    Ours,
    /// To a file: our standard error is a pipe, and containerd waits until all of its writers are
    /// gone.
    File(File),
    /// It writes none.
    Nowhere,
}

impl Places {
    /// The folder of this program, the libexec folder of the same prefix, and `libexec`.
    pub fn new(libexec: Option<&Path>) -> Self {
        // After an upgrade the link reads "… (deleted)", but the folder in it is still right.
        let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
        let beside = own.as_deref().and_then(Path::parent).map(|prefix| prefix.join("libexec/magnetar"));
        Self(own.into_iter().chain(beside).chain(libexec.map(Path::to_path_buf)).collect())
    }

    /// The folders, in the order in which they are searched.
    pub fn folders(&self) -> &[PathBuf] {
        &self.0
    }

    /// The program of a sandboxer: `magnetar-<kind>` in one of the folders, or an absolute path.
    ///
    /// # Errors
    /// `FailedPrecondition` if it is not installed: the same request works once it is.
    pub fn find(&self, sandboxer: &str) -> Result<PathBuf> {
        if sandboxer.starts_with('/') {
            let path = PathBuf::from(sandboxer);
            return executable(&path).map(|()| path);
        }
        let name = format!("magnetar-{sandboxer}");
        let found = self.0.iter().map(|folder| folder.join(&name)).find(|path| path.exists());
        match found {
            Some(path) => executable(&path).map(|()| path),
            None => {
                let folders: Vec<String> = self.0.iter().map(|folder| folder.display().to_string()).collect();
                Err(Error::precondition(format!("sandboxer {sandboxer:?} is not installed: there is no {name} in {}", folders.join(", "))))
            }
        }
    }
}

fn executable(path: &Path) -> Result<()> {
    let refuse = |why: &dyn Display| Err(Error::precondition(format!("sandboxer {}: {why}", path.display())));
    let mut magic = [0; 4];
    match path.metadata() {
        Err(e) => return refuse(&e),
        Ok(metadata) if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 => {
            return refuse(&"it is not an executable file");
        }
        Ok(_) => {}
    }
    match File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
        Err(e) if e.kind() != ErrorKind::UnexpectedEof => return refuse(&e),
        Ok(()) | Err(_) => {}
    }
    // Refuse other files here: when the kernel cannot execute a file, the C library runs it as a
    // shell script.
    if magic != *b"\x7fELF" && !magic.starts_with(b"#!") {
        return refuse(&"it is neither an ELF program nor a script");
    }
    Ok(())
}

/// How long a program may take to say that it serves. It has no other work to do before.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A sandbox process that was just started.
#[derive(Debug)]
pub struct Launched {
    /// The process.
    pub child: Child,
    /// What it says on fd 4.
    pub word: Word,
}

/// Reads what a new sandbox process says on fd 4.
#[derive(Debug)]
pub struct Word {
    heard: ReadinessPipe,
    program: PathBuf,
}

impl Word {
    /// The reason why the program ended; `how` is its exit status. Call it after the end: it does
    /// not wait.
    pub fn after_end(&self, how: &str) -> Error {
        match self.heard.wait(Duration::ZERO) {
            Ok(Readiness::Failed(line)) => Error::from_line(&line),
            Ok(Readiness::Ready | Readiness::Nothing | Readiness::Silent) | Err(_) => Error::internal(format!(
                "sandboxer {} ended ({how}) before the sandbox was created; its log says why",
                self.program.display()
            )),
        }
    }
}

impl Launched {
    /// Waits until the program serves.
    ///
    /// # Errors
    /// The reason why it does not serve; the program has ended then.
    pub fn serves(mut self) -> Result<()> {
        let program = self.word.program.display();
        let why = match self.word.heard.wait(READY_WITHIN).context(|| format!("cannot read from fd 4 of sandboxer {program}"))? {
            Readiness::Ready => return Ok(()),
            Readiness::Failed(line) => Some(Error::from_line(&line)),
            Readiness::Nothing => None,
            Readiness::Silent => Some(Error::new(
                Code::DeadlineExceeded,
                format!("sandboxer {program} has not written to fd 4 within {} s: is it a sandboxer?", READY_WITHIN.as_secs()),
            )),
        };
        if why.is_some() {
            // It is our child and not reaped, so no other process can have its id.
            let _ended_already = self.child.kill();
        }
        let status = self.child.wait().context(|| format!("cannot wait for sandboxer {program}"))?;
        Err(why.unwrap_or_else(|| self.word.after_end(&status.to_string())))
    }
}

/// Makes the pod's directory and starts its process. `stage` says which front the pod belongs to.
/// If this fails, nothing of the pod is left.
///
/// # Errors
/// `AlreadyExists` if the pod was made before (it is left alone), `FailedPrecondition` if the
/// program cannot be executed, or the kernel's error.
pub fn launch(dir: &PodDir, record: &PodRecord, program: &Path, log: Log, stage: Stage) -> Result<Launched> {
    dir.make()?;
    let marked = if stage == Stage::Creating { Ok(()) } else { Stage::Creating.advance(dir, stage) };
    let spawned = marked.and_then(|()| dir.write_pod(record)).and_then(|()| spawn(dir, program, log));
    if spawned.is_err() {
        // No process was started, so there is only the directory.
        if let Err(error) = dir.remove() {
            warn!(sandbox = %record.sandbox, %error, "cannot undo a failed launch");
        }
    }
    spawned
}

fn spawn(dir: &PodDir, program: &Path, log: Log) -> Result<Launched> {
    let socket = dir.socket();
    let listener = UnixListener::bind(&socket).context(|| format!("cannot listen on {}", socket.display()))?;
    let mut command = Command::new(program);
    // Not in our working directory: that may be a bundle, which is removed before the pod is.
    command.arg("--pod-dir").arg(dir.path()).current_dir("/").stdin(Stdio::null());
    // Only the shim itself reports to the service manager.
    command.env_remove("NOTIFY_SOCKET");
    match log {
        Log::Ours => {}
        Log::File(file) => {
            let copy = file.try_clone().context(|| "cannot share the log of a sandbox process".into())?;
            command.stdout(copy).stderr(file);
        }
        Log::Nowhere => {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
    }
    // The crate also handles a listener that is fd 3 here already, where a plain dup2 would leave
    // close-on-exec set. And because the listener or an earlier file occupies fd 3, the pipe by
    // which the standard library learns that exec failed never gets that number.
    let (heard, says) = ReadinessPipe::pipe().context(|| "cannot make a pipe for a sandbox process".into())?;
    let mappings =
        vec![FdMapping { parent_fd: listener.into(), child_fd: LISTENER_FD }, FdMapping { parent_fd: says, child_fd: NOTIFICATION_FD }];
    command.fd_mappings(mappings).map_err(|e| Error::internal(format!("cannot pass the pod's socket on: {e}")))?;
    // Dropping the command closes our copies. So when the process dies, its socket and its pipe are
    // closed.
    let child = command.spawn().map_err(|e| {
        let code = match e.kind() {
            ErrorKind::OutOfMemory | ErrorKind::WouldBlock => Code::ResourceExhausted,
            _ => Code::FailedPrecondition,
        };
        Error::new(code, format!("cannot run sandboxer {}: {e}", program.display()))
    })?;
    Ok(Launched { child, word: Word { heard, program: program.into() } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::config::HandlerConfig;
    use magnetar_core::ids::{Namespace, SandboxId};

    fn pod(state: &Path) -> (PodDir, PodRecord) {
        let (namespace, sandbox) = (Namespace::parse("n").unwrap(), SandboxId::parse("s").unwrap());
        (PodDir::new(state, &namespace, &sandbox).unwrap(), PodRecord::new(namespace, sandbox, HandlerConfig::default()))
    }

    fn script(dir: &Path, text: &str, mode: u32) -> PathBuf {
        let path = dir.join("magnetar-test");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_sandboxer_gets_its_pod_and_a_listener() {
        let state = tempfile::tempdir().unwrap();
        let program = script(state.path(), "#!/bin/sh\necho \"$@\"; readlink /proc/self/fd/3; readlink /proc/self/fd/0\n", 0o755);
        let (dir, record) = pod(state.path());
        let log = state.path().join("log");
        let mut child = launch(&dir, &record, &program, Log::File(File::create(&log).unwrap()), Stage::Foreign).unwrap().child;
        assert!(child.wait().unwrap().success());
        assert_eq!(Stage::of(&dir).unwrap(), Stage::Foreign);
        let mut text = String::new();
        File::open(log).unwrap().read_to_string(&mut text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("--pod-dir {}", dir.path().display()));
        assert!(lines[1].starts_with("socket:"), "{text}");
        assert_eq!(lines[2], "/dev/null");
        // The process has ended and our copy is closed, so nothing listens any more.
        assert!(std::os::unix::net::UnixStream::connect(dir.socket()).is_err());
    }

    #[test]
    fn a_failed_launch_leaves_nothing() {
        let state = tempfile::tempdir().unwrap();
        let (dir, record) = pod(state.path());
        let program = script(state.path(), "#!/no/such/interpreter", 0o755);
        let error = launch(&dir, &record, &program, Log::Nowhere, Stage::Creating).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.to_string().contains("magnetar-test"), "{error}");
        assert!(!dir.path().exists());
    }

    #[test]
    fn serves_returns_the_reason_of_a_program_that_does_not_serve() {
        let state = tempfile::tempdir().unwrap();
        let outcome = |text: &str| {
            let (dir, record) = pod(state.path());
            let program = script(state.path(), text, 0o755);
            let outcome = launch(&dir, &record, &program, Log::Nowhere, Stage::Foreign).unwrap().serves();
            dir.remove().unwrap();
            outcome
        };
        outcome("#!/bin/sh\necho ready >&4").unwrap();
        let error = outcome("#!/bin/sh\necho '8 the disk is full' >&4; exec sleep 60").unwrap_err();
        assert_eq!((error.code(), error.to_string().as_str()), (Code::ResourceExhausted, "the disk is full"));
        let error = outcome("#!/bin/sh\nexit 3").unwrap_err().to_string();
        assert!(error.contains("magnetar-test") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_second_launch_is_refused_and_leaves_the_first_alone() {
        let state = tempfile::tempdir().unwrap();
        let (dir, record) = pod(state.path());
        let program = script(state.path(), "#!/bin/sh\nexit 0\n", 0o755);
        launch(&dir, &record, &program, Log::Nowhere, Stage::Creating).unwrap().child.wait().unwrap();
        let error = launch(&dir, &record, &program, Log::Nowhere, Stage::Creating).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        assert!(dir.socket().exists());
    }

    #[test]
    fn a_sandboxer_is_found_or_the_error_names_what_was_searched() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), "#!/bin/sh", 0o755);
        let places = Places::new(Some(folder.path()));
        assert_eq!(places.find("test").unwrap(), program);
        assert_eq!(places.find(program.to_str().unwrap()).unwrap(), program);
        for (name, word) in [("nonesuch", "magnetar-nonesuch"), ("/no/such", "/no/such"), ("/tmp", "not an executable")] {
            let error = places.find(name).unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition);
            assert!(error.to_string().contains(word), "{error}");
        }
        script(folder.path(), "#!/bin/sh", 0o644);
        assert!(places.find("test").unwrap_err().to_string().contains("not an executable"));
        for text in ["", "rm -rf /precious", "MZ\x00\x00"] {
            script(folder.path(), text, 0o755);
            assert!(places.find("test").unwrap_err().to_string().contains("neither"), "{text:?}");
        }
    }
}
