// SPDX-License-Identifier: Apache-2.0
//! What `serve` does with pods: it creates and starts them, passes requests on, waits for their
//! end, and shuts them down.
//!
//! All state is on disk and in the sandbox processes. This module only keeps the watch over each
//! process, which the next `serve` sets up again (see [`adopt`](super::adopt)).
//!
//! Create and Start run in tasks of their own, which go on when the caller leaves. Then the pod is
//! removed, because containerd forgets a pod whose Create or Start has failed.

use super::client::{Failure, call, update};
use super::lost::{End, Lost};
use super::pod::Pod;
use super::process::Process;
use super::store::Store;
use super::unwanted::{Rhythm, unwanted};
use super::watch::{PATIENCE, Watched, watch};
use crate::clean::clean_pod;
use crate::launch::{Launched, Log, Places, Word, launch};
use crate::stage::Stage;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::SandboxClient;
use magnetar_core::config::HandlerConfig;
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::ids::{Namespace, SandboxId};
use magnetar_core::record::{PodDir, PodRecord};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, info, warn};
use ttrpc::context::Context;

/// How long a sandbox process may take to shut its pod down before it is killed.
const SHUTDOWN: Duration = Duration::from_secs(30);
/// How long the process may take to end after its last answer.
const EXIT: Duration = Duration::from_secs(5);
/// How long after a broken connection the end of the process may take to be noticed.
const NEWS: Duration = Duration::from_secs(2);

/// All pods of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pods(Arc<Inner>);

/// Takes the outcome of a change to its caller.
type Answer<T> = oneshot::Sender<Result<T>>;

#[derive(Debug)]
struct Inner {
    state_dir: PathBuf,
    places: Places,
    rhythm: Rhythm,
    store: Store,
    watched: Mutex<HashMap<PathBuf, Watched>>,
    lost: Lost,
    changes: TaskTracker,
    watches: TaskTracker,
}

impl Pods {
    /// The pods with records in `state_dir`. `rhythm` says when they are checked for being
    /// unwanted.
    pub fn new(state_dir: PathBuf, places: Places, rhythm: Rhythm) -> Self {
        let (changes, watches) = (TaskTracker::new(), TaskTracker::new());
        Self(Arc::new(Inner {
            state_dir,
            places,
            rhythm,
            store: Store::new(),
            watched: Mutex::default(),
            lost: Lost::default(),
            changes,
            watches,
        }))
    }

    /// The directory of the records.
    pub fn state_dir(&self) -> &Path {
        &self.0.state_dir
    }

    /// The tasks that change pods. Let them finish before the process ends.
    pub fn changes(&self) -> &TaskTracker {
        &self.0.changes
    }

    /// The tasks that only watch.
    pub fn watches(&self) -> &TaskTracker {
        &self.0.watches
    }

    /// The pod with these names, whether or not it exists.
    ///
    /// # Errors
    /// `InvalidArgument` for invalid names.
    pub fn pod(&self, namespace: &str, id: &str) -> Result<Pod> {
        let (namespace, id) = (Namespace::parse(namespace)?, SandboxId::parse(id)?);
        let dir = PodDir::new(&self.0.state_dir, &namespace, &id)?;
        Ok(Pod { namespace, id, dir })
    }

    /// Makes a pod: its directory, its process, its sandbox.
    ///
    /// # Errors
    /// `AlreadyExists` for a pod that was made before, which is left alone; otherwise the cause,
    /// and nothing of the pod is left.
    pub async fn create(&self, pod: &Pod, config: HandlerConfig, request: api::CreateSandboxRequest) -> Result<()> {
        let (pods, pod) = (self.clone(), pod.clone());
        self.change(pod.span(), |mut answer| async move {
            let made = pods.launch(&pod, config, request, &mut answer).await;
            if let Err(Ok(())) = answer.send(made) {
                info!("the caller of Create has left: removing the pod");
                pods.remove(&pod).await;
            }
        })
        .await
    }

    async fn launch(&self, pod: &Pod, config: HandlerConfig, request: api::CreateSandboxRequest, answer: &mut Answer<()>) -> Result<()> {
        let program = self.0.places.find(&config.sandboxer)?;
        let record = PodRecord::new(pod.namespace.clone(), pod.id.clone(), config);
        let Launched { child, word } = launch(&pod.dir, &record, &program, Log::Ours, Stage::Creating)?;
        let made = match Process::spawned(child) {
            Ok(process) => {
                let watched = self.watch(pod, Some(process));
                make(pod, &watched, &word, &request, answer).await
            }
            Err(error) => Err(error),
        };
        if made.is_err() {
            self.remove(pod).await;
        }
        made
    }

    /// Makes a created pod ready for containers.
    ///
    /// # Errors
    /// `AlreadyExists` or `FailedPrecondition` for a pod that is not waiting to be started, which
    /// is left alone; otherwise the cause, and nothing of the pod is left.
    pub async fn start(&self, pod: &Pod) -> Result<api::StartSandboxResponse> {
        let (pods, pod) = (self.clone(), pod.clone());
        self.change(pod.span(), |mut answer| async move {
            let started = pods.make_ready(&pod, &mut answer).await;
            if let Err(Ok(_)) = answer.send(started) {
                info!("the caller of Start has left: removing the pod");
                pods.remove(&pod).await;
            }
        })
        .await
    }

    async fn make_ready(&self, pod: &Pod, answer: &mut Answer<api::StartSandboxResponse>) -> Result<api::StartSandboxResponse> {
        let id = &pod.id;
        if !pod.dir.exists()? {
            return Err(pod.missing());
        }
        match Stage::of(&pod.dir)? {
            Stage::Created => {}
            Stage::Creating => return Err(Error::precondition(format!("sandbox {id} is still being created"))),
            Stage::Starting => return Err(Error::new(Code::AlreadyExists, format!("sandbox {id} is being started"))),
            Stage::Started => return Err(Error::new(Code::AlreadyExists, format!("sandbox {id} was started before"))),
            Stage::Foreign => return Err(Error::precondition(format!("sandbox {id} belongs to containerd's own shim controller"))),
        }
        // Nothing is awaited between the check above and this, so only one of two callers gets
        // here.
        Stage::Created.advance(&pod.dir, Stage::Starting)?;
        let request = api::StartSandboxRequest { sandbox_id: id.to_string(), ..Default::default() };
        let asked = self.ask(pod, async |client: SandboxClient| client.start_sandbox(Context::default(), &request).await);
        let started = tokio::select! {
            outcome = asked => outcome,
            () = answer.closed() => Err(left("Start")),
        };
        let started = started.and_then(|response| Stage::Starting.advance(&pod.dir, Stage::Started).map(|()| response));
        match &started {
            Ok(_) => self.watched_pod(pod).iter().for_each(|watched| watched.interest().started()),
            Err(_) => self.remove(pod).await,
        }
        started
    }

    /// Sends a request to a pod's process.
    ///
    /// # Errors
    /// `NotFound` for a pod that does not exist, or whose process has ended.
    pub async fn ask<T, F>(&self, pod: &Pod, request: impl FnOnce(SandboxClient) -> F) -> Result<T>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        if !pod.dir.exists()? {
            return Err(pod.missing());
        }
        self.answered(pod, call(&pod.dir, request).await).await
    }

    /// Passes an update of a pod on to its process.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn update(&self, pod: &Pod, payload: Vec<u8>) -> Result<()> {
        if !pod.dir.exists()? {
            return Err(pod.missing());
        }
        self.answered(pod, update(&pod.dir, payload).await).await
    }

    async fn answered<T>(&self, pod: &Pod, outcome: Result<T, Failure>) -> Result<T> {
        match outcome {
            Ok(response) => Ok(response),
            Err(Failure::Answered(error)) => Err(error),
            Err(Failure::Broken(error)) => {
                self.settle(pod, error).await?;
                Err(Error::not_found(format!("sandbox {} is gone: its process has ended", pod.id)))
            }
        }
    }

    /// Waits for the end of a pod. `None` if its process ended without an answer.
    ///
    /// # Errors
    /// `NotFound` for a pod that does not exist.
    pub async fn wait(&self, pod: &Pod) -> Result<Option<api::WaitSandboxResponse>> {
        if !pod.dir.exists()? {
            return Err(pod.missing());
        }
        let _waiting = self.watched_pod(pod).map(|watched| watched.interest().waiting());
        let request = api::WaitSandboxRequest { sandbox_id: pod.id.to_string(), ..Default::default() };
        match call(&pod.dir, async |client: SandboxClient| client.wait_sandbox(Context::default(), &request).await).await {
            Ok(response) => Ok(Some(response)),
            Err(Failure::Answered(error)) => Err(error),
            Err(Failure::Broken(error)) => self.settle(pod, error).await.map(|()| None),
        }
    }

    /// Ends a pod and removes everything of it.
    ///
    /// # Errors
    /// `NotFound` for a pod that does not exist; otherwise what could not be removed, and the call
    /// can be repeated.
    pub async fn shut_down(&self, pod: &Pod) -> Result<()> {
        let (pods, pod) = (self.clone(), pod.clone());
        self.change(pod.span(), |answer| async move {
            // A caller that has left will call again.
            let _unheard = answer.send(pods.shut_down_now(&pod).await);
        })
        .await
    }

    /// How a pod whose process was lost has ended; known until the pod is shut down.
    pub fn end_of(&self, pod: &Pod) -> Option<End> {
        self.0.lost.get(pod.dir.path())
    }

    async fn shut_down_now(&self, pod: &Pod) -> Result<()> {
        self.0.lost.remove(pod.dir.path());
        if !pod.dir.exists()? {
            return Err(pod.missing());
        }
        let watched = self.watched_pod(pod);
        if let Some(watched) = &watched {
            watched.expect_end();
        }
        let request = api::ShutdownSandboxRequest { sandbox_id: pod.id.to_string(), ..Default::default() };
        let asked = call(&pod.dir, async |client: SandboxClient| client.shutdown_sandbox(Context::default(), &request).await);
        match tokio::time::timeout(SHUTDOWN, asked).await {
            Ok(Ok(_) | Err(Failure::Broken(_))) => {}
            // The pod is then cleaned up from its record.
            Ok(Err(Failure::Answered(error))) => {
                warn!(%error, "the sandbox process cannot shut its pod down: killing it");
                watched.iter().for_each(Watched::kill);
            }
            Err(_) => {
                warn!("the sandbox process did not shut its pod down in {} s: killing it", SHUTDOWN.as_secs());
                watched.iter().for_each(Watched::kill);
            }
        }
        self.end(pod, watched.as_ref()).await
    }

    /// Waits for a process that was asked to end, kills one that does not, and removes its pod.
    async fn end(&self, pod: &Pod, watched: Option<&Watched>) -> Result<()> {
        if let Some(watched) = watched {
            if tokio::time::timeout(EXIT, watched.dead()).await.is_err() {
                warn!("the sandbox process does not end: killing it");
                watched.kill();
            }
            if watched.gone().await.is_ok() {
                return Ok(());
            }
        }
        // The process was not watched, or the first attempt failed.
        clean_pod(&pod.dir, PATIENCE).await
    }

    /// Removes a pod that could not be made. The caller was told why, so its end is not remembered.
    async fn remove(&self, pod: &Pod) {
        let watched = self.watched_pod(pod);
        if let Some(watched) = &watched {
            watched.expect_end();
            watched.kill();
        }
        if let Err(error) = self.end(pod, watched.as_ref()).await {
            warn!(%error, "cannot remove all of a pod that could not be made");
        }
        self.0.lost.remove(pod.dir.path());
    }

    /// Finds out why a connection broke. If the process has ended, returns once its pod is removed;
    /// otherwise returns `broken`.
    async fn settle(&self, pod: &Pod, broken: Error) -> Result<()> {
        let watched = self.watched_pod(pod);
        if let Some(watched) = watched {
            tokio::time::timeout(NEWS, watched.dead()).await.map_err(|_| broken)?;
            // A failure was logged, and Shutdown tries again.
            let _logged = watched.gone().await;
            return Ok(());
        }
        match pod.dir.try_lock() {
            // The pod was removed meanwhile.
            Err(error) if error.code() == Code::NotFound => Ok(()),
            Ok(Some(lock)) if Stage::of(&pod.dir)? != Stage::Foreign => {
                drop(lock);
                clean_pod(&pod.dir, PATIENCE).await
            }
            Ok(_) => Err(broken),
            Err(error) => Err(error),
        }
    }

    /// Watches a pod's process from now on. Without a process, removes what is left of the pod.
    pub fn watch(&self, pod: &Pod, process: Option<Process>) -> Watched {
        let (watched, watcher) = watch(process);
        self.watched().insert(pod.dir.path().into(), watched.clone());
        let unwanted = {
            let (pods, pod, interest) = (self.clone(), pod.clone(), watched.interest().clone());
            async move {
                let knows = || {
                    let (pods, pod) = (pods.clone(), pod.clone());
                    async move { pods.0.store.knows(&pod).await }
                };
                unwanted(&pod, &interest, pods.0.rhythm, knows).await
            }
        };
        let forget = {
            let (pods, path) = (self.clone(), pod.dir.path().to_path_buf());
            move |end| {
                if let Some(end) = end {
                    pods.0.lost.add(&path, end);
                }
                pods.watched().remove(&path);
            }
        };
        self.0.watches.spawn(watcher.run(pod.clone(), unwanted, forget).instrument(pod.span()));
        watched
    }

    /// Runs `work` to its end, whether or not the caller waits for it.
    async fn change<T, F>(&self, span: Span, work: impl FnOnce(Answer<T>) -> F) -> Result<T>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.0.changes.spawn(work(answer).instrument(span));
        answered.await.unwrap_or_else(|_| Err(Error::new(Code::Unavailable, "serve is ending")))
    }

    fn watched_pod(&self, pod: &Pod) -> Option<Watched> {
        self.watched().get(pod.dir.path()).cloned()
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<PathBuf, Watched>> {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a new process to create its sandbox, unless it ends or the caller leaves before it has.
async fn make(pod: &Pod, watched: &Watched, word: &Word, request: &api::CreateSandboxRequest, answer: &mut Answer<()>) -> Result<()> {
    let asked = call(&pod.dir, async |client: SandboxClient| client.create_sandbox(Context::default(), request).await);
    let outcome = tokio::select! {
        outcome = asked => outcome,
        how = watched.dead() => return Err(word.after_end(&how)),
        () = answer.closed() => return Err(left("Create")),
    };
    match outcome {
        Ok(_) => Stage::Creating.advance(&pod.dir, Stage::Created).map(|()| watched.interest().created()),
        Err(Failure::Answered(error)) => Err(error),
        // How the process ended tells more than a broken connection.
        Err(Failure::Broken(error)) => match tokio::time::timeout(NEWS, watched.dead()).await {
            Ok(how) => Err(word.after_end(&how)),
            Err(_) => Err(error),
        },
    }
}

fn left(call: &str) -> Error {
    Error::new(Code::DeadlineExceeded, format!("the caller of {call} has left"))
}
