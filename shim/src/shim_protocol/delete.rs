// SPDX-License-Identifier: Apache-2.0
//! `delete`: removes what a sandbox process left behind, from its records alone.
//!
//! containerd calls it when it has lost a connection: for a sandbox of its shim controller, and for
//! every container of a pod, whichever front made the pod. It is no error if they are already gone.

use super::Call;
use crate::clean::clean_pod;
use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, KillRequest, WaitRequest};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim_async::TaskClient;
use magnetar_core::cleanup::clean_container;
use magnetar_core::config::LogLevel;
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::ids::{ContainerId, Namespace, SandboxId};
use magnetar_core::reaper::Reaper;
use magnetar_core::record::{Found, PodDir};
use magnetar_core::sandbox::run_last_hooks;
use magnetar_core::{logging, mount};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::net::UnixStream;
use tracing::warn;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

/// The exit status of a process whose end was not seen: 128 plus SIGKILL.
const KILLED: u32 = 137;
/// How long to wait for other processes that clean up the same pod. Together with [`ENDING`] that
/// is less than the five seconds that containerd allows for a clean-up
/// (`io.containerd.timeout.shim.cleanup`).
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a sandbox process may take to end by itself.
const ENDING: Duration = Duration::from_millis(2500);
/// The time between two attempts while another process cleans up the same pod.
const AGAIN: Duration = Duration::from_millis(20);

/// Removes a pod or a container; returns the bytes for standard output.
///
/// # Errors
/// What could not be removed; the call can be repeated.
pub fn run(call: &Call) -> Result<Vec<u8>> {
    // containerd logs the standard error of a successful call as a warning.
    logging::start(LogLevel::Warn);
    let namespace = Namespace::parse(&call.namespace)?;
    let bundle = bundle(call)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "cannot start the event loop".into())?;
    let response = runtime.block_on(remove(call, &namespace, &bundle))?;
    // The sandbox process mounted it; or nothing did, if the process did not get that far.
    mount::unmount(&bundle.join("rootfs"))?;
    response.write_to_bytes().map_err(|e| Error::internal(format!("cannot encode the answer: {e}")))
}

async fn remove(call: &Call, namespace: &Namespace, bundle: &Path) -> Result<DeleteResponse> {
    let state_dir = call.state_dir();
    let pod = PodDir::new(&state_dir, namespace, &SandboxId::parse(&call.id)?)?;
    if pod.exists()? {
        let_it_end(&pod).await?;
        let container = ContainerId::parse(&call.id)?;
        let not_deleted = pod.find_container(&container)?;
        clean_pod(&pod, PATIENCE).await?;
        if !matches!(not_deleted, Found::Absent) {
            undo_hooks(&container, bundle).await;
        }
        return Ok(killed());
    }
    let container = ContainerId::parse(&call.id)?;
    match sandbox_of(bundle)? {
        Some(sandbox) => remove_container(&PodDir::new(&state_dir, namespace, &sandbox)?, &container).await,
        // The container was never in a pod, or it is the pod itself, which is gone.
        None => Ok(killed()),
    }
}

/// Runs the last hooks of a container without a pod, in place of its sandbox process, which has
/// ended. A failure is logged, and the container is removed all the same.
pub async fn undo_hooks(container: &ContainerId, bundle: &Path) {
    let undone = async {
        let (reaper, reap) = Reaper::start()?;
        tokio::select! {
            ran = run_last_hooks(container, bundle, &reaper) => ran,
            () = reap => Err(Error::internal("the reaper has ended, so hooks cannot be waited for")),
        }
    };
    let undone: Result<()> = undone.await;
    if let Err(error) = undone {
        warn!(%container, %error, "the last hooks failed: what earlier hooks made for the container may be left");
    }
}

/// Gives a process that is ending the time to send its last events, because containerd calls us as
/// soon as the connection breaks. The clean-up kills a process that does not end in time.
async fn let_it_end(pod: &PodDir) -> Result<()> {
    let deadline = tokio::time::Instant::now() + ENDING;
    while tokio::time::Instant::now() < deadline {
        match pod.try_lock() {
            Ok(None) => tokio::time::sleep(AGAIN).await,
            Err(error) if error.code() != Code::NotFound => return Err(error),
            Ok(Some(_)) | Err(_) => return Ok(()),
        }
    }
    Ok(())
}

async fn remove_container(pod: &PodDir, container: &ContainerId) -> Result<DeleteResponse> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let held = match clean_container(pod, container).await {
            Ok(()) => return Ok(killed()),
            Err(error) if error.code() == Code::FailedPrecondition => error,
            Err(error) => return Err(error),
        };
        // A living process has the pod's lock: either the sandbox process, which is asked to remove
        // the container, or another clean-up, which does the same work.
        match tokio::time::timeout_at(deadline, ask_to_remove(pod, container)).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(error)) if error.code() == Code::Unavailable && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(AGAIN).await
            }
            Ok(Err(error)) if error.code() == Code::Unavailable => return Err(held),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(held),
        }
    }
}

/// Asks a container's sandbox process to remove it.
async fn ask_to_remove(pod: &PodDir, container: &ContainerId) -> Result<DeleteResponse> {
    let socket = pod.socket();
    let unavailable = |e| Error::new(Code::Unavailable, format!("cannot connect to {}: {e}", socket.display()));
    let client = TaskClient::new(Client::new(Socket::from(UnixStream::connect(&socket).await.map_err(unavailable)?)));
    let id = container.to_string();
    let context = ttrpc::context::Context::default;
    let kill = KillRequest { id: id.clone(), signal: 9, all: true, ..Default::default() };
    if let Err(error) = client.kill(context(), &kill).await.map_err(Error::from) {
        // A container that has ended cannot be killed, but it can be deleted.
        if !matches!(error.code(), Code::NotFound | Code::FailedPrecondition) {
            return Err(error);
        }
    }
    let wait = WaitRequest { id: id.clone(), ..Default::default() };
    let exit = client.wait(context(), &wait).await;
    match client.delete(context(), &DeleteRequest { id, ..Default::default() }).await.map_err(Error::from) {
        Ok(response) => Ok(response),
        Err(error) if error.code() == Code::NotFound => Ok(match exit {
            Ok(exit) => DeleteResponse { exit_status: exit.exit_status, exited_at: exit.exited_at, ..Default::default() },
            Err(_) => killed(),
        }),
        Err(error) => Err(error),
    }
}

/// The bundle. It must be a folder and not a link, because what is mounted in it is unmounted.
fn bundle(call: &Call) -> Result<PathBuf> {
    let bundle = match call.bundle.as_str() {
        "" => std::env::current_dir().context(|| "cannot tell the bundle from the working directory".into())?,
        given => PathBuf::from(given),
    };
    if !bundle.is_absolute() {
        return Err(Error::invalid(format!("bundle {} is not an absolute path", bundle.display())));
    }
    match bundle.symlink_metadata() {
        Ok(metadata) if !metadata.is_dir() => Err(Error::invalid(format!("bundle {} is not a folder", bundle.display()))),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context(|| format!("cannot look at bundle {}", bundle.display())),
        Ok(_) | Err(_) => Ok(bundle),
    }
}

/// The sandbox to which containerd has assigned the container of a bundle.
fn sandbox_of(bundle: &Path) -> Result<Option<SandboxId>> {
    let file = bundle.join("sandbox");
    match std::fs::read_to_string(&file) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => SandboxId::parse(text.trim()).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => {
            warn!(error = %e, file = %file.display(), "cannot read which sandbox the container belongs to");
            Ok(None)
        }
    }
}

fn killed() -> DeleteResponse {
    DeleteResponse { exit_status: KILLED, exited_at: Some(SystemTime::now().into()).into(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_is_a_link_or_relative_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |path: &Path| Call { bundle: path.to_str().unwrap().into(), ..Default::default() };
        assert_eq!(bundle(&at(temporary.path())).unwrap(), temporary.path());
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        assert_eq!(bundle(&at(&link)).unwrap_err().code(), Code::InvalidArgument);
        assert!(bundle(&at(Path::new("relative"))).is_err());
        let gone = temporary.path().join("gone");
        assert_eq!(bundle(&at(&gone)).unwrap(), gone);
    }

    #[test]
    fn the_sandbox_is_read_from_the_bundle() {
        let temporary = tempfile::tempdir().unwrap();
        assert_eq!(sandbox_of(temporary.path()).unwrap(), None);
        std::fs::write(temporary.path().join("sandbox"), "pod1\n").unwrap();
        assert_eq!(sandbox_of(temporary.path()).unwrap().unwrap().as_str(), "pod1");
        std::fs::write(temporary.path().join("sandbox"), "../../etc").unwrap();
        assert!(sandbox_of(temporary.path()).is_err());
    }

    #[test]
    fn deleting_a_container_that_is_gone_succeeds() {
        let temporary = tempfile::tempdir().unwrap();
        let text = |path: PathBuf| path.to_str().unwrap().to_string();
        let call = Call {
            namespace: "k8s.io".into(),
            id: "gone".into(),
            bundle: text(temporary.path().join("bundle")),
            state_dir: text(temporary.path().join("state")),
            ..Default::default()
        };
        for _ in 0..2 {
            let response = DeleteResponse::parse_from_bytes(&run(&call).unwrap()).unwrap();
            assert_eq!(response.exit_status, KILLED);
            assert!(response.exited_at.is_some());
        }
        assert!(run(&Call { id: "a/b".into(), ..call }).is_err());
    }
}
