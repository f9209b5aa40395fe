// SPDX-License-Identifier: Apache-2.0
//! Which paths there are, and what is asked of each.

use crate::api::ApiError;
use std::time::Instant;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The chat page.
    Page,
    /// Whether the server is ready.
    Health,
    /// Numbers for Prometheus.
    Metrics,
    /// The list of models.
    Models,
    /// One model, by its name.
    Model(String),
    /// A message that continues a chat.
    Chat,
    /// Text that continues a text.
    Completion,
    /// Embeddings of texts.
    Embeddings,
}

/// A request that is answered, for the log and the numbers.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// The path, without what differs from request to request.
    pub endpoint: &'static str,
    /// The method.
    pub method: String,
    /// When it was complete.
    pub begun: Instant,
}

const MODEL: &str = "/v1/models/";

impl Route {
    /// The route of a path, and its name for the numbers.
    pub fn of(path: &str) -> (Option<Self>, &'static str) {
        match path {
            "/" => (Some(Self::Page), "/"),
            "/health" => (Some(Self::Health), "/health"),
            "/metrics" => (Some(Self::Metrics), "/metrics"),
            "/v1/models" => (Some(Self::Models), "/v1/models"),
            "/v1/chat/completions" => (Some(Self::Chat), "/v1/chat/completions"),
            "/v1/completions" => (Some(Self::Completion), "/v1/completions"),
            "/v1/embeddings" => (Some(Self::Embeddings), "/v1/embeddings"),
            _ => match path.strip_prefix(MODEL) {
                Some(name) => (Some(Self::Model(decoded(name))), "/v1/models"),
                None => (None, "other"),
            },
        }
    }

    /// The methods that it takes.
    pub fn methods(&self) -> &'static str {
        match self {
            Self::Chat | Self::Completion | Self::Embeddings => "POST",
            Self::Page | Self::Health | Self::Metrics | Self::Models | Self::Model(_) => "GET, HEAD",
        }
    }

    /// Refuses a method that it does not take.
    ///
    /// # Errors
    /// What is wrong, with the status 405.
    pub fn check(&self, method: &str) -> Result<(), ApiError> {
        if self.methods().split(", ").any(|known| known == method) {
            return Ok(());
        }
        Err(ApiError::new(405, format!("The method is {method}, and should be {}", self.methods())))
    }
}

/// A name in a path. Letters that are not plain come as a percent sign and two digits.
fn decoded(name: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_may_have_any_letter() {
        let name = |path| match Route::of(path).0 {
            Some(Route::Model(name)) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(name("/v1/models/A%20model%2f1"), "A model/1");
        assert_eq!(name("/v1/models/100%"), "100%");
        assert_eq!(name("/v1/models/%zz%C3%A9"), "%zzé");
    }

    #[test]
    fn methods_are_those_of_the_path() {
        assert!(Route::Chat.check("POST").is_ok() && Route::Health.check("HEAD").is_ok());
        assert_eq!(Route::Chat.check("GET").unwrap_err().message, "The method is GET, and should be POST");
        assert_eq!(Route::of("/v2/chat"), (None, "other"));
    }
}
