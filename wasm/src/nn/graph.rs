// SPDX-License-Identifier: Apache-2.0
//! Loaded models and computations with them, as a module numbers them: graphs, and execution
//! contexts.
//!
//! ```text
//! load ──> graph ──> context ── set_input ──> compute         ──> get_output
//!                                         └─> compute_single* ──> get_output, token by token
//! ```

use super::answers::{Code, MAX_ANSWER, Outcome, Stream, Usage, embedding_in, end, error_in, failure};
use super::client::Client;
use super::http::{self, Answer, Awaited};
use super::metadata::{LoadOptions, Metadata};
use super::named::Named;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The most graphs, and the most contexts, that a module may have at a time.
const MAX_NUMBERS: usize = 4096;

/// The longest prompt, in bytes.
pub const MAX_PROMPT: u32 = 16 << 20;

/// The tensor that is a prompt, and the output that is text.
const TEXT: u32 = 0;

/// The tensor, and the output, that is metadata.
const METADATA: u32 = 1;

/// Which output of a computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// All of it so far.
    Whole,
    /// The last piece.
    LastPiece,
}

/// A container's models, and what its module has made of them.
pub struct Graphs {
    client: Option<Client>,
    models: Vec<Named>,
    /// How each model was loaded last.
    loaded: BTreeMap<usize, LoadOptions>,
    graphs: BTreeMap<u32, Graph>,
    contexts: BTreeMap<u32, Context>,
    next: u32,
    say: Box<dyn Fn(&str) + Send>,
}

#[derive(Debug, Clone)]
struct Graph {
    model: usize,
    metadata: Metadata,
}

struct Context {
    graph: u32,
    metadata: Metadata,
    prompt: Option<String>,
    /// The answer so far.
    output: Vec<u8>,
    /// Where the last piece begins in it.
    last: usize,
    usage: Usage,
    stream: Option<Stream>,
}

impl Context {
    /// Forgets the answer, complete or not. Closing the connection has the engine give up what it
    /// still computes.
    fn forget_answer(&mut self) {
        (self.stream, self.output, self.last) = (None, Vec::new(), 0);
    }
}

impl Graphs {
    /// The models that a container names; without a client it names none. `say` gets a line for the
    /// container's log when something fails, because the module hears only a code.
    pub fn new(client: Option<Client>, models: Vec<Named>, say: impl Fn(&str) + Send + 'static) -> Self {
        let (loaded, graphs, contexts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { client, models, loaded, graphs, contexts, next: 0, say: Box::new(say) }
    }

    /// `load_by_name` and `load_by_name_with_config`: loads the model of that alias.
    pub fn load_by_name(&mut self, alias: &str, metadata: &[u8]) -> Outcome<u32> {
        let Some(model) = self.models.iter().position(|named| named.alias == alias) else {
            let names: Vec<&str> = self.models.iter().map(|named| named.alias.as_str()).collect();
            let has = if names.is_empty() {
                "none: set WASMEDGE_WASINN_PRELOAD, which counts for the first process of a container".into()
            } else {
                names.join(", ")
            };
            return Err(self.failed(Code::NotFound, format!("the container names no model {alias:?}; it names {has}")));
        };
        self.load(model, metadata)
    }

    /// `load` with the path of a model.
    pub fn load_path(&mut self, path: &str, metadata: &[u8]) -> Outcome<u32> {
        let path = std::path::Path::new("/").join(path);
        match self.models.iter().position(|named| named.path == path) {
            Some(model) => self.load(model, metadata),
            None => {
                let path = path.display();
                Err(self.failed(
                    Code::ModelNotFound,
                    format!("the container names no model with the path {path}: WASMEDGE_WASINN_PRELOAD does"),
                ))
            }
        }
    }

    fn load(&mut self, model: usize, metadata: &[u8]) -> Outcome<u32> {
        if self.graphs.len() >= MAX_NUMBERS {
            return Err(Code::Busy);
        }
        let mut all = self.models.get(model).ok_or(Code::NotFound)?.metadata.clone();
        if !metadata.is_empty() {
            all.add(metadata).map_err(|why| self.failed(Code::InvalidArgument, why))?;
        }
        self.ensure_loaded(model, &all.load).map_err(|_| Code::ModelNotFound)?;
        let number = self.number();
        self.graphs.insert(number, Graph { model, metadata: all });
        Ok(number)
    }

    /// `unload`.
    pub fn unload(&mut self, graph: u32) -> Outcome<()> {
        self.graphs.remove(&graph).map(drop).ok_or(Code::InvalidArgument)
    }

    /// `init_execution_context`.
    pub fn begin(&mut self, graph: u32) -> Outcome<u32> {
        if self.contexts.len() >= MAX_NUMBERS {
            return Err(Code::Busy);
        }
        let metadata = self.graphs.get(&graph).ok_or(Code::InvalidArgument)?.metadata.clone();
        let number = self.number();
        let context = Context { graph, metadata, prompt: None, output: Vec::new(), last: 0, usage: Usage::default(), stream: None };
        self.contexts.insert(number, context);
        Ok(number)
    }

    /// `finalize_execution_context`.
    pub fn end(&mut self, context: u32) -> Outcome<()> {
        self.contexts.remove(&context).map(drop).ok_or(Code::InvalidArgument)
    }

    /// `set_input`.
    pub fn set_input(&mut self, context: u32, index: u32, tensor: Vec<u8>) -> Outcome<()> {
        let found = self.contexts.get_mut(&context).ok_or(Code::InvalidArgument)?;
        match index {
            TEXT => {
                // Some senders count the zero byte at the end of a string of C.
                let text = String::from_utf8(tensor).map_err(|_| Code::InvalidArgument)?;
                found.prompt = Some(text.trim_end_matches('\0').to_owned());
                found.usage = Usage::default();
                // The answer to an earlier prompt is over, also without `fini_single`.
                found.forget_answer();
                Ok(())
            }
            METADATA => {
                let mut metadata = found.metadata.clone();
                let added = metadata.add(&tensor);
                added.map_err(|why| self.failed(Code::InvalidArgument, why))?;
                let model = self.model_of(context)?;
                self.ensure_loaded(model, &metadata.load)?;
                self.context(context)?.metadata = metadata;
                Ok(())
            }
            _ => Err(self.failed(Code::InvalidArgument, format!("input {index} is none: 0 is the prompt and 1 the metadata"))),
        }
    }

    /// `compute`: the whole answer.
    pub fn compute(&mut self, context: u32) -> Outcome<()> {
        let found = self.context(context)?;
        found.forget_answer();
        let is_embedding = found.metadata.load.embedding;
        let prompt = found.prompt.clone().ok_or(Code::InvalidArgument)?;
        let answer = if is_embedding {
            self.ask(context, "/embedding", &json!({"content": prompt}))?
        } else {
            let request = self.completion(context, prompt, false)?;
            self.ask(context, "/completion", &request)?
        };
        let body = self.body(answer)?;
        let found = self.context(context)?;
        if is_embedding {
            let embedding = embedding_in(&body).ok_or(Code::RuntimeError)?;
            found.output = json!({"embedding": embedding, "n_embedding": embedding.len()}).to_string().into_bytes();
            return Ok(());
        }
        found.usage.take(&body);
        found.output = body["content"].as_str().unwrap_or_default().as_bytes().to_vec();
        match end(&body) {
            Code::ContextFull => Err(Code::ContextFull),
            _ => Ok(()),
        }
    }

    /// `compute_single`: the next piece of the answer.
    pub fn compute_single(&mut self, context: u32) -> Outcome<()> {
        if self.context(context)?.stream.is_none() {
            let found = self.context(context)?;
            if found.metadata.load.embedding {
                return Err(self.failed(Code::InvalidArgument, "embeddings do not come in pieces: compute makes them".into()));
            }
            let prompt = found.prompt.clone().ok_or(Code::InvalidArgument)?;
            let request = self.completion(context, prompt, true)?;
            let awaited = self.send(context, "/completion", &request)?;
            let found = self.context(context)?;
            found.forget_answer();
            found.stream = Some(Stream::new(awaited));
        }
        let found = self.context(context)?;
        found.last = found.output.len();
        let stream = found.stream.as_mut().ok_or(Code::RuntimeError)?;
        match stream.next(&mut found.usage, !found.metadata.is_polled) {
            Ok(piece) if found.output.len() as u64 + piece.len() as u64 <= MAX_ANSWER => {
                found.output.extend(piece);
                Ok(())
            }
            Ok(_) => Err(Code::TooLarge),
            Err((code, why)) => {
                if let Some(why) = why {
                    (self.say)(&why);
                }
                Err(code)
            }
        }
    }

    /// `fini_single`: ends an answer that comes in pieces, complete or not.
    pub fn end_single(&mut self, context: u32) -> Outcome<()> {
        self.context(context)?.forget_answer();
        Ok(())
    }

    /// `get_output` and `get_output_single`.
    pub fn output(&mut self, context: u32, index: u32, output: Output) -> Outcome<Vec<u8>> {
        match index {
            TEXT => {
                let found = self.context(context)?;
                let from = if output == Output::Whole { 0 } else { found.last };
                Ok(found.output[from..].to_vec())
            }
            METADATA => {
                if self.context(context)?.usage == Usage::default() {
                    self.count(context)?;
                }
                let Usage { input, output } = self.context(context)?.usage;
                // The engine is a program whose build the module cannot depend upon.
                let usage = json!({"input_tokens": input, "output_tokens": output, "llama_build_number": 0, "llama_commit": ""});
                Ok(usage.to_string().into_bytes())
            }
            _ => Err(Code::InvalidArgument),
        }
    }

    /// Counts a prompt's tokens before anything is computed.
    fn count(&mut self, context: u32) -> Outcome<()> {
        let Some(prompt) = self.context(context)?.prompt.clone() else { return Ok(()) };
        let request = json!({"content": prompt, "add_special": true, "parse_special": true});
        let answer = self.ask(context, "/tokenize", &request)?;
        let tokens = self.body(answer)?["tokens"].as_array().map_or(0, Vec::len);
        self.context(context)?.usage.input = tokens as u64;
        Ok(())
    }

    fn completion(&mut self, context: u32, prompt: String, stream: bool) -> Outcome<Value> {
        let mut request: Map<String, Value> = self.context(context)?.metadata.completion.clone();
        request.insert("prompt".into(), prompt.into());
        request.insert("stream".into(), stream.into());
        // What a conversation has said before is not computed again.
        request.insert("cache_prompt".into(), true.into());
        Ok(Value::Object(request))
    }

    /// Sends a request to the engine.
    fn send(&mut self, context: u32, path: &str, request: &Value) -> Outcome<Awaited> {
        let model = self.model_of(context)?;
        // Meanwhile somebody may have loaded the model with other options.
        let options = self.context(context)?.metadata.load.clone();
        self.ensure_loaded(model, &options)?;
        let client = self.client.as_ref().ok_or(Code::NotFound)?;
        let sent = client
            .connect(model)
            .and_then(|connection| http::post(connection, path, request.to_string().as_bytes()).map_err(|error| error.to_string()));
        sent.map_err(|why| self.failed(Code::RuntimeError, format!("the engine of the model cannot be asked: {why}")))
    }

    /// Asks the engine, and waits for its answer. One that is an error becomes a code.
    fn ask(&mut self, context: u32, path: &str, request: &Value) -> Outcome<Answer> {
        match self.send(context, path, request)?.answer() {
            Ok(answer) if answer.status == 200 => Ok(answer),
            Ok(mut answer) => {
                let (code, why) = failure(&error_in(&mut answer));
                Err(self.failed(code, why))
            }
            Err(why) => Err(self.failed(Code::RuntimeError, format!("the engine of the model does not answer: {why}"))),
        }
    }

    fn body(&self, mut answer: Answer) -> Outcome<Value> {
        let body = answer.read(MAX_ANSWER).map_err(|error| error.to_string());
        let parsed = body.and_then(|body| serde_json::from_slice(&body).map_err(|error| error.to_string()));
        parsed.map_err(|why| self.failed(Code::RuntimeError, format!("the engine of the model has broken off: {why}")))
    }

    fn ensure_loaded(&mut self, model: usize, options: &LoadOptions) -> Outcome<()> {
        if self.loaded.get(&model) == Some(options) {
            return Ok(());
        }
        let client = self.client.as_ref().ok_or(Code::NotFound)?;
        self.loaded.remove(&model);
        client.load(model, options.clone()).map_err(|why| self.failed(Code::RuntimeError, why))?;
        self.loaded.insert(model, options.clone());
        Ok(())
    }

    fn model_of(&mut self, context: u32) -> Outcome<usize> {
        let graph = self.context(context)?.graph;
        self.graphs.get(&graph).map(|graph| graph.model).ok_or(Code::InvalidArgument)
    }

    fn context(&mut self, context: u32) -> Outcome<&mut Context> {
        self.contexts.get_mut(&context).ok_or(Code::InvalidArgument)
    }

    /// A number that is free.
    fn number(&mut self) -> u32 {
        loop {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            if !self.graphs.contains_key(&number) && !self.contexts.contains_key(&number) {
                return number;
            }
        }
    }

    fn failed(&self, code: Code, why: String) -> Code {
        (self.say)(&why);
        code
    }
}
