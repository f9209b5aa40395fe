// SPDX-License-Identifier: Apache-2.0
//! Serves a component on a port: one of `wasi:http/proxy` (WASI 0.2) or of `wasi:http/service`
//! (0.3). It speaks HTTP/1.1, and HTTP/2 with clients that begin with it (RFC 9113, section 3.3).
//! TLS is left to a proxy before the pod.
//!
//! ```text
//! a first instance stands ──> listen ──> accept ──> answer, each request by an instance of its own
//!                               SIGTERM or SIGINT ──> no more connections; those that are there end ──> exit 0
//! ```

mod instances;

use super::component_settings;
use super::limits::Budget;
use super::world::Version;
use crate::guest::{Guest, Http};
use crate::signals;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use instances::{Answer, Instances, Present};
use magnetar_sys::compiled;
use std::convert::Infallible;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use wasmtime::component::Component;
use wasmtime::{Engine, InstanceAllocationStrategy, PoolingAllocationConfig};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

/// How many clients are served at a time. More wait in the kernel's queue.
const CLIENTS: usize = 1024;

/// The most requests at a time for which places are kept ready.
const MOST_PLACES: u32 = 1024;

/// How many core modules a component may have whose instances have places: about as many as tools
/// make of one program with adapters.
const CORE_INSTANCES: u32 = 16;

/// How many tasks each instance may have, if all have as many.
const TASKS: u32 = 16;

/// How long a client may take to send the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait after accept(2) failed for lack of memory or descriptors.
const RECOVERY: Duration = Duration::from_millis(100);

/// Answers requests until the container is asked to stop.
///
/// # Errors
/// When an import of the component does not exist, it cannot be instantiated, or the port cannot be
/// used.
pub async fn serve(component: &Component, version: Version, guest: &Guest) -> wasmtime::Result<()> {
    let http = guest.http.clone().map_err(wasmtime::Error::msg)?;
    // Whoever sees the port open can be answered.
    let instances = match attempt(pooled(component, http.requests), version, guest, &http).await {
        Ok(instances) => instances,
        // What is wrong with the component itself, this says once more.
        Err(_) => attempt(Ok(component.clone()), version, guest, &http).await?,
    };
    let listener = listen(http.port).await?;
    log_line(&format!("answers HTTP on port {}", http.port));
    let stop = signals::stop_requested();
    let requests = Arc::new(Semaphore::new(http.requests));
    let server = Arc::new(Server { instances: Arc::new(instances), running: TaskTracker::new(), requests, http });
    let (clients, connections) = (TaskTracker::new(), GracefulShutdown::new());
    tokio::select! {
        never = server.accept_all(&listener, &clients, &connections) => match never {},
        () = stop => {}
    }
    drop(listener);
    connections.shutdown().await;
    for ends in [&clients, &server.running] {
        ends.close();
        ends.wait().await;
    }
    Ok(())
}

/// Makes a first instance of a component.
async fn attempt(component: wasmtime::Result<Component>, version: Version, guest: &Guest, http: &Http) -> wasmtime::Result<Instances> {
    let instances = Instances::new(&component?, version, guest, Budget::new(guest.memory), http.timeout)?;
    instances.attempt().await?;
    Ok(instances)
}

/// The component on an engine that has a place ready for each instance: memory, tables and stack,
/// which the next instance uses again. Otherwise each request would map and unmap its own.
///
/// # Errors
/// Where there cannot be so many places: the addresses of all their memories are reserved, 4 GiB
/// for each.
fn pooled(component: &Component, requests: usize) -> wasmtime::Result<Component> {
    let needs = component.resources_required();
    let (Some(needs), Ok(places)) = (needs, u32::try_from(requests)) else {
        return Err(wasmtime::Error::msg("it imports instances of modules"));
    };
    if places > MOST_PLACES {
        return Err(wasmtime::Error::msg("it may answer more requests at a time than there can be places"));
    }
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(places)
        .max_core_instances_per_component(CORE_INSTANCES)
        .total_core_instances(places * CORE_INSTANCES)
        .max_memories_per_component(needs.num_memories)
        .total_memories(places * needs.num_memories)
        .max_tables_per_component(needs.num_tables)
        .total_tables(places * needs.num_tables)
        .total_gc_heaps(places)
        // Each task of an instance of WASI 0.3 may have one of its own.
        .total_stacks(places * TASKS);
    let mut settings = component_settings();
    settings.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    compiled::on_another_engine(&Engine::new(&settings)?, component)
}

/// Listens on all addresses of the pod, with or without IPv6.
async fn listen(port: u16) -> wasmtime::Result<TcpListener> {
    let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        // Without IPv6 the kernel refuses the address family or the address, depending on its
        // configuration.
        Err(error) if !matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        other => other,
    };
    listener.map_err(|error| wasmtime::Error::msg(format!("cannot listen on port {port}: {error}")))
}

/// A component that answers.
struct Server {
    instances: Arc<Instances>,
    /// The instances, some of which may still work after their answer.
    running: TaskTracker,
    requests: Arc<Semaphore>,
    http: Http,
}

impl Server {
    async fn accept_all(self: &Arc<Self>, listener: &TcpListener, clients: &TaskTracker, connections: &GracefulShutdown) -> Infallible {
        let places = Arc::new(Semaphore::new(CLIENTS));
        loop {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await;
            let client = match listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    log_line(&format!("cannot accept a connection: {error}"));
                    tokio::time::sleep(RECOVERY).await;
                    continue;
                }
            };
            // Head and body of an answer are sent one after the other. The kernel would hold the
            // second back until the client has acknowledged the first (44 ms were seen).
            let _slower = client.set_nodelay(true);
            let talk = self.clone().talk(client, connections);
            clients.spawn(async move {
                talk.await;
                drop(place);
            });
        }
    }

    /// Answers all requests of a client's connection.
    fn talk(self: Arc<Self>, client: TcpStream, connections: &GracefulShutdown) -> impl Future<Output = ()> + Send + use<> {
        let watcher = connections.watcher();
        async move {
            let service = service_fn(move |request| {
                let server = self.clone();
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            builder.http2().timer(TokioTimer::new());
            // A broken connection is no error here: the client sees it.
            let _gone = watcher.watch(builder.serve_connection(TokioIo::new(client), service).into_owned()).await;
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<WasiBody> {
        let (begun, what) = (Instant::now(), format!("{} {}", request.method(), request.uri()));
        let answer = self.ask(request, &what).await.unwrap_or_else(Refusal::response);
        if self.http.access_log {
            let entry =
                serde_json::json!({ "request": what, "status": answer.status().as_u16(), "ms": begun.elapsed().as_millis() as u64 });
            log_text(&entry.to_string());
        }
        answer
    }

    /// Lets an instance answer. It may go on after the answer, for example to send the body. If the
    /// client leaves before the answer, which drops this future, the instance is ended.
    async fn ask(&self, request: Request<Incoming>, what: &str) -> Result<Response<WasiBody>, Refusal> {
        let place = self.requests.clone().try_acquire_owned().map_err(|_| Refusal::Busy)?;
        let request = absolute(request)?.map(|body| body.map_err(HttpError::from).boxed_unsync());
        let ((answer, arrives), (present, client)) = (Answer::new(), Present::new());
        let (instances, name) = (self.instances.clone(), what.to_owned());
        let ended = self.running.spawn(async move {
            let refusal = instances.run(&name, request, answer, client).await;
            drop(place);
            refusal
        });
        match arrives.await {
            Ok(Ok(response)) => Ok(response.map(|body| present.reads(body).boxed_unsync())),
            Ok(Err(code)) => {
                log_line(&format!("{what}: it answers with the error {code}"));
                Err(Refusal::Failed)
            }
            // Only a panic is an error, and it has been reported.
            Err(_) => Err(ended.await.ok().flatten().unwrap_or(Refusal::Failed)),
        }
    }
}

/// The request with scheme and authority in its URI, which a component may ask for. In HTTP/1.1 the
/// authority is in the header `Host`, and a request without any is invalid (RFC 9112, section 3.2).
fn absolute(request: Request<Incoming>) -> Result<Request<Incoming>, Refusal> {
    let (mut head, body) = request.into_parts();
    let mut uri = head.uri.into_parts();
    if uri.authority.is_none() {
        let host = head.headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
        uri.authority = Some(host.ok_or(Refusal::NoHost)?);
    }
    uri.scheme.get_or_insert(Scheme::HTTP);
    // That of CONNECT has none.
    uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    head.uri = Uri::from_parts(uri).map_err(|_| Refusal::NoHost)?;
    Ok(Request::from_parts(head, body))
}

/// Why a request is not answered by the component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It names no host.
    NoHost,
    /// There are as many requests as there may be.
    Busy,
    /// It has not answered in time.
    Late,
    /// It trapped, or ended without an answer.
    Failed,
}

impl Refusal {
    fn response(self) -> Response<WasiBody> {
        let (status, text) = match self {
            Self::NoHost => (StatusCode::BAD_REQUEST, "the request names no host\n"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "the Wasm component answers as many requests as it may\n"),
            Self::Late => (StatusCode::GATEWAY_TIMEOUT, "the Wasm component has not answered in time\n"),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "the Wasm component failed\n"),
        };
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if self == Self::Busy {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Writes a line to the container's log.
fn log_line(text: &str) {
    log_text(&format!("wasmtime: {}", text.trim_end()));
}

fn log_text(text: &str) {
    // A container may have closed its standard error.
    let _unheard = writeln!(std::io::stderr(), "{text}");
}
