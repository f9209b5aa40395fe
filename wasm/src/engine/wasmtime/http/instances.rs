// SPDX-License-Identifier: Apache-2.0
//! The instances that answer requests: one for each. So no request sees data of another, and a trap
//! fails only one request.
//!
//! ```text
//! Waiting ──the component answers──> the client reads ──it has all, or has left──> what the
//! instance still does limited: status 504                without limit
//! limited
//! ```
//!
//! Code that computes without end gives way to others each [`TICK`], because the engine's epoch
//! goes on as long as there are instances.
//!
//! Why not `wasmtime_wasi_http::handler`, which does the same and can keep an instance for further
//! requests? It forgets a trap of WASI 0.2 that happens after the answer has begun.

use super::super::limits::Budget;
use super::super::world::Version;
use super::super::{ComponentWasi, State, component_store, linker, surroundings};
use super::{Refusal, log_line};
use crate::guest::Guest;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::{Request, Response};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use wasmtime::component::Component;
use wasmtime::{Engine, Store};
use wasmtime_wasi_http::handler::{Proxy, ProxyPre};
use wasmtime_wasi_http::{WasiBody, WasiHttpView, p2, p3};

/// The interval at which code that computes gives way to others.
const TICK: Duration = Duration::from_millis(10);

/// Makes instances.
pub struct Instances {
    pre: ProxyPre<State<ComponentWasi>>,
    engine: Engine,
    guest: Guest,
    budget: Budget,
    timeout: Option<Duration>,
    ticker: Arc<Ticker>,
}

impl Instances {
    /// Instances of a component. One must not take longer than `timeout` to answer.
    ///
    /// # Errors
    /// When an import of the component does not exist.
    pub fn new(
        component: &Component,
        version: Version,
        guest: &Guest,
        budget: Budget,
        timeout: Option<Duration>,
    ) -> wasmtime::Result<Self> {
        let (engine, pre) = (component.engine().clone(), linker(component)?.instantiate_pre(component)?);
        let pre = match version {
            Version::V2 => ProxyPre::P2(p2::bindings::ProxyPre::new(pre)?),
            Version::V3 => ProxyPre::P3(p3::bindings::ServicePre::new(pre)?),
        };
        let ticker = Ticker::start(engine.clone())?;
        Ok(Self { pre, engine, guest: guest.clone(), budget, timeout, ticker })
    }

    /// Makes an instance and drops it, as an attempt.
    ///
    /// # Errors
    /// When it cannot be made, or not in time.
    pub async fn attempt(&self) -> wasmtime::Result<()> {
        let made = self.instantiate();
        let Some(timeout) = self.timeout else { return made.await.map(drop) };
        let late = |_| wasmtime::Error::msg(format!("it is not instantiated within {timeout:?}"));
        tokio::time::timeout(timeout, made).await.map_err(late)?.map(drop)
    }

    async fn instantiate(&self) -> wasmtime::Result<(Store<State<ComponentWasi>>, Proxy, Ticking)> {
        let ticking = Ticking::begin(self.ticker.clone());
        let mut store = component_store(&self.engine, surroundings(&self.guest)?, &self.guest, &self.budget);
        let proxy = self.pre.instantiate_async(&mut store).await?;
        Ok((store, proxy, ticking))
    }

    /// Lets a new instance answer a request, and returns when that instance has ended. `what` names
    /// the request in the log. If there was no answer, returns why.
    pub async fn run(&self, what: &str, request: Request<WasiBody>, answer: Answer, client: Client) -> Option<Refusal> {
        let is_given = answer.is_given.clone();
        let result = tokio::select! {
            result = self.call(request, answer) => result,
            () = client.out_of_time(self.timeout) => return (!is_given.load(Ordering::Acquire)).then(|| self.late(what)),
        };
        match (result, is_given.load(Ordering::Acquire)) {
            (Ok(()), true) => None,
            (Err(error), true) => {
                log_line(&format!("{what}, after its answer: {error:?}"));
                None
            }
            (result, false) => {
                let why = result.err().map_or_else(|| "it ended without an answer".into(), |error| format!("{error:?}"));
                log_line(&format!("{what}: {why}"));
                Some(Refusal::Failed)
            }
        }
    }

    fn late(&self, what: &str) -> Refusal {
        log_line(&format!("{what}: no answer within {:?}", self.timeout.unwrap_or_default()));
        Refusal::Late
    }

    async fn call(&self, request: Request<WasiBody>, answer: Answer) -> wasmtime::Result<()> {
        let (mut store, proxy, _ticking) = self.instantiate().await?;
        match proxy {
            Proxy::P2(proxy) => {
                let mut http = store.data_mut().http();
                let request = http.new_incoming_request(p2::bindings::http::types::Scheme::Http, request)?;
                let give =
                    move |given: Result<_, p2::bindings::http::types::ErrorCode>| answer.give(given.map_err(|code| code.to_string()));
                let answer = http.new_response_outparam_from_callback(give)?;
                proxy.wasi_http_incoming_handler().call_handle(&mut store, request, answer).await
            }
            Proxy::P3(service) => {
                let run = async |accessor: &wasmtime::component::Accessor<State<ComponentWasi>>| {
                    let (request, sent) = accessor.with(|mut store| {
                        let (request, sent) = p3::Request::from_http(store.data_mut().http().hooks, request);
                        // Its type names the lifetime of the store's borrow.
                        let sent: Sent = Box::pin(sent);
                        (request, sent)
                    });
                    match service.handle(accessor, request).await? {
                        Ok(response) => answer.give(Ok(accessor.with(|store| response.into_http(store, sent))?)),
                        Err(code) => answer.give(Err(code.to_string())),
                    }
                    // It may still send the body.
                    poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
                    Ok(())
                };
                store.run_concurrent(run).await?
            }
        }
    }
}

/// Whether a request's body could be read.
type Sent = Pin<Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>>;

/// What a component answers: a response, or the error that it answers with (`error-code` of
/// `wasi:http/types`).
pub type Given = Result<Response<WasiBody>, String>;

/// Where the answer to a request goes.
pub struct Answer {
    given: oneshot::Sender<Given>,
    is_given: Arc<AtomicBool>,
}

impl Answer {
    /// The answer to a request, and where it arrives.
    pub fn new() -> (Self, oneshot::Receiver<Given>) {
        let (given, arrives) = oneshot::channel();
        (Self { given, is_given: Arc::default() }, arrives)
    }

    fn give(self, given: Given) {
        self.is_given.store(true, Ordering::Release);
        // The client may have left.
        let _unheard = self.given.send(given);
    }
}

/// What an instance sees of its client.
pub struct Client(watch::Receiver<bool>);

/// A client that waits for an answer, or reads it. When this is dropped, it has all of it, or has
/// left.
pub struct Present(watch::Sender<bool>);

impl Present {
    /// A client that waits.
    pub fn new() -> (Self, Client) {
        let (present, client) = watch::channel(false);
        (Self(present), Client(client))
    }

    /// The client reads this body from now on.
    pub fn reads(self, body: WasiBody) -> Watched {
        self.0.send_replace(true);
        Watched { body, _client: self }
    }
}

impl Client {
    /// Waits until the instance has had its time, which is `timeout` until the answer begins, and
    /// the same again when the client has left after that; or until the client has left before.
    async fn out_of_time(mut self, timeout: Option<Duration>) {
        let elapsed = || async move {
            match timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let begins = tokio::select! {
            begins = self.0.wait_for(|is_answered| *is_answered) => begins.is_ok(),
            () = elapsed() => false,
        };
        if begins {
            // Nothing further is said, and the end is an error.
            let _left = self.0.changed().await;
            elapsed().await;
        }
    }
}

/// An answer's body, which the client has or has left when it is dropped.
pub struct Watched {
    body: WasiBody,
    _client: Present,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Lets the engine's epoch go on while there are instances.
struct Ticker {
    engine: Engine,
    instances: AtomicUsize,
    thread: OnceLock<std::thread::Thread>,
}

impl Ticker {
    fn start(engine: Engine) -> wasmtime::Result<Arc<Self>> {
        let ticker = Arc::new(Self { engine, instances: AtomicUsize::new(0), thread: OnceLock::new() });
        let ticks = ticker.clone();
        let tick = move || {
            loop {
                // A wake-up that comes before this is kept.
                if ticks.instances.load(Ordering::Acquire) == 0 {
                    std::thread::park();
                } else {
                    std::thread::sleep(TICK);
                    ticks.engine.increment_epoch();
                }
            }
        };
        let thread = std::thread::Builder::new().name("epoch".into()).stack_size(64 << 10).spawn(tick);
        let thread = thread.map_err(|error| wasmtime::Error::msg(format!("cannot start a thread: {error}")))?;
        // It is set only here.
        let _first = ticker.thread.set(thread.thread().clone());
        Ok(ticker)
    }
}

/// One instance, for the ticker.
struct Ticking(Arc<Ticker>);

impl Ticking {
    fn begin(ticker: Arc<Ticker>) -> Self {
        if ticker.instances.fetch_add(1, Ordering::AcqRel) == 0
            && let Some(thread) = ticker.thread.get()
        {
            thread.unpark();
        }
        Self(ticker)
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.instances.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_instance_has_its_time_before_and_after_the_answer() {
        let timeout = Some(Duration::from_secs(2));
        let begun = tokio::time::Instant::now();
        let (_waits, client) = Present::new();
        client.out_of_time(timeout).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));

        let (leaves, client) = Present::new();
        drop(leaves);
        client.out_of_time(None).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2), "a client that has left before the answer");

        let (reads, client) = Present::new();
        reads.0.send_replace(true);
        let mut over = std::pin::pin!(client.out_of_time(timeout));
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, over.as_mut()).await.is_err(), "a client may read as slowly as it likes");
        drop(reads);
        over.await;
        assert_eq!(begun.elapsed(), hour + Duration::from_secs(4));
    }
}
