// SPDX-License-Identifier: Apache-2.0
//! The fields of a request. A field that is null counts as one that is absent.

use super::ApiError;
use serde_json::{Map, Value};

/// The fields of an object.
pub struct Fields {
    object: Map<String, Value>,
    /// The name of the object, if it is itself a field.
    prefix: &'static str,
}

impl Fields {
    /// Those of a request's body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(object)) => Ok(Self { object, prefix: "" }),
            Ok(_) => Err(ApiError::new(400, "The body is JSON, but no object")),
            Err(error) => Err(ApiError::new(400, format!("The body is no valid JSON: {error}"))),
        }
    }

    /// Those of an object that is a field.
    pub fn of(object: &Map<String, Value>, prefix: &'static str) -> Self {
        Self { object: object.clone(), prefix }
    }

    /// The value of a field.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn wrong<T>(&self, name: &str, why: &str) -> Result<T, ApiError> {
        let separator = if self.prefix.is_empty() { "" } else { "." };
        Err(ApiError::field(&format!("{}{separator}{name}", self.prefix), why))
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.wrong(name, "it is no text"),
        }
    }

    /// A text, or several.
    pub fn texts(&self, name: &str, most: usize) -> Result<Option<Vec<String>>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(vec![text.clone()])),
            Some(Value::Array(several)) => {
                if several.is_empty() || several.len() > most {
                    return self.wrong(name, &format!("it has {} texts: at least 1 and at most {most} are taken", several.len()));
                }
                let texts = several.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
                texts.map_or_else(|| self.wrong(name, "one of the texts is none"), |texts| Ok(Some(texts)))
            }
            Some(_) => self.wrong(name, "it is neither a text nor an array of texts"),
        }
    }

    /// True or false.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => self.wrong(name, "it is neither true nor false"),
        }
    }

    /// A number in a range.
    pub fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<Value>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(value.clone())),
            Some(_) | None => self.wrong(name, &format!("it is no number from {least} to {most}")),
        }
    }

    /// A whole number in a range.
    pub fn whole(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            Some(_) | None if least == most => self.wrong(name, &format!("it can only be {least}")),
            Some(_) | None => self.wrong(name, &format!("it is no whole number from {least} to {most}")),
        }
    }

    /// A whole number, of which the engine takes the lowest 32 bits.
    pub fn seed(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_i64().map_or_else(|| self.wrong(name, "it is no whole number"), |seed| Ok(Some(seed)))
    }

    /// An object.
    pub fn object(&self, name: &str) -> Result<Option<&Map<String, Value>>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(_) => self.wrong(name, "it is no object"),
        }
    }

    /// Refuses a field that says anything.
    pub fn must_be_empty(&self, name: &str, why: &str) -> Result<(), ApiError> {
        match self.get(name) {
            None => Ok(()),
            Some(Value::Array(none)) if none.is_empty() => Ok(()),
            Some(Value::String(none)) if none.is_empty() => Ok(()),
            Some(_) => self.wrong(name, why),
        }
    }
}
