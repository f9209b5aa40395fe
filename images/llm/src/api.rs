// SPDX-License-Identifier: Apache-2.0
//! OpenAI's interface: what requests ask for, and what is wrong with them.
//!
//! Fields that we do not know are ignored, as programs send more than a server needs. A known field
//! with a value that has no effect here is refused by its name, because its sender expects one.

pub mod answers;
mod error;
mod fields;

pub use error::ApiError;

use crate::models::{Chat, Embedder, Models};
use fields::Fields;
use serde_json::{Map, Value, json};

/// The most texts of one request for embeddings, as at OpenAI.
const MAX_TEXTS: usize = 2048;
/// The most texts at which an answer may stop, as at OpenAI.
const MAX_STOPS: usize = 4;

/// Which of the endpoints that write text was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

/// A request for text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextRequest {
    /// Which endpoint was asked.
    pub style: Style,
    /// The text that the model continues.
    pub prompt: String,
    /// The field from which the prompt comes, for errors.
    pub from: &'static str,
    /// What the engine is told, apart from how many tokens there may be.
    pub metadata: Map<String, Value>,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Whether the pieces end with the numbers of tokens.
    pub include_usage: bool,
    /// The most tokens of the answer.
    pub most: Option<u64>,
}

/// A request for embeddings.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingRequest {
    /// The texts.
    pub texts: Vec<String>,
    /// Whether the numbers come as base64 of their bytes, and not as numbers.
    pub base64: bool,
}

/// Reads a request for `/v1/chat/completions`.
///
/// # Errors
/// What is wrong with it.
pub fn chat(body: &[u8], models: &Models) -> Result<TextRequest, ApiError> {
    let fields = Fields::parse(body)?;
    let model = chat_model(&fields, models)?;
    let messages = messages(&fields)?;
    for refused in ["tools", "functions"] {
        fields.must_be_empty(refused, "this server calls no tools")?;
    }
    if fields.flag("logprobs")? == Some(true) {
        return Err(ApiError::field("logprobs", "this server tells no probabilities"));
    }
    let prompt = model.template.render(&messages).map_err(|why| ApiError::field("messages", &why))?;
    let most = match fields.whole("max_completion_tokens", 1, 1 << 24)? {
        Some(most) => Some(most),
        None => fields.whole("max_tokens", 1, 1 << 24)?,
    };
    let mut request = text(&fields, model, Style::Chat, prompt, most)?;
    request.from = "messages";
    Ok(request)
}

/// Reads a request for `/v1/completions`.
///
/// # Errors
/// What is wrong with it.
pub fn completion(body: &[u8], models: &Models) -> Result<TextRequest, ApiError> {
    let fields = Fields::parse(body)?;
    let model = chat_model(&fields, models)?;
    let prompt = match fields.texts("prompt", 1)? {
        Some(prompts) => prompts.into_iter().next().unwrap_or_default(),
        None => return Err(ApiError::field("prompt", "there is none")),
    };
    if fields.flag("echo")? == Some(true) {
        return Err(ApiError::field("echo", "the answer does not repeat the prompt"));
    }
    fields.must_be_empty("suffix", "text is continued, and not filled in")?;
    fields.whole("best_of", 1, 1)?;
    fields.whole("logprobs", 0, 0)?;
    let most = fields.whole("max_tokens", 1, 1 << 24)?;
    text(&fields, model, Style::Completion, prompt, most)
}

/// Reads a request for `/v1/embeddings`.
///
/// # Errors
/// What is wrong with it.
pub fn embeddings(body: &[u8], models: &Models) -> Result<EmbeddingRequest, ApiError> {
    let fields = Fields::parse(body)?;
    embedder(&fields, models)?;
    let Some(texts) = fields.texts("input", MAX_TEXTS)? else { return Err(ApiError::field("input", "there is none")) };
    if texts.iter().any(String::is_empty) {
        return Err(ApiError::field("input", "an empty text has no embedding"));
    }
    if fields.whole("dimensions", 1, 1 << 20)?.is_some() {
        return Err(ApiError::field("dimensions", "embeddings have as many dimensions as the model gives them"));
    }
    let base64 = match fields.text("encoding_format")? {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "it is float or base64")),
    };
    Ok(EmbeddingRequest { texts, base64 })
}

/// The model that writes text, if the request means it.
fn chat_model<'a>(fields: &Fields, models: &'a Models) -> Result<&'a Chat, ApiError> {
    let asked = fields.text("model")?;
    match &models.chat {
        Some(chat) if asked.is_none_or(|name| chat.names.iter().any(|known| known == name)) => Ok(chat),
        Some(_) | None => Err(ApiError::no_model(asked, models.names())),
    }
}

fn embedder<'a>(fields: &Fields, models: &'a Models) -> Result<&'a Embedder, ApiError> {
    let asked = fields.text("model")?;
    match &models.embedder {
        Some(embedder) if asked.is_none_or(|name| embedder.names.iter().any(|known| known == name)) => Ok(embedder),
        None if asked.is_none_or(|name| models.chat.iter().any(|chat| chat.names.iter().any(|known| known == name))) => {
            Err(ApiError::field("model", "no model for embeddings is loaded: WASMEDGE_WASINN_PRELOAD names none with the alias embedding"))
        }
        Some(_) | None => Err(ApiError::no_model(asked, models.names())),
    }
}

/// What requests for text have in common.
fn text(fields: &Fields, model: &Chat, style: Style, prompt: String, most: Option<u64>) -> Result<TextRequest, ApiError> {
    fields.whole("n", 1, 1)?;
    let most = most.or(model.most);
    let stream = fields.flag("stream")?.unwrap_or(false);
    let include_usage = match fields.object("stream_options")? {
        Some(_) if !stream => return Err(ApiError::field("stream_options", "it is for requests with stream")),
        Some(options) => Fields::of(options, "stream_options").flag("include_usage")?.unwrap_or(false),
        None => false,
    };
    let mut metadata = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            metadata.insert(key.to_owned(), value);
        }
    };
    // Of Magnetar's own: others are served while a piece is computed.
    put("non-blocking", Some(json!(true)));
    put("temp", fields.number("temperature", 0.0, 2.0)?);
    put("top-p", fields.number("top_p", 0.0, 1.0)?);
    put("presence-penalty", fields.number("presence_penalty", -2.0, 2.0)?);
    put("frequency-penalty", fields.number("frequency_penalty", -2.0, 2.0)?);
    // Others than OpenAI's, which many servers take.
    put("repeat-penalty", fields.number("repeat_penalty", 0.0, 10.0)?);
    put("top-k", fields.whole("top_k", 0, 1 << 20)?.map(Value::from));
    put("seed", fields.seed("seed")?.map(Value::from));
    let mut stops = fields.texts("stop", MAX_STOPS)?.unwrap_or_default();
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::field("stop", "an empty text is everywhere"));
    }
    if style == Style::Chat {
        stops.extend(model.template.stop().map(str::to_owned));
    }
    put("reverse-prompt", (!stops.is_empty()).then(|| stops.into()));
    put("json-schema", schema(fields)?.map(Value::from));
    Ok(TextRequest { style, prompt, from: "prompt", metadata, stream, include_usage, most })
}

/// The schema to which the answer must keep, as text.
fn schema(fields: &Fields) -> Result<Option<String>, ApiError> {
    const NAME: &str = "response_format";
    let Some(format) = fields.object(NAME)? else { return Ok(None) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(json!({"type": "object"}).to_string())),
        Some("json_schema") => match format.get("json_schema").and_then(|schema| schema.get("schema")) {
            Some(schema @ Value::Object(_)) => Ok(Some(schema.to_string())),
            Some(_) | None => Err(ApiError::field(NAME, "json_schema.schema is no schema")),
        },
        Some(_) | None => Err(ApiError::field(NAME, "its type is text, json_object or json_schema")),
    }
}

/// The messages, as templates read them: each with a role and one text.
fn messages(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    const NAME: &str = "messages";
    let messages = match fields.get(NAME) {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        Some(Value::Array(_)) | None => return Err(ApiError::field(NAME, "there is none")),
        Some(_) => return Err(ApiError::field(NAME, "it is no array")),
    };
    messages.iter().enumerate().map(|(index, message)| self::message(index, message)).collect()
}

fn message(index: usize, message: &Value) -> Result<Value, ApiError> {
    let place = |field: &str| format!("messages[{index}]{field}");
    let wrong = |field: &str, why: &str| Err(ApiError::field(&place(field), why));
    let Value::Object(message) = message else { return wrong("", "it is no object") };
    let role = match message.get("role").and_then(Value::as_str) {
        // The name that system messages have for newer models of OpenAI.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        Some(_) | None => return wrong(".role", "it is system, user, assistant or tool"),
    };
    let content = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let mut texts = String::new();
            for part in parts {
                match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
                    (Some("text"), Some(text)) => texts.push_str(text),
                    _ => return wrong(".content", "a part of it is no text: this model reads text only"),
                }
            }
            texts
        }
        None | Some(Value::Null) if role == "assistant" => String::new(),
        Some(_) | None => return wrong(".content", "it is neither a text nor an array of parts"),
    };
    let mut plain = json!({"role": role, "content": content});
    for extra in ["name", "tool_call_id"] {
        if let Some(text @ Value::String(_)) = message.get(extra) {
            plain[extra] = text.clone();
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests;
