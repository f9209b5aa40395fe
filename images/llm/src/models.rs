// SPDX-License-Identifier: Apache-2.0
//! The models that the server has loaded.

use crate::engine::{Engine, Graph};
use crate::gguf::Header;
use crate::options::{Named, Options};
use crate::template::Template;
use serde_json::json;
use std::fs::File;
use std::time::{SystemTime, UNIX_EPOCH};

/// The most context that a model gets without being asked for it, in tokens. Models that were
/// trained for a hundred thousand would take many gigabytes.
const CONTEXT: u64 = 16384;

/// The models.
pub struct Models {
    /// The one that writes text.
    pub chat: Option<Chat>,
    /// The one for embeddings.
    pub embedder: Option<Embedder>,
    /// When they were loaded, in seconds since 1970.
    pub since: u64,
}

/// A model that writes text.
pub struct Chat {
    /// The loaded model.
    pub graph: Graph,
    /// Its names. The first is the one that clients are told.
    pub names: Vec<String>,
    /// How messages become a prompt.
    pub template: Template,
    /// The most tokens of a prompt and its answer, which are the part of one slot.
    pub context: Option<u64>,
    /// The most tokens of an answer whose request says nothing.
    pub most: Option<u64>,
}

/// A model for embeddings.
pub struct Embedder {
    /// The loaded model.
    pub graph: Graph,
    /// Its names. The first is the one that clients are told.
    pub names: Vec<String>,
    /// The most tokens of a text.
    pub context: Option<u64>,
}

impl Models {
    /// Loads what the options name, which takes as long as it takes.
    ///
    /// # Errors
    /// Why a model is not loaded.
    pub fn load(engine: &mut impl Engine, options: &Options) -> Result<Self, String> {
        if options.chat.is_none() && options.embedder.is_none() {
            return Err("no model is named: set WASMEDGE_WASINN_PRELOAD=default:GGML:AUTO:/path/to/model.gguf".into());
        }
        let chat = options.chat.as_ref().map(|named| Chat::load(engine, named, options)).transpose()?;
        let embedder = options.embedder.as_ref().map(|named| Embedder::load(engine, named, options)).transpose()?;
        Ok(Self { chat, embedder, since: now() })
    }

    /// The names that clients are told.
    pub fn names(&self) -> Vec<&str> {
        let chat = self.chat.iter().filter_map(|chat| chat.names.first());
        chat.chain(self.embedder.iter().filter_map(|embedder| embedder.names.first())).map(String::as_str).collect()
    }

    /// Whether any of them has that name.
    pub fn has(&self, name: &str) -> bool {
        let chat = self.chat.iter().flat_map(|chat| &chat.names);
        chat.chain(self.embedder.iter().flat_map(|embedder| &embedder.names)).any(|known| known == name)
    }
}

impl Chat {
    fn load(engine: &mut impl Engine, named: &Named, options: &Options) -> Result<Self, String> {
        let header = header(named);
        let context = context(named, options, &header);
        let metadata = json!({"ctx-size": context, "parallel": options.slots});
        let graph = load(engine, named, &metadata.to_string())?;
        let (template, wrong) = Template::of(&header);
        if let Some(wrong) = wrong {
            eprintln!("the chat template of {} cannot be used, and is replaced by chatml: {wrong}", named.path);
        }
        let mut names: Vec<String> = options.name.iter().cloned().chain(header.name).collect();
        names.extend([stem(&named.path), named.alias.clone()]);
        names.dedup();
        // All slots can be in use at a time; and no request has more than the model was trained
        // for.
        let part = (context / options.slots as u64).min(header.context_length.unwrap_or(u64::MAX));
        Ok(Self { graph, names, template, context: Some(part), most: options.most })
    }
}

impl Embedder {
    fn load(engine: &mut impl Engine, named: &Named, options: &Options) -> Result<Self, String> {
        let header = header(named);
        let context = context(named, options, &header).min(CONTEXT).min(header.context_length.unwrap_or(u64::MAX));
        // A text is embedded as one batch.
        let metadata = json!({"embedding": true, "ctx-size": context, "batch-size": context, "ubatch-size": context, "parallel": 1});
        let graph = load(engine, named, &metadata.to_string())?;
        let mut names = vec![named.alias.clone()];
        names.extend(header.name.into_iter().chain([stem(&named.path)]));
        names.dedup();
        Ok(Self { graph, names, context: Some(context) })
    }
}

/// The time, in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn load(engine: &mut impl Engine, named: &Named, metadata: &str) -> Result<Graph, String> {
    engine.load(&named.alias, metadata).map_err(|failure| format!("the model {} ({}): {failure}", named.alias, named.path))
}

/// The header of a model's file. If it cannot be read, the engine may still know better.
fn header(named: &Named) -> Header {
    let file = File::open(&named.path).map_err(|error| error.to_string());
    file.and_then(|file| Header::read(file).map_err(|error| error.to_string())).unwrap_or_else(|why| {
        eprintln!("{}: {why}: neither its name nor its chat template is known", named.path);
        Header::default()
    })
}

/// How much context a model gets.
fn context(named: &Named, options: &Options, header: &Header) -> u64 {
    let trained = header.context_length.unwrap_or(CONTEXT);
    let enough = trained.saturating_mul(options.slots as u64).min(CONTEXT);
    options.context.or(named.context).unwrap_or(enough)
}

/// The name of a file without its ending.
fn stem(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_suffix(".gguf").unwrap_or(name).to_owned()
}
