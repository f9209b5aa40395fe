// SPDX-License-Identifier: Apache-2.0
//! Errors as OpenAI writes them: `{"error": {"message", "type", "param", "code"}}` and a status.

use crate::engine::Failure;
use serde_json::{Value, json};

/// An error for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The status of the answer.
    pub status: u16,
    /// What is wrong, in words.
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// What programs may look at.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// An error that concerns no field.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// A field that is wrong.
    pub fn field(name: &str, why: &str) -> Self {
        Self { status: 400, message: format!("{name}: {why}"), param: Some(name.into()), code: Some("invalid_value") }
    }

    /// A model that is not here.
    pub fn no_model(asked: Option<&str>, known: Vec<&str>) -> Self {
        let message = format!("The model `{}` does not exist here. There is: {}", asked.unwrap_or_default(), known.join(", "));
        Self { status: 404, message, param: Some("model".into()), code: Some("model_not_found") }
    }

    /// A prompt that does not fit.
    pub fn too_long(field: &str, context: Option<u64>, tokens: Option<u64>) -> Self {
        let limit = context.map_or_else(String::new, |context| format!(": it has {context} tokens"));
        let message = match tokens {
            Some(tokens) => format!("The prompt of {tokens} tokens does not fit into the model's context{limit}"),
            None => format!("The prompt does not fit into the model's context{limit}"),
        };
        Self { status: 400, message, param: Some(field.into()), code: Some("context_length_exceeded") }
    }

    /// Too many others are waiting.
    pub fn busy(waiting: usize) -> Self {
        let message = format!("{waiting} requests are waiting already. Try again later");
        Self { status: 503, message, param: None, code: Some("server_busy") }
    }

    /// What the engine's failure means for a client. What was wrong with a request, the server has
    /// found before; so most of them are nobody's fault but ours.
    pub fn engine(failure: Failure) -> Self {
        match failure {
            // Schemas that the engine cannot follow.
            Failure::InvalidArgument => Self::new(400, format!("The engine refuses the request: {failure}")),
            failure => Self { status: 500, message: format!("{failure}"), param: None, code: Some("engine_failure") },
        }
    }

    /// The object that is sent.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}
