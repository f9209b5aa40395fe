// SPDX-License-Identifier: Apache-2.0
//! Serves components of the world `wasi:http/proxy` on a port. Each request gets an instance of its
//! own. So no request sees data of another, and a trap fails only one request.
//!
//! It speaks HTTP/1.1. TLS is left to a proxy before the pod.

use super::limits::Budget;
use super::{Preview2, State, add_interfaces, store, surroundings};
use crate::guest::Guest;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioTimer;
use std::convert::Infallible;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

/// The interface that such a component exports (WASI HTTP 0.2; its version follows).
const HANDLER: &str = "wasi:http/incoming-handler@";

/// How many clients are served at a time. More wait in the kernel's queue.
const CLIENTS: usize = 1024;

/// How many instances may exist at a time. An instance may go on after its answer.
const INSTANCES: usize = 1024;

/// How long a client may take to send the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait after accept(2) failed for lack of memory or descriptors.
const RECOVERY: Duration = Duration::from_millis(100);

/// Whether a component answers HTTP requests.
pub fn answers(engine: &Engine, component: &Component) -> bool {
    component.component_type().exports(engine).any(|(name, _)| name.starts_with(HANDLER))
}

/// Answers requests until the process ends.
///
/// # Errors
/// When an import of the component does not exist, or the port cannot be used.
pub async fn serve(engine: &Engine, component: &Component, guest: &Guest) -> wasmtime::Result<Infallible> {
    let mut linker = Linker::new(engine);
    add_interfaces(engine, component, &mut linker)?;
    let pre = ProxyPre::new(linker.instantiate_pre(component)?)?;
    let port = guest.port.clone().map_err(|text| wasmtime::Error::msg(format!("{text:?} is not a port number on which to answer HTTP")))?;
    let listener = listen(port).await?;
    log_line(&format!("answers HTTP on port {port}"));
    let server = Arc::new(Server {
        pre,
        guest: guest.clone(),
        budget: Budget::new(guest.memory),
        requests: TaskTracker::new(),
        places: Arc::new(Semaphore::new(INSTANCES)),
    });
    let places = Arc::new(Semaphore::new(CLIENTS));
    let clients = TaskTracker::new();
    loop {
        let place = places.clone().acquire_owned().await?;
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                log_line(&format!("cannot accept a connection: {error}"));
                tokio::time::sleep(RECOVERY).await;
                continue;
            }
        };
        let server = server.clone();
        clients.spawn(async move {
            server.talk(client).await;
            drop(place);
        });
    }
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
    pre: ProxyPre<State<Preview2>>,
    guest: Guest,
    budget: Budget,
    requests: TaskTracker,
    places: Arc<Semaphore>,
}

impl Server {
    /// Answers all requests of a client's connection.
    async fn talk(self: Arc<Self>, client: TcpStream) {
        let service = service_fn(move |request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let mut connection = http1::Builder::new();
        connection.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        // A broken connection is no error here: the client sees it.
        let _gone = connection.serve_connection(TokioIo::new(client), service).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<HyperOutgoingBody> {
        let what = format!("{} {}", request.method(), request.uri());
        self.ask(request, what.clone()).await.unwrap_or_else(|error| {
            log_line(&format!("{what}: {error:?}"));
            failed()
        })
    }

    /// Lets the component answer. It may go on after the answer, for example to send the body. If
    /// the client leaves before the answer, it is cancelled.
    async fn ask(&self, request: Request<Incoming>, what: String) -> wasmtime::Result<Response<HyperOutgoingBody>> {
        let place = self.places.clone().acquire_owned().await?;
        let mut store = store(self.pre.engine(), Preview2::new(surroundings(&self.guest)?.build()), &self.budget);
        let (answer, answered) = oneshot::channel();
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
        let out = store.data_mut().http().new_response_outparam(answer)?;
        let pre = self.pre.clone();
        let (told, mut tells) = oneshot::channel();
        let late = what.clone();
        let run = self.requests.spawn(async move {
            let outcome = async {
                let proxy = pre.instantiate_async(&mut store).await?;
                proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await
            };
            let outcome = outcome.await;
            // Free the memory before the outcome is reported.
            drop((store, place));
            // If there was an answer, the receiver is gone.
            if let Err(outcome) = told.send(outcome) {
                log_end_after_answer(&late, outcome);
            }
        });
        let run = AbortOnDropHandle::new(run);
        match answered.await {
            Ok(Ok(response)) => {
                tells.close();
                // The answer may have arrived just before the close.
                if let Ok(outcome) = tells.try_recv() {
                    log_end_after_answer(&what, outcome);
                }
                run.detach();
                Ok(response)
            }
            Ok(Err(code)) => Err(wasmtime::Error::msg(format!("it answers with an error: {code:?}"))),
            Err(_) => match tells.await? {
                Ok(()) => Err(wasmtime::Error::msg("it ended without an answer")),
                Err(error) => Err(error),
            },
        }
    }
}

fn failed() -> Response<HyperOutgoingBody> {
    let text = Full::new(Bytes::from_static(b"the Wasm component failed\n")).map_err(|never| match never {});
    let mut response = Response::new(text.boxed_unsync());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain"));
    response
}

/// Logs how an instance ended after its answer.
fn log_end_after_answer(what: &str, outcome: wasmtime::Result<()>) {
    if let Err(error) = outcome {
        log_line(&format!("{what}, after its answer: {error:?}"));
    }
}

/// Writes a line to the container's log.
fn log_line(text: &str) {
    // A container may have closed its standard error.
    let _unheard = writeln!(std::io::stderr(), "wasmtime: {}", text.trim_end());
}
