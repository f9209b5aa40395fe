// SPDX-License-Identifier: Apache-2.0
//! The metadata of a model and of a computation: JSON whose keys are those of WasmEdge's plugin.
//!
//! Unknown keys are ignored, because the plugin reads far more than anyone sends. A known key with
//! a wrong value is refused, because its sender expects an effect.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The longest metadata, in bytes.
const MAX_LENGTH: usize = 1 << 20;

/// How a model is loaded. `None` leaves it to the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadOptions {
    /// The length of the context, in tokens.
    pub ctx_size: Option<u32>,
    /// The most tokens of a prompt that are submitted at a time.
    pub batch_size: Option<u32>,
    /// The most tokens that are computed at a time.
    pub ubatch_size: Option<u32>,
    /// The number of threads that compute.
    pub threads: Option<u16>,
    /// The layers that a graphics processor computes.
    pub n_gpu_layers: Option<u32>,
    /// The graphics processor for what is not split.
    pub main_gpu: Option<u16>,
    /// How many prompts are computed at a time.
    pub parallel: Option<u16>,
    /// Whether the file is mapped, and not read.
    pub use_mmap: Option<bool>,
    /// Whether it computes embeddings instead of text.
    pub embedding: bool,
}

/// Metadata that was given so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    /// How the model is loaded.
    pub load: LoadOptions,
    /// What a request for a completion says beside the prompt, in the words of llama-server.
    pub completion: Map<String, Value>,
    /// Whether a module does not wait for a piece that has not come.
    pub is_polled: bool,
}

impl Metadata {
    /// Adds metadata, which overrides what was given before.
    ///
    /// # Errors
    /// What is wrong with it. Nothing is changed then.
    pub fn add(&mut self, text: &[u8]) -> Result<(), String> {
        if text.len() > MAX_LENGTH {
            return Err(format!("metadata of {} bytes: at most {MAX_LENGTH} are read", text.len()));
        }
        // Some senders count the zero byte at the end of a string of C.
        let text = text.strip_suffix(&[0]).unwrap_or(text);
        let given: Map<String, Value> = serde_json::from_slice(text).map_err(|error| format!("the metadata is no JSON object: {error}"))?;
        let mut new = self.clone();
        for (key, value) in given.iter().filter(|(_, value)| !value.is_null()) {
            new.set(key, value).map_err(|expected| format!("the metadata has {key}: {value}, which is not {expected}"))?;
        }
        *self = new;
        Ok(())
    }

    /// Sets one key; the error is what its value should be.
    fn set(&mut self, key: &str, value: &Value) -> Result<(), &'static str> {
        let load = &mut self.load;
        match key {
            // Zero is llama.cpp's word for leaving it to the model.
            "ctx-size" => load.ctx_size = Some(whole(value, 0, 1 << 24)?).filter(|size| *size > 0),
            "batch-size" => load.batch_size = Some(whole(value, 1, 1 << 20)?),
            "ubatch-size" => load.ubatch_size = Some(whole(value, 1, 1 << 20)?),
            "threads" => load.threads = Some(whole(value, 1, 1024)? as u16),
            // Minus one stands for all.
            "n-gpu-layers" if value.as_i64() == Some(-1) => load.n_gpu_layers = Some(u32::MAX >> 1),
            "n-gpu-layers" => load.n_gpu_layers = Some(whole(value, 0, u32::MAX >> 1)?),
            "main-gpu" => load.main_gpu = Some(whole(value, 0, 1024)? as u16),
            // The plugin's key, and ours.
            "n-parallel" | "parallel" => load.parallel = Some(whole(value, 1, 256)? as u16),
            "use-mmap" => load.use_mmap = Some(flag(value)?),
            "embedding" => load.embedding = flag(value)?,
            "mmproj" | "image" if value != "" => return Err("supported yet: models read text only"),
            "n-predict" => {
                // LlamaEdge sends the largest i32 where a client has set no limit.
                let most = value.as_i64().ok_or("a number of tokens, or -1 for all")?;
                self.put("n_predict", json!(most.clamp(-1, i32::MAX.into())));
            }
            "seed" => self.put("seed", json!(value.as_i64().map(|seed| seed as u32).ok_or("a whole number")?)),
            "top-k" => self.put("top_k", json!(value.as_i64().ok_or("a whole number")?)),
            "temp" => self.number("temperature", value)?,
            "top-p" => self.number("top_p", value)?,
            "min-p" => self.number("min_p", value)?,
            "repeat-penalty" => self.number("repeat_penalty", value)?,
            "presence-penalty" => self.number("presence_penalty", value)?,
            "frequency-penalty" => self.number("frequency_penalty", value)?,
            "grammar" => self.put("grammar", json!(text(value)?)),
            // LlamaEdge and the plugin write it differently, and both as text.
            "json-schema" | "json_schema" => {
                let schema = match value {
                    Value::String(text) if text.is_empty() => return Ok(()),
                    Value::String(text) => serde_json::from_str(text).map_err(|_| "a JSON schema")?,
                    schema => schema.clone(),
                };
                self.put("json_schema", Some(schema).filter(Value::is_object).ok_or("a JSON schema")?);
            }
            "reverse-prompt" => self.put("stop", stops(value)?),
            // Of our own: a module with one thread serves others while the engine reads a prompt.
            "non-blocking" => self.is_polled = flag(value)?,
            "ignore-eos" => self.put("ignore_eos", json!(flag(value)?)),
            "enable-log" | "enable-debug-log" | "stream-stdout" => drop(flag(value)?),
            _ => {}
        }
        Ok(())
    }

    fn put(&mut self, key: &str, value: Value) {
        self.completion.insert(key.into(), value);
    }

    fn number(&mut self, key: &str, value: &Value) -> Result<(), &'static str> {
        self.put(key, json!(value.as_f64().filter(|number| (-1e6..=1e6).contains(number)).ok_or("a number of that kind")?));
        Ok(())
    }
}

fn whole(value: &Value, least: u32, most: u32) -> Result<u32, &'static str> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.filter(|number| (least..=most).contains(number)).ok_or("a whole number in its range")
}

fn flag(value: &Value) -> Result<bool, &'static str> {
    value.as_bool().ok_or("true or false")
}

fn text(value: &Value) -> Result<&str, &'static str> {
    value.as_str().ok_or("a text")
}

/// One text at which to stop, or several.
fn stops(value: &Value) -> Result<Value, &'static str> {
    const WRONG: &str = "a text at which to stop, or several";
    let stops = match value {
        Value::Array(several) => several.iter().map(|one| one.as_str().ok_or(WRONG)).collect::<Result<Vec<_>, _>>()?,
        one => vec![one.as_str().ok_or(WRONG)?],
    };
    Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> Result<Metadata, String> {
        let mut metadata = Metadata::default();
        metadata.add(text.as_bytes()).map(|()| metadata)
    }

    #[test]
    fn keys_of_the_plugin_become_options_and_words_of_the_server() {
        let metadata =
            of(r#"{"ctx-size":4096,"n-gpu-layers":-1,"embedding":false,"temp":0.5,"top-p":1,"n-predict":-2,"reverse-prompt":"<|im_end|>",
            "json_schema":"{\"type\":\"object\"}","seed":-1,"never-heard-of":[1],"grammar":null}"#)
            .unwrap();
        assert_eq!(metadata.load, LoadOptions { ctx_size: Some(4096), n_gpu_layers: Some(i32::MAX as u32), ..LoadOptions::default() });
        let expected = json!({"temperature": 0.5, "top_p": 1.0, "n_predict": -1, "stop": ["<|im_end|>"], "json_schema": {"type": "object"}, "seed": u32::MAX});
        assert_eq!(Value::Object(metadata.completion), expected);
    }

    #[test]
    fn numbers_that_stand_for_no_limit_are_understood() {
        let metadata = of(r#"{"n-predict":2147483647,"ctx-size":0,"n-parallel":2}"#).unwrap();
        assert_eq!((metadata.load.ctx_size, metadata.load.parallel), (None, Some(2)));
        assert_eq!(metadata.completion["n_predict"], i32::MAX);
        assert_eq!(of(r#"{"n-predict":9223372036854775807}"#).unwrap().completion["n_predict"], i32::MAX);
    }

    #[test]
    fn a_schema_keeps_the_order_of_its_properties() {
        let schema = r#"{"properties":{"country":{"type":"string"},"capital":{"type":"string"}},"type":"object"}"#;
        for value in [schema.to_owned(), json!(schema).to_string()] {
            let metadata = of(&format!("{{\"json-schema\":{value}}}")).unwrap();
            assert_eq!(metadata.completion["json_schema"].to_string(), schema);
        }
    }

    #[test]
    fn later_metadata_overrides_and_adds() {
        let mut metadata = of(r#"{"temp":0.5,"ctx-size":512}"#).unwrap();
        metadata.add(b"{\"temp\":0.25,\"top-p\":0.5}\0").unwrap();
        assert_eq!(Value::Object(metadata.completion.clone()), json!({"temperature": 0.25, "top_p": 0.5}));
        assert_eq!(metadata.load.ctx_size, Some(512));
    }

    #[test]
    fn wrong_values_are_refused_by_their_key_and_change_nothing() {
        for text in [
            r#"{"ctx-size":-1}"#,
            r#"{"ctx-size":"4096"}"#,
            r#"{"threads":0}"#,
            r#"{"temp":"hot"}"#,
            r#"{"embedding":1}"#,
            r#"{"n-predict":1.5}"#,
            r#"{"reverse-prompt":[1]}"#,
            r#"{"json-schema":"{"}"#,
            r#"{"mmproj":"eyes.gguf"}"#,
        ] {
            let key = text.split('"').nth(1).unwrap();
            let mut metadata = of(r#"{"top-p":0.5}"#).unwrap();
            let before = metadata.clone();
            let error = metadata.add(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(&format!("the metadata has {key}: ")), "{error}");
            assert_eq!(metadata, before);
        }
        for text in ["", "[]", "{", "\"temp\"", "{}{}"] {
            assert!(of(text).unwrap_err().starts_with("the metadata is no JSON object"), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_metadata_or_an_error(text in proptest::collection::vec(any::<u8>(), 0..200), key in "[a-z_-]{1,14}", number in any::<f64>()) {
            let _either = Metadata::default().add(&text);
            let _either = Metadata::default().add(json!({key: number}).to_string().as_bytes());
        }
    }
}
