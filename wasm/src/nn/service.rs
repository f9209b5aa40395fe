// SPDX-License-Identifier: Apache-2.0
//! The pod's process runs the engines of models: a process for each model that a container has
//! loaded, in the container's cgroup. It dies with the container.
//!
//! The container's end of the channel may be hostile. It can have the models loaded that the
//! container names, and be connected to their engines, and nothing else.

use super::channel::{self, ReceiveError, Reply, Request};
use super::gguf::{Needs, Shape};
use super::llama::{Plan, Prepared};
use super::metadata::LoadOptions;
use super::place::Place;
use crate::payload::FromStart;
use futures_util::future::select_all;
use magnetar_core::cgroup::OwnedCgroup;
use magnetar_core::confined;
use magnetar_core::confined::own_devices::Node;
use magnetar_core::confined::process::{Common, Process};
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::ids::ContainerId;
use magnetar_core::program::LLAMA_SERVER;
use magnetar_core::reaper::{Exit, Reaper};
use magnetar_core::record::PodDir;
use magnetar_core::runtime::libcontainer::{Asked, Companions};
use magnetar_core::server::Parts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// How often a container is told how far its model is loaded.
const PROGRESS: Duration = Duration::from_secs(2);

/// How long an engine may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// What a maker asks for, with the channel and the models' files as descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// The models, in the order of their files.
    pub models: Vec<WantedModel>,
    /// The number of threads that compute.
    pub threads: u16,
    /// The container's graphics processors.
    pub devices: Vec<Node>,
    /// The container's memory limit, in bytes.
    pub memory: Option<u64>,
}

/// A model of a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct WantedModel {
    /// Its name for the module.
    pub alias: String,
    /// Its path in the container: that of its first part.
    pub path: PathBuf,
    /// Of how many files it consists.
    pub parts: usize,
}

/// The engines of a pod's containers.
#[derive(Debug)]
pub struct ModelEngines {
    shared: Arc<Shared>,
    serving: Mutex<BTreeMap<ContainerId, Serving>>,
}

#[derive(Debug)]
struct Shared {
    /// Their program, as the configuration names it.
    program: String,
    /// Where the engines have their sockets.
    folder: PathBuf,
    next: AtomicU32,
    reaper: Reaper,
    tasks: TaskTracker,
}

/// A container that is served.
#[derive(Debug)]
struct Serving {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl ModelEngines {
    /// None yet, for the pod in this directory. `program` is what the configuration names.
    pub fn new(pod: &PodDir, parts: &Parts, program: String) -> Self {
        let folder = pod.path().join("models");
        let shared = Shared { program, folder, next: AtomicU32::new(0), reaper: parts.reaper.clone(), tasks: parts.tasks.clone() };
        Self { shared: Arc::new(shared), serving: Mutex::default() }
    }
}

impl Companions for ModelEngines {
    fn begin(&self, container: &ContainerId, cgroup: Option<&OwnedCgroup>, asked: Asked) -> Result<()> {
        let wanted: Wanted =
            serde_json::from_value(asked.what).map_err(|error| Error::internal(format!("the models that a container needs: {error}")))?;
        let mut descriptors = asked.descriptors.into_iter();
        let channel = descriptors.next().ok_or_else(|| Error::internal("there is no channel to the container"))?;
        let mut opened = descriptors.map(File::from);
        let files: Vec<Vec<File>> = wanted.models.iter().map(|model| opened.by_ref().take(model.parts).collect()).collect();
        if files.iter().zip(&wanted.models).any(|(files, model)| files.len() != model.parts || files.is_empty()) {
            return Err(Error::internal("the container's models have fewer files than parts"));
        }
        let cgroup = cgroup.ok_or_else(|| {
            Error::precondition("the container has no cgroup of its own, and the engine of its model would have no limit")
        })?;
        let served = Served {
            program: LLAMA_SERVER
                .find(&self.shared.program)
                .map_err(|error| Error::new(error.code(), format!("the engine of the container's model: {error}")))?,
            channel: magnetar_sys::readiness::watch(channel).context(|| "cannot watch the channel to the container".into())?,
            wanted,
            files,
            cgroup: cgroup.clone(),
            engines: BTreeMap::new(),
            shared: self.shared.clone(),
        };
        let stop = CancellationToken::new();
        let task = self.shared.tasks.spawn(served.serve(stop.clone(), container.clone()));
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).insert(container.clone(), Serving { stop, task });
        Ok(())
    }

    fn end<'a>(&'a self, container: &'a ContainerId) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).remove(container);
        Box::pin(async move {
            if let Some(Serving { stop, task }) = serving {
                stop.cancel();
                if let Err(error) = task.await {
                    warn!(%container, %error, "the task that served the container's models has failed");
                }
            }
        })
    }
}

/// A container, and the engines of its models.
struct Served {
    program: PathBuf,
    channel: AsyncFd<OwnedFd>,
    wanted: Wanted,
    /// The files of each model.
    files: Vec<Vec<File>>,
    cgroup: OwnedCgroup,
    engines: BTreeMap<usize, Engine>,
    shared: Arc<Shared>,
}

/// The engine of a model.
struct Engine {
    process: Process,
    options: LoadOptions,
    place: Place,
}

/// What the files of a model say.
struct Checked {
    /// Their size, in bytes.
    size: u64,
    /// Whether they say how the embeddings of a text's tokens become one.
    has_pooling: bool,
}

impl Served {
    /// Serves until the container's end of the channel is closed, or it is told to stop.
    async fn serve(mut self, stop: CancellationToken, container: ContainerId) {
        tokio::select! {
            () = stop.cancelled() => {}
            why = self.answer() => debug!(%container, why, "the container's models are not needed any more"),
        }
        for (_, mut engine) in std::mem::take(&mut self.engines) {
            engine.process.kill().await;
            engine.place.remove();
        }
    }

    /// Answers requests. Returns why there are no more.
    async fn answer(&mut self) -> &'static str {
        loop {
            let request = tokio::select! {
                (model, exit) = first_end(&mut self.engines) => {
                    self.tell_death(model, exit);
                    continue;
                }
                request = receive(&self.channel) => request,
            };
            let (reply, connection) = match request {
                Ok(Request::Load { model, options }) => match self.load(model, options).await {
                    Ok(()) => (Reply::Loaded, None),
                    Err(error) => (Reply::Failed(channel::cut(error.to_string())), None),
                },
                Ok(Request::Connect { model }) => match self.connect(model).await {
                    Ok(connection) => (Reply::Connected, Some(connection)),
                    Err(error) => (Reply::Failed(channel::cut(error.to_string())), None),
                },
                Err(ReceiveError::Invalid) => return "it has sent what is no request",
                Err(ReceiveError::None | ReceiveError::Gone) => return "it has ended",
            };
            let descriptors: Vec<_> = connection.iter().map(AsFd::as_fd).collect();
            // It waits for each answer, so there is room for one.
            if channel::send(self.channel.get_ref(), &reply, &descriptors).is_err() {
                return "it does not listen";
            }
        }
    }

    /// Tells the container that an engine has ended by itself.
    fn tell_death(&mut self, model: usize, exit: Exit) {
        let Some(engine) = self.engines.remove(&model) else { return };
        engine.place.remove();
        let why = format!("the engine of the model {} has died: {}", self.alias(model), engine.process.describe(exit));
        warn!("{why}");
        // If it does not listen, its next request fails.
        let _unheard = channel::send(self.channel.get_ref(), &Reply::Died(channel::cut(why)), &[]);
    }

    fn alias(&self, model: usize) -> &str {
        self.wanted.models.get(model).map_or("?", |model| &model.alias)
    }

    /// Loads a model with these options.
    async fn load(&mut self, model: usize, mut options: LoadOptions) -> Result<()> {
        let files = self.files.get(model).ok_or_else(|| Error::not_found(format!("the container names no model {model}")))?;
        let Checked { size, has_pooling } = self.check(model, files, &mut options)?;
        if self.engines.get(&model).is_some_and(|engine| engine.options == options) {
            return Ok(());
        }
        if let Some(mut other) = self.engines.remove(&model) {
            other.process.kill().await;
            other.place.remove();
        }
        let mut engine = self.start(&self.files[model], options, has_pooling)?;
        let (alias, pid) = (self.alias(model), engine.process.pid);
        let loaded = tokio::select! {
            loaded = engine.place.loaded() => loaded,
            never = tell_progress(self.channel.get_ref(), alias, pid, size) => match never {},
            exit = engine.process.ended() => {
                let reason = reason_in(&engine.process.errors.last()).unwrap_or_else(|| engine.process.describe(exit));
                Err(Error::precondition(reason))
            }
        };
        match loaded {
            Ok(()) => {
                self.engines.insert(model, engine);
                Ok(())
            }
            Err(error) => {
                engine.process.kill().await;
                engine.place.remove();
                let WantedModel { alias, path, .. } = &self.wanted.models[model];
                Err(Error::new(error.code(), format!("the model {alias} ({}) cannot be loaded: {error}", path.display())))
            }
        }
    }

    /// Refuses a model that the engine could not read, as its user; and one that does not fit into
    /// the container, because the kernel would read its file over and over again, or kill
    /// something. Chooses the length of the context, if nobody has.
    fn check(&self, model: usize, files: &[File], options: &mut LoadOptions) -> Result<Checked> {
        let alias = self.alias(model);
        let mut size = 0_u64;
        for file in files {
            let status = file.metadata().context(|| "cannot look at the model's file".into())?;
            if status.mode() & 0o004 == 0 {
                let mode = status.mode() & 0o7777;
                let message = format!(
                    "the model {alias} has the mode {mode:04o}: its engine runs as a user of its own, who may not read it: chmod o+r"
                );
                return Err(Error::new(Code::PermissionDenied, message));
            }
            size = size.saturating_add(status.len());
        }
        // What is no model is the engine's to refuse, with its reason.
        let Some(Ok(shape)) = files.first().map(|file| Shape::read(FromStart::of(file))) else {
            return Ok(Checked { size, has_pooling: false });
        };
        let context = shape.context(options.ctx_size);
        options.ctx_size = Some(context);
        let needs = shape.needs(context, options.ubatch_size).unwrap_or(Needs { context: 0, computing: 0 });
        let all = size.saturating_add(needs.context).saturating_add(needs.computing);
        match self.wanted.memory {
            Some(memory) if all > memory => {
                let mib = |bytes: u64| bytes.div_ceil(1 << 20);
                let message = format!(
                    "the model {alias} needs about {} MiB: {} for its file, {} for a context of {context} tokens, {} to compute; the container's \
                     memory limit is {} MiB: raise resources.limits.memory, or lower ctx-size",
                    mib(all),
                    mib(size),
                    mib(needs.context),
                    mib(needs.computing),
                    mib(memory)
                );
                Err(Error::new(Code::ResourceExhausted, message))
            }
            Some(_) | None => Ok(Checked { size, has_pooling: shape.has_pooling() }),
        }
    }

    fn start(&self, files: &[File], options: LoadOptions, has_pooling: bool) -> Result<Engine> {
        let Shared { folder, next, reaper, tasks, .. } = &*self.shared;
        let user = confined::user(std::process::id(), 0);
        let place = Place { folder: folder.join(next.fetch_add(1, Ordering::Relaxed).to_string()), user };
        let opened = place.make()?;
        let Wanted { threads, devices, .. } = &self.wanted;
        let plan = Plan {
            program: &self.program,
            model: files.iter().map(AsFd::as_fd).collect(),
            folder: &place.folder,
            opened: opened.as_fd(),
            user,
            options: &options,
            threads: *threads,
            devices,
            has_pooling,
        };
        let common = Common { reaper, tasks, cgroup: &self.cgroup };
        let Prepared { invocation, links } = plan.prepare();
        match place.link(&links).and_then(|()| Process::run(LLAMA_SERVER.name, &invocation, None, common)) {
            Ok(process) => Ok(Engine { process, options, place }),
            Err(error) => {
                place.remove();
                Err(error)
            }
        }
    }

    /// A connection to the engine of a loaded model.
    async fn connect(&mut self, model: usize) -> Result<OwnedFd> {
        let engine = self.engines.get(&model).ok_or_else(|| Error::precondition("the model is not loaded"))?;
        let late = |_| Error::new(Code::DeadlineExceeded, format!("it does not accept connections within {CONNECT:?}"));
        let connection = tokio::time::timeout(CONNECT, engine.place.connect()).await.map_err(late)??;
        let what = || "cannot hand over a connection".to_string();
        let connection = connection.into_std().context(what)?;
        connection.set_nonblocking(false).context(what)?;
        Ok(connection.into())
    }
}

/// Tells the container how much of a model is in memory, as long as that is polled.
async fn tell_progress(channel: &OwnedFd, alias: &str, pid: u32, size: u64) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(PROGRESS).await;
        // As mapped pages of a file (proc_pid_status(5)).
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let mapped = status.lines().find_map(|line| line.strip_prefix("RssFile:")?.split_whitespace().next()?.parse::<u64>().ok());
        let percent = (mapped.unwrap_or(0) << 10).saturating_mul(100).checked_div(size).unwrap_or(0).min(100);
        let line = format!("the model {alias} is being loaded: about {percent} % of {} MiB are in memory", size.div_ceil(1 << 20));
        // It waits for an answer and may have ended, which is noticed elsewhere.
        let _unheard = channel::send(channel, &Reply::Loading(channel::cut(line)), &[]);
    }
}

/// Waits for the end of any engine; without one, for ever.
async fn first_end(engines: &mut BTreeMap<usize, Engine>) -> (usize, Exit) {
    if engines.is_empty() {
        return std::future::pending().await;
    }
    let ends = engines.iter_mut().map(|(model, engine)| Box::pin(async move { (*model, engine.process.ended().await) }));
    select_all(ends).await.0
}

async fn receive(channel: &AsyncFd<OwnedFd>) -> std::result::Result<Request, ReceiveError> {
    let read = |socket: &OwnedFd| match channel::receive::<Request>(socket) {
        Err(ReceiveError::None) => Err(std::io::ErrorKind::WouldBlock.into()),
        received => Ok(received),
    };
    let received = channel.async_io(tokio::io::Interest::READABLE, read).await;
    // Descriptors from a container are not taken.
    received.unwrap_or(Err(ReceiveError::Gone)).map(|(request, _)| request)
}

/// The first line in which llama-server says what is wrong, without its time and source.
fn reason_in(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("error") || line.contains("failed"))?;
    let reason = line.find("error").or_else(|| line.find("failed")).map_or(line, |at| &line[at..]);
    Some(reason.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_first_line_that_says_what_is_wrong() {
        let log = "0.00.1 I loading\n0.00.2 E llama_model_load: error loading model: invalid magic\n0.00.3 E srv: failed to load\n";
        assert_eq!(reason_in(log).as_deref(), Some("error loading model: invalid magic"));
        assert_eq!(reason_in("all is well"), None);
    }
}
