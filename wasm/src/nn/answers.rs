// SPDX-License-Identifier: Apache-2.0
//! What a llama-server answers, in the terms of the interface: pieces of text, counts of tokens,
//! embeddings, and codes.

use super::http::Answer;
use serde_json::Value;

/// Why a function failed, as the interface numbers it (WasmEdge's plugin).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// An argument has no such value.
    InvalidArgument = 1,
    /// The model is of an encoding that is not GGML.
    InvalidEncoding = 2,
    /// A pointer leads out of the module's memory.
    MissingMemory = 3,
    /// There are too many.
    Busy = 4,
    /// The engine has failed.
    RuntimeError = 5,
    /// The engine cannot do that.
    Unsupported = 6,
    /// It does not fit.
    TooLarge = 7,
    /// No model has that name.
    NotFound = 8,
    /// The text is complete.
    EndOfSequence = 100,
    /// The context is full.
    ContextFull = 101,
    /// The prompt is longer than the context.
    PromptTooLong = 102,
    /// The model cannot be loaded.
    ModelNotFound = 103,
}

/// A result of the interface.
pub type Outcome<T> = Result<T, Code>;

/// How many tokens a computation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub input: u64,
    /// Of the answer.
    pub output: u64,
}

/// A completion that comes in pieces.
pub struct Stream {
    answer: Answer,
    /// Why it has ended.
    ended: Option<Code>,
}

impl Usage {
    /// Takes the counts of an answer that has some.
    pub fn take(&mut self, answer: &Value) {
        self.input = answer["tokens_evaluated"].as_u64().unwrap_or(self.input);
        self.output = answer["tokens_predicted"].as_u64().unwrap_or(self.output);
    }
}

impl Stream {
    /// Of an answer whose head has come.
    pub fn new(answer: Answer) -> Self {
        Self { answer, ended: None }
    }

    /// The next piece that is not empty; or why there is none, with a reason that is not known yet.
    pub fn next(&mut self, usage: &mut Usage) -> Result<Vec<u8>, (Code, Option<String>)> {
        if let Some(code) = self.ended {
            return Err((code, None));
        }
        loop {
            let line = self.answer.line().map_err(|error| self.broken(error.to_string()))?;
            let line = line.ok_or_else(|| self.broken("its answer has no end".into()))?;
            // Server-sent events: other lines have no data.
            let Some(data) = line.strip_prefix(b"data: ") else { continue };
            let event: Value = serde_json::from_slice(data).map_err(|error| self.broken(error.to_string()))?;
            if !event["error"].is_null() {
                let (code, why) = failure(&event["error"]);
                self.ended = Some(code);
                return Err((code, Some(why)));
            }
            usage.take(&event);
            let is_last = event["stop"] == true;
            if is_last {
                self.ended = Some(end(&event));
            }
            match event["content"].as_str() {
                Some(piece) if !piece.is_empty() => return Ok(piece.as_bytes().to_vec()),
                _ if is_last => return Err((end(&event), None)),
                _ => {}
            }
        }
    }

    fn broken(&mut self, why: String) -> (Code, Option<String>) {
        self.ended = Some(Code::RuntimeError);
        (Code::RuntimeError, Some(format!("the engine of the model has broken off: {why}")))
    }
}

/// How a completion has ended: complete, or cut by the end of the context.
pub fn end(last: &Value) -> Code {
    if last["truncated"] == true { Code::ContextFull } else { Code::EndOfSequence }
}

/// What an error of llama-server means.
pub fn failure(error: &Value) -> (Code, String) {
    let code = match error["type"].as_str() {
        Some("exceed_context_size_error") => Code::PromptTooLong,
        Some("invalid_request_error") => Code::InvalidArgument,
        Some("not_supported_error") => Code::Unsupported,
        _ => Code::RuntimeError,
    };
    (code, format!("the engine of the model refuses: {}", error["message"].as_str().unwrap_or("without a reason")))
}

/// The embedding in an answer of llama-server, which is that of one text, pooled.
pub fn embedding_in(answer: &Value) -> Option<Vec<f64>> {
    let embedding = &answer.get(0)?["embedding"];
    let numbers = embedding.get(0).filter(|first| first.is_array()).unwrap_or(embedding);
    numbers.as_array()?.iter().map(Value::as_f64).collect()
}
