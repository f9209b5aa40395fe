// SPDX-License-Identifier: Apache-2.0
//! Language models for modules: the interface `wasi_ephemeral_nn` with the GGML back end, as
//! WasmEdge's plugin has it, on each engine.
//!
//! ```text
//!  host           named ──> which models the container names, opened beneath its root
//!                  │ Companions: a pair of sockets, and the open files
//!  pod's process  service ──> runs a llama-server (llama) for a model that the module loads, and connects to it
//!                  │ channel: Request, Reply, connections
//!  container      functions ──> graphs (graph, metadata, answers) ──> client: HTTP over those connections
//! ```
//!
//! The engine of the model is a program of its own and not a library in the container: its crash is
//! a container's exit, its memory is the container's, and it has only the files that it was given.
//! A container that names no model has none of this.

mod answers;
mod channel;
mod client;
pub mod functions;
pub mod gguf;
mod graph;
mod graphics;
mod http;
pub mod llama;
mod metadata;
pub mod named;
mod place;
pub mod service;

pub use answers::Code;
pub use graph::Graphs;

use crate::engine::Engine;
use crate::payload::{Models, Module};
use crate::program::{last_words, report};
use client::Client;
use magnetar_core::error::{Context, Error, Result};
use magnetar_core::packet;
use magnetar_core::runtime::libcontainer::ask_for_companion;
use named::Named;
use serde_json::Value;
use service::{Wanted, WantedModel};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

/// The exit code of a container whose model's engine has died.
const ENGINE_DIED: i32 = 1;

/// Has the pod's process serve the models that a container names; `None` if it names none. The
/// container is about to be made.
///
/// # Errors
/// `InvalidArgument` for a name that is none, `NotFound` for a file that is not there.
pub fn ask(spec: &Value, bundle: &Path) -> Result<Option<Models>> {
    let named = named::in_spec(spec)?;
    if named.is_empty() {
        return Ok(None);
    }
    let models = named::open(named.clone(), spec, bundle)?;
    let (pod, channel) = packet::pair().context(|| "cannot make the channel for the container's models".into())?;
    let of = |model: &named::Model| {
        let Named { alias, path, .. } = model.named.clone();
        WantedModel { alias, path, parts: model.files.len() }
    };
    let wanted = Wanted {
        models: models.iter().map(of).collect(),
        threads: threads(&spec["linux"]["resources"]["cpu"]),
        devices: graphics::in_spec(spec),
        memory: spec["linux"]["resources"]["memory"]["limit"].as_u64().filter(|limit| *limit > 0),
    };
    let wanted = serde_json::to_value(wanted).map_err(|error| Error::internal(format!("the container's models: {error}")))?;
    let mut descriptors = vec![pod.as_fd()];
    descriptors.extend(models.iter().flat_map(|model| model.files.iter().map(AsFd::as_fd)));
    ask_for_companion(wanted, &descriptors)?;
    Ok(Some(Models { channel, named }))
}

/// How many threads a container can keep busy: as many as its limit of processor time, or the
/// processors.
fn threads(cpu: &Value) -> u16 {
    let processors = std::thread::available_parallelism().map_or(1, |count| u16::try_from(count.get()).unwrap_or(u16::MAX));
    let limit = cpu["quota"].as_u64().zip(cpu["period"].as_u64().filter(|period| *period > 0));
    let limit = limit.map(|(quota, period)| u16::try_from(quota.div_ceil(period)).unwrap_or(u16::MAX));
    limit.map_or(processors, |limit| limit.clamp(1, processors))
}

/// What a module that imports [`functions::MODULE`] computes with: the models of its container.
///
/// # Errors
/// When no thread can be started.
pub fn graphs<E: Engine>(module: &Module) -> std::io::Result<Graphs> {
    let line = {
        let name = module.name().to_owned();
        move |why: &str| last_words::<E>(&name, why)
    };
    let say = {
        let line = line.clone();
        // The container may have closed its standard error.
        move |why: &str| drop(std::io::stderr().write_all(line(why).as_bytes()))
    };
    let Some(Models { channel, named }) = module.take_models() else { return Ok(Graphs::new(None, Vec::new(), say)) };
    let client = Client::start(channel, say.clone(), move |why| {
        report(&line(why), false);
        std::process::exit(ENGINE_DIED)
    })?;
    Ok(Graphs::new(Some(client), named, say))
}
