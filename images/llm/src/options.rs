// SPDX-License-Identifier: Apache-2.0
//! What the server is told: by arguments, or by the environment.

use serde_json::Value;
use std::collections::BTreeMap;

/// How options are written, and what they are for.
const KNOWN: [(&str, &str, &str); 9] = [
    ("port", "PORT", "the port (8080)"),
    ("ctx-size", "CTX_SIZE", "tokens of context, of which each slot has its part (at most 16384)"),
    ("slots", "SLOTS", "how many requests are answered at a time (4)"),
    ("queue", "QUEUE", "how many more may wait (64)"),
    ("alias", "ALIAS", "the alias of the model that writes text (the first)"),
    ("embedding-alias", "EMBEDDING_ALIAS", "the alias of the model for embeddings (embedding)"),
    ("model-name", "MODEL_NAME", "the model's name for clients (the one in its file)"),
    ("max-tokens", "MAX_TOKENS", "tokens of an answer whose request says nothing (as many as fit)"),
    ("log-requests", "LOG_REQUESTS", "true: a line of JSON for each request"),
];
/// The variables by which a container names its models.
const PRELOAD: [&str; 2] = ["WASMEDGE_WASINN_PRELOAD", "io.kuasar.wasm.nn_preload"];
/// The alias that a model for embeddings has, if nobody says otherwise.
const EMBEDDING: &str = "embedding";

/// The options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The port.
    pub port: u16,
    /// The context of all requests, in tokens.
    pub context: Option<u64>,
    /// How many requests are answered at a time.
    pub slots: usize,
    /// How many may wait.
    pub queue: usize,
    /// The model that writes text.
    pub chat: Option<Named>,
    /// The model for embeddings.
    pub embedder: Option<Named>,
    /// The name of the former for clients.
    pub name: Option<String>,
    /// The most tokens of an answer whose request says nothing.
    pub most: Option<u64>,
    /// Whether each request has a line in the log.
    pub log: bool,
}

/// A model as the container names it: `alias:GGML:target:path`, with `:{…}` for metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name by which it is loaded.
    pub alias: String,
    /// The path of its file.
    pub path: String,
    /// The length of context that the name asks for.
    pub context: Option<u64>,
}

impl Options {
    /// Reads the arguments, which come before the environment.
    ///
    /// # Errors
    /// What is wrong, for the person who wrote them.
    pub fn read(
        arguments: impl IntoIterator<Item = String>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        let variables = KNOWN.iter().filter_map(|(name, variable, _)| Some((*name, environment.get(*variable)?.clone())));
        let mut given: BTreeMap<&str, String> = variables.filter(|(_, value)| !value.is_empty()).collect();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let option = argument.strip_prefix("--").unwrap_or_default();
            let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value.to_owned())));
            let Some((name, _, _)) = KNOWN.iter().find(|(known, _, _)| *known == name) else {
                return Err(format!("unknown argument {argument}\n{}", usage()));
            };
            let value = match (value, *name) {
                (Some(value), _) => value,
                (None, "log-requests") => "true".into(),
                (None, _) => arguments.next().ok_or_else(|| format!("{argument} needs a value"))?,
            };
            given.insert(name, value);
        }
        let whole = |name: &str, least: u64, most: u64| match given.get(name) {
            None => Ok(None),
            Some(text) => {
                let number = text.parse().ok().filter(|number| (least..=most).contains(number));
                number.map(Some).ok_or_else(|| format!("{name}: {text:?} is no number from {least} to {most}"))
            }
        };
        let models = named(PRELOAD.iter().filter_map(|variable| environment.get(*variable)).map(String::as_str))?;
        let embedding = given.get("embedding-alias").map_or(EMBEDDING, String::as_str);
        let of = |alias: &str| models.iter().find(|model| model.alias == alias).cloned();
        let chat = match given.get("alias") {
            Some(alias) => Some(of(alias).ok_or_else(|| format!("{} names no model with the alias {alias}", PRELOAD[0]))?),
            None => models.iter().find(|model| model.alias != embedding).cloned(),
        };
        Ok(Self {
            port: whole("port", 1, 65535)?.unwrap_or(8080) as u16,
            context: whole("ctx-size", 8, 1 << 24)?,
            slots: whole("slots", 1, 256)?.unwrap_or(4) as usize,
            queue: whole("queue", 0, 65536)?.unwrap_or(64) as usize,
            embedder: of(embedding),
            chat,
            name: given.get("model-name").cloned(),
            most: whole("max-tokens", 1, 1 << 24)?,
            log: match given.get("log-requests").map(String::as_str) {
                None | Some("false" | "0") => false,
                Some("true" | "1") => true,
                Some(other) => return Err(format!("log-requests: {other:?} is neither true nor false")),
            },
        })
    }
}

/// How to use the program.
fn usage() -> String {
    let lines = KNOWN.iter().map(|(name, variable, what)| format!("  --{:28} {what}", format!("{name} ({variable})")));
    let lines: Vec<String> = lines.collect();
    format!("options, in brackets the variables of the same meaning:\n{}", lines.join("\n"))
}

fn named<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<Named>, String> {
    let mut models = Vec::new();
    for text in texts.flat_map(str::split_whitespace) {
        let mut fields = text.splitn(4, ':');
        let (Some(alias), Some(_), Some(_), Some(rest)) = (fields.next(), fields.next(), fields.next(), fields.next()) else {
            return Err(format!("{text:?} does not name a model: alias:GGML:target:path does"));
        };
        let (path, metadata) = rest.split_once(":{").map_or((rest, None), |(path, rest)| (path, Some(format!("{{{rest}"))));
        let metadata: Option<Value> = metadata.and_then(|text| serde_json::from_str(&text).ok());
        let context = metadata.and_then(|metadata| metadata["ctx-size"].as_u64());
        models.push(Named { alias: alias.into(), path: path.into(), context });
    }
    Ok(models)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const A: usize, const E: usize>(arguments: [&str; A], environment: [(&str, &str); E]) -> Result<Options, String> {
        Options::read(arguments.map(str::to_owned), environment.map(|(name, value)| (name.to_owned(), value.to_owned())))
    }

    #[test]
    fn models_are_named_by_the_container() {
        let preload = "default:GGML:CPU:/m/a:b.gguf:{\"ctx-size\":512}\n embedding:GGML:AUTO:/m/e.gguf";
        let options = read([], [("WASMEDGE_WASINN_PRELOAD", preload)]).unwrap();
        assert_eq!(options.chat, Some(Named { alias: "default".into(), path: "/m/a:b.gguf".into(), context: Some(512) }));
        assert_eq!(options.embedder, Some(Named { alias: "embedding".into(), path: "/m/e.gguf".into(), context: None }));
        let options = read(["--embedding-alias=default"], [("WASMEDGE_WASINN_PRELOAD", preload)]).unwrap();
        assert_eq!((options.chat.unwrap().alias, options.embedder.unwrap().alias), ("embedding".into(), "default".into()));
        let only = read([], [("io.kuasar.wasm.nn_preload", "embedding:GGML:CPU:/e")]).unwrap();
        assert_eq!((only.chat, only.embedder.unwrap().path), (None, "/e".into()));
        assert!(read(["--alias", "other"], [("WASMEDGE_WASINN_PRELOAD", preload)]).unwrap_err().ends_with("no model with the alias other"));
        assert!(read([], [("WASMEDGE_WASINN_PRELOAD", "model.gguf")]).unwrap_err().contains("alias:GGML:target:path"));
    }

    #[test]
    fn arguments_come_before_the_environment() {
        let options = read(["--port", "1", "--log-requests", "--queue=0"], [("PORT", "2"), ("SLOTS", "3"), ("CTX_SIZE", "")]).unwrap();
        assert_eq!((options.port, options.slots, options.queue, options.context, options.log), (1, 3, 0, None, true));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(read([], [("PORT", "http")]).unwrap_err(), "port: \"http\" is no number from 1 to 65535");
        assert_eq!(read(["--slots"], []).unwrap_err(), "--slots needs a value");
        assert!(read(["--colour"], []).unwrap_err().starts_with("unknown argument --colour\noptions, "));
        assert!(read(["port"], []).is_err() && read([], [("LOG_REQUESTS", "maybe")]).is_err());
    }
}
