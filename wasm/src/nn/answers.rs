// SPDX-License-Identifier: Apache-2.0
//! What a llama-server answers, in the terms of the interface: pieces of text, counts of tokens,
//! embeddings, and codes.

use super::http::{Answer, Awaited};
use serde_json::Value;

/// The longest answer that does not come in pieces, in bytes.
pub const MAX_ANSWER: u64 = 64 << 20;

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
    /// There are too many; or the next piece has not come, and the module does not wait.
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
    state: State,
}

enum State {
    /// The engine reads the prompt.
    Awaited(Awaited),
    /// It answers.
    Answering(Answer),
    /// It has ended, with this code.
    Ended(Code),
}

impl Usage {
    /// Takes the counts of an answer that has some.
    pub fn take(&mut self, answer: &Value) {
        self.input = answer["tokens_evaluated"].as_u64().unwrap_or(self.input);
        self.output = answer["tokens_predicted"].as_u64().unwrap_or(self.output);
    }
}

impl Stream {
    /// Of a request that was sent.
    pub fn new(awaited: Awaited) -> Self {
        Self { state: State::Awaited(awaited) }
    }

    /// The next piece that is not empty; or why there is none, with a reason that is not known yet.
    /// If `wait` is not set, [`Code::Busy`] says that it has not come.
    pub fn next(&mut self, usage: &mut Usage, wait: bool) -> Result<Vec<u8>, (Code, Option<String>)> {
        loop {
            let has_come = match &self.state {
                State::Ended(code) => return Err((*code, None)),
                State::Awaited(awaited) => wait || awaited.has_begun(),
                State::Answering(answer) => wait || answer.has_come(),
            };
            if !has_come {
                return Err((Code::Busy, None));
            }
            // Whatever goes wrong from here on ends it.
            match std::mem::replace(&mut self.state, State::Ended(Code::RuntimeError)) {
                State::Awaited(awaited) => match awaited.answer() {
                    Ok(answer) if answer.status == 200 => self.state = State::Answering(answer),
                    Ok(mut answer) => return Err(self.refused(&error_in(&mut answer))),
                    Err(error) => return Err(broken(&error.to_string())),
                },
                State::Answering(mut answer) => {
                    let event = event_in(&mut answer).map_err(|why| broken(&why))?;
                    self.state = State::Answering(answer);
                    if let Some(piece) = event.map_or(Ok(None), |event| self.take(&event, usage))? {
                        return Ok(piece);
                    }
                }
                State::Ended(code) => return Err((code, None)),
            }
        }
    }

    /// Takes an event. Returns its piece, if it has one.
    fn take(&mut self, event: &Value, usage: &mut Usage) -> Result<Option<Vec<u8>>, (Code, Option<String>)> {
        if !event["error"].is_null() {
            return Err(self.refused(&event["error"]));
        }
        usage.take(event);
        if event["stop"] == true {
            self.state = State::Ended(end(event));
        }
        Ok(event["content"].as_str().filter(|piece| !piece.is_empty()).map(|piece| piece.as_bytes().to_vec()))
    }

    fn refused(&mut self, error: &Value) -> (Code, Option<String>) {
        let (code, why) = failure(error);
        self.state = State::Ended(code);
        (code, Some(why))
    }
}

/// The next event of an answer (server-sent events); `None` for a line without one.
fn event_in(answer: &mut Answer) -> Result<Option<Value>, String> {
    let line = answer.line().map_err(|error| error.to_string())?.ok_or("its answer has no end")?;
    let data = line.strip_prefix(b"data: ").map(serde_json::from_slice);
    data.transpose().map_err(|error| error.to_string())
}

/// The error in an answer that is one.
pub fn error_in(answer: &mut Answer) -> Value {
    let body = answer.read(MAX_ANSWER).ok().and_then(|body| serde_json::from_slice::<Value>(&body).ok());
    body.map(|mut body| body["error"].take()).unwrap_or_default()
}

fn broken(why: &str) -> (Code, Option<String>) {
    (Code::RuntimeError, Some(format!("the engine of the model has broken off: {why}")))
}

/// How a completion has ended: complete, or cut by the end of the context.
pub fn end(last: &Value) -> Code {
    if last["truncated"] == true { Code::ContextFull } else { Code::EndOfSequence }
}

/// What an error of llama-server means.
pub fn failure(error: &Value) -> (Code, String) {
    let message = error["message"].as_str().unwrap_or("without a reason");
    let code = match error["type"].as_str() {
        Some("exceed_context_size_error") => Code::PromptTooLong,
        // An embedding is computed at once, so that its text must fit into a batch.
        _ if message.contains("too large to process") => Code::PromptTooLong,
        Some("invalid_request_error") => Code::InvalidArgument,
        Some("not_supported_error") => Code::Unsupported,
        _ => Code::RuntimeError,
    };
    (code, format!("the engine of the model refuses: {message}"))
}

/// The embedding in an answer of llama-server, which is that of one text, pooled. Some of its
/// versions answer with a list of one.
pub fn embedding_in(answer: &Value) -> Option<Vec<f64>> {
    let embedding = answer.get(0)?["embedding"].as_array()?;
    let numbers = match &embedding[..] {
        [Value::Array(one)] => one,
        // Of each token, and none of them is the text's.
        [Value::Array(_), ..] => return None,
        _ => embedding,
    };
    numbers.iter().map(Value::as_f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_embedding_is_that_of_the_text() {
        let found = |embedding: Value| embedding_in(&json!([{"index": 0, "embedding": embedding}]));
        assert_eq!(found(json!([0.5, -1])), Some(vec![0.5, -1.0]));
        assert_eq!(found(json!([[0.5, -1]])), Some(vec![0.5, -1.0]));
        assert_eq!(found(json!([[0.5, -1], [1, 1]])), None);
        assert_eq!(found(json!("none")), None);
    }
}
