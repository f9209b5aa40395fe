// SPDX-License-Identifier: Apache-2.0
//! The objects that OpenAI's interface answers with.

use super::Style;
use crate::engine::Usage;
use serde_json::{Value, json};

/// What all parts of one answer have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Which endpoint was asked.
    pub style: Style,
    /// The name of this answer.
    pub id: String,
    /// When it was begun, in seconds since 1970.
    pub created: u64,
    /// The name of the model.
    pub model: String,
    /// Whether each piece says that the numbers of tokens will come.
    pub counted: bool,
}

/// Why an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It is complete, or at a text at which it should stop.
    Stop,
    /// It has as many tokens as were asked for, or as fit.
    Length,
}

impl Finish {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

impl Answer {
    /// A whole answer.
    pub fn whole(&self, text: &str, finish: Finish, usage: Usage) -> Value {
        let (object, mut choice) = match self.style {
            Style::Chat => ("chat.completion", json!({"message": {"role": "assistant", "content": text, "refusal": null}})),
            Style::Completion => ("text_completion", json!({"text": text})),
        };
        choice["index"] = json!(0);
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = json!(finish.name());
        let mut whole = self.with_choices(object, json!([choice]));
        whole["usage"] = tokens(usage);
        whole
    }

    /// What comes before the first piece: who speaks. Only chats have it.
    pub fn opening(&self) -> Option<Value> {
        (self.style == Style::Chat).then(|| self.chunk(json!({"delta": {"role": "assistant", "content": ""}}), None))
    }

    /// A piece.
    pub fn piece(&self, text: &str) -> Value {
        let choice = match self.style {
            Style::Chat => json!({"delta": {"content": text}}),
            Style::Completion => json!({"text": text}),
        };
        self.chunk(choice, None)
    }

    /// What comes after the last piece.
    pub fn closing(&self, finish: Finish) -> Value {
        let choice = match self.style {
            Style::Chat => json!({"delta": {}}),
            Style::Completion => json!({"text": ""}),
        };
        self.chunk(choice, Some(finish))
    }

    /// The numbers of tokens, at the very end.
    pub fn usage(&self, usage: Usage) -> Value {
        let mut last = self.with_choices(self.object(), json!([]));
        last["usage"] = tokens(usage);
        last
    }

    fn object(&self) -> &'static str {
        match self.style {
            Style::Chat => "chat.completion.chunk",
            Style::Completion => "text_completion",
        }
    }

    fn chunk(&self, mut choice: Value, finish: Option<Finish>) -> Value {
        choice["index"] = json!(0);
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = json!(finish.map(Finish::name));
        let mut chunk = self.with_choices(self.object(), json!([choice]));
        if self.counted {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn with_choices(&self, object: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "system_fingerprint": null, "choices": choices})
    }
}

/// The numbers of tokens.
fn tokens(usage: Usage) -> Value {
    json!({"prompt_tokens": usage.input, "completion_tokens": usage.output, "total_tokens": usage.input + usage.output})
}

/// Embeddings, in the order of their texts.
pub fn embeddings(model: &str, embeddings: Vec<Value>, tokens: u64) -> Value {
    let data: Vec<Value> = embeddings
        .into_iter()
        .enumerate()
        .map(|(index, embedding)| json!({"object": "embedding", "index": index, "embedding": embedding}))
        .collect();
    json!({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
}

/// Numbers as base64 of their bytes, 32 bits each, which OpenAI's own client asks for.
pub fn base64(numbers: &[f64]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| (*number as f32).to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let group = three.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// The list of models.
pub fn models(names: &[&str], since: u64) -> Value {
    let data: Vec<Value> = names.iter().map(|name| model(name, since)).collect();
    json!({"object": "list", "data": data})
}

/// One model.
pub fn model(name: &str, since: u64) -> Value {
    json!({"id": name, "object": "model", "created": since, "owned_by": "local"})
}
