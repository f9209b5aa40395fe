// SPDX-License-Identifier: Apache-2.0
//! A request that takes the engine's time, and is answered piece by piece.

use crate::api::answers::{self, Answer, Finish};
use crate::api::{ApiError, EmbeddingRequest, TextRequest};
use crate::connection::Connection;
use crate::engine::{Context, Engine, Failure, Graph, Usage};
use crate::routes::Exchange;
use crate::unicode::Unfinished;
use serde_json::{Value, json};
use std::time::Duration;

/// A prompt must leave so many tokens for its answer.
const LEAST: u64 = 4;

/// The job.
pub struct Job {
    /// The connection of its client.
    pub connection: u64,
    /// What was asked.
    pub exchange: Exchange,
    /// How many tokens it took.
    pub usage: Usage,
    /// How long the client has waited for the first piece.
    pub first: Option<Duration>,
    work: Work,
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The engine is computing.
    Nothing,
    /// A piece was written.
    Piece,
    /// The answer is complete, with this status.
    Complete(u16),
}

enum Work {
    Text(Text),
    Embeddings(Embeddings),
}

/// Text that is written.
pub struct Text {
    /// The model that writes.
    pub graph: Graph,
    /// What was asked for.
    pub request: TextRequest,
    /// What the answer looks like.
    pub answer: Answer,
    /// The length of the model's context, for errors.
    pub limit: Option<u64>,
    context: Option<Context>,
    unfinished: Unfinished,
    text: String,
}

/// Embeddings that are computed.
pub struct Embeddings {
    /// The model that computes.
    pub graph: Graph,
    /// What was asked for.
    pub request: EmbeddingRequest,
    /// The name of the model.
    pub model: String,
    /// The length of the model's context.
    pub limit: Option<u64>,
    done: Vec<Value>,
}

impl Job {
    /// A job for text. Nothing is computed yet.
    pub fn text(connection: u64, exchange: Exchange, graph: Graph, request: TextRequest, answer: Answer, limit: Option<u64>) -> Self {
        let text = Text { graph, request, answer, limit, context: None, unfinished: Unfinished::default(), text: String::new() };
        Self { connection, exchange, usage: Usage::default(), first: None, work: Work::Text(text) }
    }

    /// A job for embeddings. Nothing is computed yet.
    pub fn embeddings(
        connection: u64,
        exchange: Exchange,
        graph: Graph,
        request: EmbeddingRequest,
        model: String,
        limit: Option<u64>,
    ) -> Self {
        let embeddings = Embeddings { graph, request, model, limit, done: Vec::new() };
        Self { connection, exchange, usage: Usage::default(), first: None, work: Work::Embeddings(embeddings) }
    }

    /// Writes the next piece, if it has come.
    pub fn step(&mut self, engine: &mut impl Engine, connection: &mut Connection) -> Progress {
        let stepped = match &mut self.work {
            Work::Text(text) => {
                let stepped = text.step(engine, connection, &mut self.usage);
                if matches!(stepped, Ok(Step::Piece)) {
                    self.first.get_or_insert_with(|| self.exchange.begun.elapsed());
                }
                stepped
            }
            Work::Embeddings(embeddings) => embeddings.step(engine, connection, &mut self.usage),
        };
        let status = match stepped {
            Ok(Step::Nothing) => return Progress::Nothing,
            Ok(Step::Piece) => return Progress::Piece,
            Ok(Step::Last) => 200,
            Err(error) => {
                if connection.is_streaming() {
                    // The status is sent already.
                    connection.event(&error.body());
                    connection.end_events(false);
                } else {
                    connection.answer(error.status, "application/json", "", error.body().to_string().as_bytes());
                }
                error.status
            }
        };
        self.end(engine);
        Progress::Complete(status)
    }

    /// Gives up what is still computed.
    pub fn end(&mut self, engine: &mut impl Engine) {
        if let Work::Text(text) = &mut self.work
            && let Some(context) = text.context.take()
        {
            self.usage = engine.usage(context).unwrap_or(self.usage);
            engine.end(context);
        }
    }
}

enum Step {
    Nothing,
    Piece,
    Last,
}

impl Text {
    fn step(&mut self, engine: &mut impl Engine, connection: &mut Connection, usage: &mut Usage) -> Result<Step, ApiError> {
        let context = match self.context {
            Some(context) => context,
            None => self.begin(engine)?,
        };
        match engine.piece(context) {
            Ok(piece) => {
                let piece = self.unfinished.push(&piece);
                self.take(&piece, connection);
                Ok(Step::Piece)
            }
            Err(Failure::Busy) => Ok(Step::Nothing),
            Err(full @ (Failure::EndOfSequence | Failure::ContextFull)) => {
                *usage = engine.usage(context).unwrap_or_default();
                let rest = self.unfinished.finish();
                if !rest.is_empty() {
                    self.take(&rest, connection);
                }
                let has_all = self.request.most.is_some_and(|most| usage.output >= most);
                let finish = if full == Failure::ContextFull || has_all { Finish::Length } else { Finish::Stop };
                self.finish(finish, *usage, connection);
                Ok(Step::Last)
            }
            Err(Failure::PromptTooLong) => {
                let tokens = engine.usage(context).ok().map(|usage| usage.input).filter(|tokens| *tokens > 0);
                Err(ApiError::too_long(self.request.from, self.limit, tokens))
            }
            Err(failure) => Err(ApiError::engine(failure)),
        }
    }

    /// Begins the computation. All that are under way share the engine's context, and if that is
    /// full, all of them fail. So none may have more than its part.
    fn begin(&mut self, engine: &mut impl Engine) -> Result<Context, ApiError> {
        let begun = engine.begin(self.graph, &self.request.prompt).map_err(ApiError::engine)?;
        let context = *self.context.insert(begun);
        let mut metadata = self.request.metadata.clone();
        if let Some(limit) = self.limit {
            let tokens = engine.usage(context).map_err(ApiError::engine)?.input;
            let left = limit.saturating_sub(tokens);
            if left < LEAST {
                return Err(ApiError::too_long(self.request.from, self.limit, Some(tokens)));
            }
            self.request.most = Some(self.request.most.map_or(left, |most| most.min(left)));
        }
        metadata.insert("n-predict".into(), self.request.most.map_or(json!(-1), Value::from));
        engine.tell(context, &Value::Object(metadata).to_string()).map_err(ApiError::engine)?;
        Ok(context)
    }

    fn take(&mut self, piece: &str, connection: &mut Connection) {
        if !self.request.stream {
            self.text.push_str(piece);
            return;
        }
        self.open(connection);
        if !piece.is_empty() {
            connection.event(&self.answer.piece(piece));
        }
    }

    /// Opens the stream, which is not done before there is a piece: until then it may still become
    /// an error with a status of its own.
    fn open(&self, connection: &mut Connection) {
        if !connection.is_streaming() {
            connection.begin_events();
            if let Some(opening) = self.answer.opening() {
                connection.event(&opening);
            }
        }
    }

    fn finish(&mut self, finish: Finish, usage: Usage, connection: &mut Connection) {
        if !self.request.stream {
            let whole = self.answer.whole(&self.text, finish, usage);
            connection.answer(200, "application/json", "", whole.to_string().as_bytes());
            return;
        }
        self.open(connection);
        connection.event(&self.answer.closing(finish));
        if self.request.include_usage {
            connection.event(&self.answer.usage(usage));
        }
        connection.end_events(true);
    }
}

impl Embeddings {
    fn step(&mut self, engine: &mut impl Engine, connection: &mut Connection, usage: &mut Usage) -> Result<Step, ApiError> {
        if let Some(text) = self.request.texts.get(self.done.len()) {
            let context = engine.begin(self.graph, text).map_err(ApiError::engine)?;
            let embedded = self.embed(engine, context, usage);
            engine.end(context);
            self.done.push(embedded?);
        }
        if self.done.len() < self.request.texts.len() {
            return Ok(Step::Piece);
        }
        let body = answers::embeddings(&self.model, std::mem::take(&mut self.done), usage.input);
        connection.answer(200, "application/json", "", body.to_string().as_bytes());
        Ok(Step::Last)
    }

    fn embed(&self, engine: &mut impl Engine, context: Context, usage: &mut Usage) -> Result<Value, ApiError> {
        let tokens = engine.usage(context).map_err(ApiError::engine)?.input;
        let too_long = || ApiError::too_long("input", self.limit, Some(tokens));
        if self.limit.is_some_and(|limit| tokens > limit) {
            return Err(too_long());
        }
        let output = engine.whole(context).map_err(|failure| match failure {
            Failure::PromptTooLong => too_long(),
            failure => ApiError::engine(failure),
        })?;
        usage.input += tokens;
        let mut output: Value = serde_json::from_slice(&output).unwrap_or_default();
        let embedding = output["embedding"].take();
        let Value::Array(numbers) = &embedding else { return Err(ApiError::engine(Failure::Other(0))) };
        if !self.request.base64 {
            return Ok(embedding);
        }
        let numbers: Vec<f64> = numbers.iter().filter_map(Value::as_f64).collect();
        Ok(answers::base64(&numbers).into())
    }
}
