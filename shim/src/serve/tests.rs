// SPDX-License-Identifier: Apache-2.0
//! Tests the Controller as containerd uses it: over a real socket, with real processes.

mod fake;
mod forgotten;
mod store;

use super::controller::Front;
use super::pods::Pods;
use super::unwanted::Rhythm;
use super::{adopt, answer_calls, socket};
use crate::launch::Places;
use crate::stage::Stage;
use containerd_client::services::v1::sandbox::controller_client::ControllerClient;
use containerd_client::services::v1::sandbox::*;
use containerd_client::types::Sandbox;
use hyper_util::rt::TokioIo;
use magnetar_core::config::HandlerConfig;
use magnetar_core::ids::{Namespace, SandboxId};
use magnetar_core::record::{PodDir, PodRecord};
use magnetar_core::sandbox::update;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tower::service_fn;

const SOON: Duration = Duration::from_secs(10);

/// A folder with sandboxers and pods. It outlives a `serve`.
struct Node(TempDir);

/// A `serve` and a connection to it.
struct Serving {
    client: ControllerClient<Channel>,
    state: PathBuf,
    tasks: JoinSet<()>,
}

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        fake::install(node.0.path());
        node
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("s")
    }

    fn dir(&self, id: &str) -> PodDir {
        PodDir::new(&self.state(), &Namespace::parse("n").unwrap(), &SandboxId::parse(id).unwrap()).unwrap()
    }

    /// Starts a new `serve`, which finds the pods of earlier ones.
    fn serve(&self) -> Serving {
        // Never ask: this machine may have a containerd of its own, which knows none of these pods.
        self.serve_in(Rhythm { first: [Duration::from_secs(3600); 3], ..Rhythm::default() })
    }

    fn serve_in(&self, rhythm: Rhythm) -> Serving {
        socket::folder(&self.state()).unwrap();
        let pods = Pods::new(self.state(), Places::new(Some(self.0.path())), rhythm);
        adopt::adopt_all(&pods);
        let path = self.0.path().join("serve.sock");
        let (listener, owned) = socket::listen(&path).unwrap();
        let mut tasks = JoinSet::new();
        let front = Front::new(pods, self.0.path().join("config"));
        tasks.spawn(async move {
            let _owned = owned;
            answer_calls(listener, front, CancellationToken::new()).await.unwrap();
        });
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://serve").connect_with_connector_lazy(connector);
        Serving { client: ControllerClient::new(channel), state: self.state(), tasks }
    }

    /// Runs a `serve` that then ends as if by SIGKILL.
    fn before(&self, what: impl AsyncFnOnce(Serving)) {
        alone(async { what(self.serve()).await });
    }
}

/// Runs `what` in an event loop of its own, whose tasks all end with it.
fn alone(what: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(what);
}

fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "n".parse().unwrap());
    request
}

impl Serving {
    async fn create(&self, id: &str, kind: &str) -> Result<(), Status> {
        let request = ControllerCreateRequest { sandbox_id: id.into(), sandboxer: format!("magnetar-{kind}"), ..Default::default() };
        self.client.clone().create(ask(request)).await.map(drop)
    }

    async fn start(&self, id: &str) -> Result<ControllerStartResponse, Status> {
        self.client.clone().start(ask(ControllerStartRequest { sandbox_id: id.into(), ..Default::default() })).await.map(|r| r.into_inner())
    }

    async fn run(&self, id: &str, kind: &str) -> u32 {
        self.create(id, kind).await.unwrap();
        self.start(id).await.unwrap().pid
    }

    async fn status(&self, id: &str) -> Result<ControllerStatusResponse, Status> {
        self.client
            .clone()
            .status(ask(ControllerStatusRequest { sandbox_id: id.into(), ..Default::default() }))
            .await
            .map(|r| r.into_inner())
    }

    async fn wait(&self, id: &str) -> Result<ControllerWaitResponse, Status> {
        self.client.clone().wait(ask(ControllerWaitRequest { sandbox_id: id.into(), ..Default::default() })).await.map(|r| r.into_inner())
    }

    async fn stop(&self, id: &str) -> Result<(), Status> {
        self.client.clone().stop(ask(ControllerStopRequest { sandbox_id: id.into(), ..Default::default() })).await.map(drop)
    }

    async fn shutdown(&self, id: &str) -> Result<(), Status> {
        self.client.clone().shutdown(ask(ControllerShutdownRequest { sandbox_id: id.into(), ..Default::default() })).await.map(drop)
    }

    fn pods(&self) -> Vec<String> {
        std::fs::read_dir(self.state.join("n"))
            .map(|all| all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default()
    }
}

async fn within(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn lives(pid: u32) -> bool {
    // A zombie has no command line: the test's own processes are reaped late.
    std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).is_ok_and(|line| !line.is_empty())
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

/// Sends the update that containerd sends for a pod's resize.
#[tokio::test(flavor = "current_thread")]
async fn a_resize_reaches_the_pod_s_process_and_so_does_its_refusal() {
    let node = Node::new();
    let serve = node.serve();
    for kind in ["good", "fixed", "old"] {
        serve.run(kind, kind).await;
    }
    let resize = async |id: &str| {
        let resources = prost_types::Any { type_url: "some/type".into(), value: b"{}".to_vec() };
        let extensions = HashMap::from([("updated-resources".to_owned(), resources)]);
        let fields = vec!["extensions".to_owned()];
        let sandbox = Some(Sandbox { extensions, ..Default::default() });
        let request = ControllerUpdateRequest { sandbox_id: id.into(), fields, sandbox, ..Default::default() };
        serve.client.clone().update(ask(request)).await.map(drop)
    };
    resize("good").await.unwrap();
    let heard = std::fs::read(node.dir("good").path().join("update")).unwrap();
    let extension = ("updated-resources".to_owned(), ("some/type".to_owned(), b"{}".to_vec()));
    let expected = update::request(&SandboxId::parse("good").unwrap(), [extension], vec!["extensions".to_owned()]);
    assert_eq!(heard, expected);
    let refused = resize("fixed").await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "carved in stone"));
    // containerd would take Unimplemented for an update that is done.
    let refused = resize("old").await.unwrap_err();
    assert_eq!((refused.code(), refused.message().contains("of an earlier version")), (Code::FailedPrecondition, true), "{refused:?}");
    assert_eq!(resize("none").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_is_created_started_stopped_and_shut_down() {
    let node = Node::new();
    let serve = node.serve();
    serve.create("a", "good").await.unwrap();
    let started = serve.start("a").await.unwrap();
    assert_eq!(started.version, 3);
    assert_eq!(started.address, format!("ttrpc+unix://{}", node.dir("a").socket().display()));
    let status = serve.status("a").await.unwrap();
    assert_eq!((status.state.as_str(), status.pid, status.address), ("SANDBOX_READY", started.pid, started.address));
    let (exit, stopped) = tokio::join!(serve.wait("a"), serve.stop("a"));
    stopped.unwrap();
    let exit = exit.unwrap();
    assert_eq!((exit.exit_status, exit.exited_at.unwrap().seconds), (5, 7));
    serve.shutdown("a").await.unwrap();
    assert!(serve.pods().is_empty());
    assert!(!lives(started.pid));
    for outcome in [serve.status("a").await.map(drop), serve.wait("a").await.map(drop), serve.stop("a").await, serve.shutdown("a").await] {
        assert_eq!(outcome.unwrap_err().code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_second_create_or_start_is_refused_and_changes_nothing() {
    let node = Node::new();
    let serve = node.serve();
    let pid = serve.run("a", "good").await;
    assert_eq!(serve.create("a", "good").await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(serve.start("a").await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(serve.status("a").await.unwrap().pid, pid);
    serve.shutdown("a").await.unwrap();
    assert_eq!(serve.start("a").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "current_thread")]
async fn a_failed_create_leaves_nothing_and_names_the_reason() {
    let node = Node::new();
    let serve = node.serve();
    let begin = Instant::now();
    for (kind, code, words) in [
        ("refuses", Code::ResourceExhausted, "no more sandboxes"),
        ("dies", Code::Internal, "exit status: 3"),
        ("nonesuch", Code::FailedPrecondition, "magnetar-nonesuch"),
    ] {
        let status = serve.create("a", kind).await.unwrap_err();
        assert_eq!((status.code(), status.message().contains(words)), (code, true), "{status:?}");
        assert!(serve.pods().is_empty(), "{kind}");
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "none of this waits for a time-out");
    let long = "f".repeat(77);
    for id in ["", "a/b", "..", "a\0", &long] {
        assert_eq!(serve.create(id, "good").await.unwrap_err().code(), Code::InvalidArgument, "{id:?}");
    }
    let nameless = Request::new(ControllerCreateRequest { sandbox_id: "a".into(), ..Default::default() });
    assert_eq!(serve.client.clone().create(nameless).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(serve.pods().is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_failed_start_removes_the_pod() {
    let node = Node::new();
    let serve = node.serve();
    serve.create("a", "unready").await.unwrap();
    let status = serve.start("a").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "never ready"));
    assert!(serve.pods().is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_whose_caller_leaves_is_removed() {
    let node = Node::new();
    let serve = node.serve();
    let left = tokio::time::timeout(Duration::from_millis(300), serve.create("a", "hangs")).await;
    assert!(left.is_err());
    within("the pod whose Create was left is removed", || serve.pods().is_empty()).await;
    serve.create("b", "slow").await.unwrap();
    let left = tokio::time::timeout(Duration::from_millis(300), serve.start("b")).await;
    assert!(left.is_err());
    within("the pod whose Start was left is removed", || serve.pods().is_empty()).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_whose_process_is_killed_is_removed_and_no_other_pod() {
    let node = Node::new();
    let serve = node.serve();
    let (dies, lives_on) = (serve.run("dies", "good").await, serve.run("lives", "good").await);
    let (exit, ()) = tokio::join!(serve.wait("dies"), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        kill(dies);
    });
    assert_eq!(exit.unwrap().exit_status, 137);
    assert_eq!(serve.pods(), ["lives"]);
    let status = serve.status("dies").await.unwrap();
    assert_eq!(status.state, "SANDBOX_NOTREADY");
    assert!(status.info["info"].contains("ended unexpectedly: signal: 9"), "{:?}", status.info);
    // containerd removes what it has of the pod.
    assert_eq!(serve.shutdown("dies").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(serve.status("dies").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(serve.status("lives").await.unwrap().pid, lives_on);
    // There is no Wait call for this one.
    kill(lives_on);
    within("a pod without a Wait call is removed", || serve.pods().is_empty()).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_stuck_pod_does_not_delay_another_pod() {
    let node = Node::new();
    let serve = node.serve();
    let stuck = serve.run("stuck", "good").await;
    let pid = serve.run("other", "good").await;
    kill_process(Pid::from_raw(stuck as i32).unwrap(), Signal::STOP).unwrap();
    let mut asking = JoinSet::new();
    // More than its socket's queue holds, and more than the usual limit of calls on a connection.
    for _ in 0..300 {
        let mut client = serve.client.clone();
        asking.spawn(async move { client.wait(ask(ControllerWaitRequest { sandbox_id: "stuck".into(), ..Default::default() })).await });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = tokio::time::timeout(SOON, serve.status("other")).await.unwrap();
    assert_eq!(status.unwrap().pid, pid);
    kill(stuck);
    within("the stuck pod is removed", || serve.pods() == ["other"]).await;
    serve.shutdown("other").await.unwrap();
}

#[test]
fn the_next_serve_adopts_living_pods_and_removes_the_rest() {
    let node = Node::new();
    let mut started = 0;
    let mut hung = Vec::new();
    node.before(async |serve| {
        started = serve.run("started", "good").await;
        serve.create("created", "good").await.unwrap();
        serve.create("slow", "slow").await.unwrap();
        serve.run("killed", "good").await;
        // Two calls that are under way when serve ends.
        let _left = tokio::time::timeout(Duration::from_millis(1), serve.client.clone().status(ask(Default::default()))).await;
        let mut calls = JoinSet::new();
        let (mut creator, mut starter) = (serve.client.clone(), serve.client.clone());
        calls.spawn(async move {
            creator
                .create(ask(ControllerCreateRequest {
                    sandbox_id: "creating".into(),
                    sandboxer: "magnetar-hangs".into(),
                    ..Default::default()
                }))
                .await
                .map(drop)
        });
        calls.spawn(async move {
            starter.start(ask(ControllerStartRequest { sandbox_id: "slow".into(), ..Default::default() })).await.map(drop)
        });
        within("both are under way", || {
            matches!(Stage::of(&node.dir("slow")), Ok(Stage::Starting)) && node.dir("creating").pod().is_ok_and(|record| record.pid != 0)
        })
        .await;
        hung = ["creating", "slow"].map(|id| node.dir(id).pod().unwrap().pid).to_vec();
        drop(serve.tasks);
    });
    kill(node.dir("killed").pod().unwrap().pid);
    // A pod that has only a directory, and a pod that containerd owns.
    node.dir("half").make().unwrap();
    let foreign = node.dir("foreign");
    foreign.make().unwrap();
    foreign
        .write_pod(&PodRecord::new(Namespace::parse("n").unwrap(), SandboxId::parse("foreign").unwrap(), HandlerConfig::default()))
        .unwrap();
    Stage::Creating.advance(&foreign, Stage::Foreign).unwrap();
    node.before(async |serve| {
        assert_eq!(serve.status("started").await.unwrap().pid, started);
        assert_eq!(serve.wait("killed").await.map(|exit| exit.exit_status).unwrap_or(137), 137);
        within("what was cut off is removed, the rest is not", || {
            let mut pods = serve.pods();
            pods.sort();
            pods == ["created", "foreign", "started"]
        })
        .await;
        assert!(hung.iter().all(|pid| !lives(*pid)), "{hung:?}");
        serve.start("created").await.unwrap();
        let (exit, ()) = tokio::join!(serve.wait("started"), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            kill(started);
        });
        assert_eq!(exit.unwrap().exit_status, 137);
        serve.shutdown("created").await.unwrap();
        assert_eq!(serve.pods(), ["foreign"]);
    });
}

#[tokio::test(flavor = "current_thread")]
async fn garbage_on_the_socket_changes_nothing() {
    use tokio::io::AsyncWriteExt;
    let node = Node::new();
    let serve = node.serve();
    let pid = serve.run("a", "good").await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff", &[0; 4096]] {
        let mut stream = UnixStream::connect(node.0.path().join("serve.sock")).await.unwrap();
        let _refused = stream.write_all(garbage).await;
    }
    assert_eq!(serve.status("a").await.unwrap().pid, pid);
    serve.shutdown("a").await.unwrap();
}
