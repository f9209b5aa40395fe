// SPDX-License-Identifier: Apache-2.0
//! The instances that answer requests: one for each. So no request sees data of another, and a trap
//! fails only one request.
//!
//! A request has a limited time until its answer begins. After that the body may take as long as
//! the client reads it. When the client has left, or has all of it, what the instance still does is
//! limited again.
//!
//! Code that computes without end gives way to others each [`TICK`], because the engine's epoch
//! goes on as long as there are instances.

use super::super::limits::Budget;
use super::super::world::Version;
use super::super::{ComponentWasi, State, component_store, linker, surroundings};
use super::log_line;
use crate::guest::Guest;
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use wasmtime::component::{Component, GuestTaskId};
use wasmtime::{Engine, Store, StoreContextMut};
use wasmtime_wasi_http::handler::{HandlerState, Instance, ProxyPre, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus};
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
}

impl HandlerState for Instances {
    type StoreData = State<ComponentWasi>;
    type WorkerExpiration = Expiry;
    type WorkerState = Single;

    async fn instantiate(&self) -> wasmtime::Result<Instance<State<ComponentWasi>, Expiry, Single>> {
        let ticking = Ticking::begin(self.ticker.clone());
        let mut store = component_store(&self.engine, surroundings(&self.guest)?, &self.budget);
        let made = self.pre.instantiate_async(&mut store);
        let proxy = match self.timeout {
            None => made.await?,
            Some(timeout) => {
                let late = |_| wasmtime::Error::msg(format!("it is not instantiated within {timeout:?}"));
                tokio::time::timeout(timeout, made).await.map_err(late)??
            }
        };
        let request = Arc::new(OnceLock::new());
        let expiration = Expiry { request: request.clone(), timeout: self.timeout, sleep: Box::pin(tokio::time::sleep(Duration::ZERO)) };
        let state = Single { request, _ticking: ticking };
        Ok(Instance { store, proxy, view: <State<ComponentWasi> as WasiHttpView>::http, expiration, state })
    }
}

/// An instance's request, once it has one.
type Slot = Arc<OnceLock<Arc<Progress>>>;

/// An instance that answers one request.
pub struct Single {
    request: Slot,
    _ticking: Ticking,
}

impl WorkerState for Single {
    type StoreData = State<ComponentWasi>;
    type RequestData = Arc<Progress>;

    fn should_accept_request(&self, _concurrent: usize, total: usize) -> ShouldAccept {
        if total == 0 { ShouldAccept::Yes } else { ShouldAccept::Never }
    }

    fn on_request_start(
        &self,
        _store: StoreContextMut<'_, State<ComponentWasi>>,
        request: Arc<Progress>,
        _task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        // It is set only once, because it accepts only one request.
        let _first = self.request.set(request);
        // `Expiry` is asked also when the code computes without end.
        Box::pin(std::future::pending())
    }

    fn drop(&self, store: Store<State<ComponentWasi>>, result: wasmtime::Result<()>) {
        // Free the memory before another request takes the place.
        drop(store);
        if let Some(request) = self.request.get() {
            request.end(result);
        }
    }
}

/// How far a request is.
pub struct Progress {
    what: String,
    state: Mutex<Inner>,
    ended: Notify,
}

struct Inner {
    phase: Phase,
    /// Wakes whoever waits for the phase's deadline.
    waker: Option<std::task::Waker>,
    /// The request's part of how many there may be, until its instance has ended.
    place: Option<OwnedSemaphorePermit>,
    trap: Option<String>,
    has_ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is no answer yet.
    Waiting(Instant),
    /// There was none in time.
    Expired,
    /// The client reads the answer.
    Answering,
    /// The client has all of the answer, or has left.
    Over(Instant),
    /// The client has left before the answer.
    Cancelled,
}

impl Progress {
    /// A request that begins now.
    pub fn new(what: &str, place: OwnedSemaphorePermit) -> Arc<Self> {
        let inner = Inner { phase: Phase::Waiting(Instant::now()), waker: None, place: Some(place), trap: None, has_ended: false };
        Arc::new(Self { what: what.into(), state: Mutex::new(inner), ended: Notify::new() })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut inner = self.inner();
        inner.phase = phase;
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    /// Whether there was no answer in time.
    pub fn has_expired(&self) -> bool {
        self.inner().phase == Phase::Expired
    }

    /// Why the instance has ended, once it has.
    pub async fn trap(&self) -> Option<String> {
        let mut ended = std::pin::pin!(self.ended.notified());
        ended.as_mut().enable();
        if !self.inner().has_ended {
            ended.await;
        }
        self.inner().trap.clone()
    }

    /// The answer has begun: this body, which the client reads.
    pub fn answered(self: Arc<Self>, body: WasiBody) -> WasiBody {
        self.enter(Phase::Answering);
        Watched { body, progress: self }.boxed_unsync()
    }

    /// The client has left.
    pub fn cancel(&self) {
        self.enter(Phase::Cancelled);
    }

    fn end(&self, result: wasmtime::Result<()>) {
        let mut inner = self.inner();
        inner.has_ended = true;
        inner.place = None;
        if let Err(error) = result {
            match inner.phase {
                Phase::Waiting(_) => inner.trap = Some(format!("{error:?}")),
                Phase::Answering | Phase::Over(_) => log_line(&format!("{}, after its answer: {error:?}", self.what)),
                Phase::Expired | Phase::Cancelled => {}
            }
        }
        drop(inner);
        self.ended.notify_waiters();
    }

    /// When the instance is to be ended; `None` if not before something else happens.
    fn deadline(&self, timeout: Option<Duration>, waker: &std::task::Waker) -> Option<Instant> {
        let mut inner = self.inner();
        inner.waker = Some(waker.clone());
        match inner.phase {
            Phase::Waiting(since) | Phase::Over(since) => timeout.map(|timeout| since + timeout),
            Phase::Answering => None,
            Phase::Expired | Phase::Cancelled => Some(Instant::now()),
        }
    }

    fn expire(&self) {
        let mut inner = self.inner();
        if let Phase::Waiting(_) = inner.phase {
            inner.phase = Phase::Expired;
        }
    }
}

/// Ends an instance when its request has had its time.
pub struct Expiry {
    request: Slot,
    timeout: Option<Duration>,
    sleep: Pin<Box<tokio::time::Sleep>>,
}

impl WorkerExpiration for Expiry {
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>, _status: WorkerStatus, _start: Instant) -> Poll<()> {
        // An instance is made for a request, which it accepts first of all.
        let Some(request) = self.request.get().cloned() else { return Poll::Pending };
        let Some(deadline) = request.deadline(self.timeout, context.waker()) else { return Poll::Pending };
        self.sleep.as_mut().reset(deadline.into());
        std::task::ready!(self.sleep.as_mut().poll(context));
        request.expire();
        Poll::Ready(())
    }
}

/// An answer's body, which tells when the client has all of it or has left.
struct Watched {
    body: WasiBody,
    progress: Arc<Progress>,
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

impl Drop for Watched {
    fn drop(&mut self) {
        self.progress.enter(Phase::Over(Instant::now()));
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
