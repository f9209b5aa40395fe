// SPDX-License-Identifier: Apache-2.0
//! The loop: connections in, jobs in turn, answers out.

use crate::api::answers::{self, Answer};
use crate::api::{self, ApiError, Style, TextRequest};
use crate::connection::Connection;
use crate::engine::Engine;
use crate::http::{Refusal, Request};
use crate::job::{Job, Progress};
use crate::metrics::Metrics;
use crate::models::{self, Models};
use crate::net::{self, Interest, Number};
use crate::options::Options;
use crate::routes::{Exchange, Route};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

/// The most clients at a time.
const MAX_CONNECTIONS: usize = 256;
/// The most bytes of requests that are not complete, of all clients.
const MAX_KEPT: usize = 64 << 20;
/// Requests beneath this size are read in any case.
const SMALL: usize = 64 << 10;
/// How often connections are looked at on which nothing happens.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait for a piece that has not come: a little at first, then twice as long each time,
/// because the host cannot say when it comes.
const SHORTEST: Duration = Duration::from_micros(250);
const LONGEST: Duration = Duration::from_millis(4);
/// The status, in the log only, of a request whose client has left.
const LEFT: u16 = 499;

const JSON: &str = "application/json";
const PAGE: &str = include_str!("page.html");
/// The page has all in itself, and may load nothing.
const PAGE_HEADERS: &str = "Content-Security-Policy: default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; \
                            style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'\r\n";

/// The server.
pub struct Server<E> {
    engine: E,
    models: Models,
    options: Options,
    listener: TcpListener,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    waiting: VecDeque<Job>,
    active: Vec<Job>,
    metrics: Metrics,
    random: RandomState,
    /// How long to wait for a piece.
    pause: Duration,
}

impl<E: Engine> Server<E> {
    /// A server whose models are loaded.
    pub fn new(engine: E, models: Models, options: Options, listener: TcpListener) -> Self {
        let (connections, waiting, active, metrics) = Default::default();
        Self {
            engine,
            models,
            options,
            listener,
            connections,
            next: 0,
            waiting,
            active,
            metrics,
            random: RandomState::new(),
            pause: SHORTEST,
        }
    }

    /// Does once what there is to do, and returns whether that was anything.
    pub fn turn(&mut self) -> bool {
        let mut moved = self.accept();
        let all: Vec<u64> = self.connections.keys().copied().collect();
        for number in all {
            moved |= self.serve(number);
        }
        self.forget();
        let computed = self.compute();
        if computed {
            self.pause = SHORTEST;
        }
        moved | computed
    }

    /// Waits until there is something to do.
    ///
    /// # Errors
    /// When the host cannot wait.
    pub fn wait(&mut self) -> io::Result<()> {
        let mut interests: Vec<Interest> = self.connections.values().map(Connection::interest).collect();
        let has_room = self.connections.len() < MAX_CONNECTIONS;
        interests.push(Interest { socket: self.listener.as_raw_fd() as Number, read: has_room, write: false });
        // An answer whose client reads slowly goes on when there is room.
        let computes = self.active.iter().any(|job| self.connections.get(&job.connection).is_some_and(|client| !client.is_full()));
        let timeout = if computes { self.pause } else { LOOK };
        self.pause = (self.pause * 2).min(LONGEST);
        net::wait(&interests, (!self.connections.is_empty()).then_some(timeout))
    }

    fn accept(&mut self) -> bool {
        let mut moved = false;
        while self.connections.len() < MAX_CONNECTIONS || self.close_idle() {
            // Whatever is wrong with one client is no reason to end. Without a descriptor left,
            // those that are here go on.
            let Ok((socket, _)) = self.listener.accept() else { break };
            let number = socket.as_raw_fd() as Number;
            if socket.set_nonblocking(true).is_ok() {
                self.connections.insert(self.next, Connection::new(socket, number));
                self.next += 1;
            }
            moved = true;
        }
        moved
    }

    /// Closes a connection that nobody uses, for another client.
    fn close_idle(&mut self) -> bool {
        let now = Instant::now();
        let idle = self.connections.iter().find(|(_, connection)| connection.is_idle(now)).map(|(number, _)| *number);
        idle.is_some_and(|number| self.connections.remove(&number).is_some())
    }

    /// Reads and answers what one client sends.
    fn serve(&mut self, number: u64) -> bool {
        let kept: usize = self.connections.values().map(Connection::kept).sum();
        let Some(connection) = self.connections.get_mut(&number) else { return false };
        let mut moved = connection.receive();
        loop {
            let Some(connection) = self.connections.get_mut(&number) else { return moved };
            let asked = match connection.request() {
                Ok(None) if kept > MAX_KEPT && connection.kept() > SMALL => {
                    connection.refuse();
                    Err(Refusal { status: 503, why: "other clients send too much at the same time" })
                }
                Ok(None) => break,
                Ok(Some(request)) => Ok(request),
                Err(refusal) => Err(refusal),
            };
            moved = true;
            match asked {
                Ok(request) => self.handle(number, request),
                Err(Refusal { status, why }) => {
                    let exchange = Exchange { endpoint: "other", method: String::new(), begun: Instant::now() };
                    self.fail(number, &exchange, "", &ApiError::new(status, why));
                }
            }
        }
        self.connections.get_mut(&number).is_some_and(Connection::send) || moved
    }

    fn handle(&mut self, number: u64, request: Request) {
        let (route, endpoint) = Route::of(&request.path);
        let exchange = Exchange { endpoint, method: request.method, begun: Instant::now() };
        let Some(route) = route else {
            return self.fail(number, &exchange, "", &ApiError::new(404, format!("There is no {} here", request.path)));
        };
        if let Err(error) = route.check(&exchange.method) {
            return self.fail(number, &exchange, &format!("Allow: {}\r\n", route.methods()), &error);
        }
        match route {
            Route::Page => self.answer(number, &exchange, 200, "text/html; charset=utf-8", PAGE_HEADERS, PAGE.as_bytes()),
            // There is no port before the models are loaded.
            Route::Health => self.answer(number, &exchange, 200, JSON, "", b"{\"status\":\"ok\"}"),
            Route::Metrics => {
                let text = self.metrics.text(self.active.len(), self.waiting.len());
                self.answer(number, &exchange, 200, "text/plain; version=0.0.4; charset=utf-8", "", text.as_bytes());
            }
            Route::Models => {
                let list = answers::models(&self.models.names(), self.models.since);
                self.answer(number, &exchange, 200, JSON, "", list.to_string().as_bytes());
            }
            Route::Model(name) if self.models.has(&name) => {
                let model = answers::model(&name, self.models.since);
                self.answer(number, &exchange, 200, JSON, "", model.to_string().as_bytes());
            }
            Route::Model(name) => {
                let error = ApiError::no_model(Some(&name), self.models.names());
                self.fail(number, &exchange, "", &error);
            }
            Route::Chat | Route::Completion | Route::Embeddings => match self.job(number, &exchange, &route, &request.body) {
                Ok(job) => self.waiting.push_back(job),
                Err(error) => {
                    let retry = if error.status == 503 { "Retry-After: 1\r\n" } else { "" };
                    self.fail(number, &exchange, retry, &error);
                }
            },
        }
    }

    fn job(&mut self, number: u64, exchange: &Exchange, route: &Route, body: &[u8]) -> Result<Job, ApiError> {
        if self.active.len() + self.waiting.len() >= self.options.slots + self.options.queue {
            return Err(ApiError::busy(self.waiting.len()));
        }
        let exchange = exchange.clone();
        match route {
            Route::Chat => api::chat(body, &self.models).and_then(|request| self.text(number, exchange, request)),
            Route::Completion => api::completion(body, &self.models).and_then(|request| self.text(number, exchange, request)),
            _ => {
                let request = api::embeddings(body, &self.models)?;
                let model = self.models.embedder.as_ref().ok_or_else(|| ApiError::no_model(None, Vec::new()))?;
                let name = model.names.first().cloned().unwrap_or_default();
                Ok(Job::embeddings(number, exchange, model.graph, request, name, model.context))
            }
        }
    }

    fn text(&self, number: u64, exchange: Exchange, request: TextRequest) -> Result<Job, ApiError> {
        let model = self.models.chat.as_ref().ok_or_else(|| ApiError::no_model(None, Vec::new()))?;
        let kind = match request.style {
            Style::Chat => "chatcmpl",
            Style::Completion => "cmpl",
        };
        let id = format!("{kind}-{:016x}{:04x}", self.random.hash_one(number), self.random.hash_one(exchange.begun) & 0xffff);
        let name = model.names.first().cloned().unwrap_or_default();
        let answer = Answer { style: request.style, id, created: models::now(), model: name, counted: request.include_usage };
        Ok(Job::text(number, exchange, model.graph, request, answer, model.context))
    }

    /// Takes a piece of each answer that is under way, and returns whether there was any.
    fn compute(&mut self) -> bool {
        while self.active.len() < self.options.slots
            && let Some(job) = self.waiting.pop_front()
        {
            self.active.push(job);
        }
        let mut moved = false;
        for mut job in std::mem::take(&mut self.active) {
            let Some(connection) = self.connections.get_mut(&job.connection) else { continue };
            if connection.is_full() {
                // A client that reads slowly holds its place, and nobody else up.
                self.active.push(job);
                continue;
            }
            let (had, progress) = (job.first.is_some(), job.step(&mut self.engine, connection));
            if progress != Progress::Nothing {
                moved = true;
                connection.send();
            }
            if let Some(first) = job.first.filter(|_| !had) {
                self.metrics.first_token(first);
            }
            match progress {
                Progress::Complete(status) => self.tell(&job, status),
                Progress::Nothing | Progress::Piece => self.active.push(job),
            }
        }
        moved
    }

    /// Forgets connections that are over, and what was computed for them.
    fn forget(&mut self) {
        let now = Instant::now();
        self.connections.retain(|_, connection| !connection.is_over(now));
        let here = |job: &Job| self.connections.contains_key(&job.connection);
        if self.active.iter().all(here) && self.waiting.iter().all(here) {
            return;
        }
        let (active, left): (Vec<Job>, Vec<Job>) = std::mem::take(&mut self.active).into_iter().partition(here);
        let (waiting, also_left): (VecDeque<Job>, Vec<Job>) = {
            let (stay, left): (Vec<Job>, Vec<Job>) = std::mem::take(&mut self.waiting).into_iter().partition(here);
            (stay.into(), left)
        };
        (self.active, self.waiting) = (active, waiting);
        for mut job in left.into_iter().chain(also_left) {
            job.end(&mut self.engine);
            self.tell(&job, LEFT);
        }
    }

    fn answer(&mut self, number: u64, exchange: &Exchange, status: u16, kind: &str, headers: &str, body: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.answer(status, kind, headers, body);
        }
        self.count(exchange, status, json!({}));
    }

    fn fail(&mut self, number: u64, exchange: &Exchange, headers: &str, error: &ApiError) {
        self.answer(number, exchange, error.status, JSON, headers, error.body().to_string().as_bytes());
    }

    fn tell(&mut self, job: &Job, status: u16) {
        self.metrics.tokens(job.usage);
        let tokens = json!({"input_tokens": job.usage.input, "output_tokens": job.usage.output, "first_token": job.first.map(|it| it.as_secs_f64())});
        self.count(&job.exchange, status, tokens);
    }

    fn count(&mut self, exchange: &Exchange, status: u16, mut more: Value) {
        self.metrics.request(exchange.endpoint, status);
        if self.options.log {
            more["time"] = models::now().into();
            more["method"] = exchange.method.as_str().into();
            more["endpoint"] = exchange.endpoint.into();
            more["status"] = status.into();
            more["seconds"] = exchange.begun.elapsed().as_secs_f64().into();
            println!("{more}");
        }
    }
}

#[cfg(test)]
mod tests;
