// SPDX-License-Identifier: Apache-2.0
//! A test's specification: the JSON file beside its module (doc/specification.md of
//! wasi-testsuite, and what its own runner reads beyond that).
//!
//! There are two forms. The newer one is a list of operations. The older one has a module's
//! surroundings and its outcome, and is turned into the newer one here. A field that is not known
//! is an error: a suite that asks for something new would otherwise be tested without it.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Deserialize;

/// What is done with a module, in this order, and what surrounds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub run: Run,
    /// What comes after its start.
    pub operations: Vec<Operation>,
    pub servers: Vec<Server>,
}

/// How the module is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// The folder beside the module that is its root.
    pub root: Option<String>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Operation {
    /// Starts it. There is one, which is the first.
    Run {
        #[serde(default)]
        args: Vec<String>,
        #[serde(default)]
        env: BTreeMap<String, String>,
        #[serde(default)]
        root: Option<String>,
    },
    /// It ends, with this exit code.
    Wait {
        #[serde(default)]
        exit_code: i32,
    },
    /// The next bytes that it writes are these.
    Read {
        #[serde(default)]
        id: Output,
        #[serde(default)]
        payload: String,
    },
    /// Standard input gets these bytes, and stays open.
    Write {
        #[serde(default)]
        id: Input,
        #[serde(default)]
        payload: String,
    },
    /// A connection to the address that it writes as a line to standard output.
    Connect {
        id: String,
        #[serde(default)]
        protocol_type: Protocol,
    },
    /// That connection gets these bytes.
    Send { id: String, payload: String },
    /// The next bytes from that connection are these.
    Recv { id: String, payload: String },
    /// An HTTP request to it.
    Request(Request),
    /// A signal to it.
    Kill {
        #[serde(default = "sigterm")]
        signal: String,
    },
}

/// A stream that a module writes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    #[default]
    Stdout,
    Stderr,
}

/// A stream that a module reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Input {
    #[default]
    Stdin,
}

/// What a connection speaks. No test has another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
}

/// A request, and the answer that must come.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub response: Response,
}

/// An answer: the one that must come, or the one that a server gives.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Response {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// The body in parts. Then it has no length in its head.
    pub chunks: Option<Vec<String>>,
    /// What comes after the last part.
    pub trailers: BTreeMap<String, String>,
}

/// A server beside the module, whose address is in its environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    name: String,
    #[serde(default)]
    pub kind: Kind,
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// Whether anybody answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Listening,
    /// Connections are refused.
    Closed,
}

/// What a server answers to one method and path.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub mode: Mode,
    #[serde(default)]
    pub response: Response,
}

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// From the specification.
    #[default]
    Static,
    /// It is the request's body.
    EchoBody,
    /// Its head has the request's method, path, headers and trailers.
    EchoHeaders,
}

impl Default for Request {
    fn default() -> Self {
        Self { method: "GET".into(), path: "/".into(), headers: BTreeMap::new(), body: String::new(), response: Response::default() }
    }
}

impl Default for Response {
    fn default() -> Self {
        Self { status: 200, headers: BTreeMap::new(), body: String::new(), chunks: None, trailers: BTreeMap::new() }
    }
}

impl Server {
    /// The variable that has its address.
    pub fn variable(&self) -> String {
        format!("HTTP_SERVER_{}", self.name.to_uppercase())
    }
}

fn sigterm() -> String {
    "SIGTERM".into()
}

/// The form with operations. Which proposals and which world a module needs, an engine of ours
/// finds out from the module itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Newer {
    #[serde(default, rename = "proposals")]
    _proposals: Vec<String>,
    #[serde(default, rename = "world")]
    _world: Option<String>,
    #[serde(default)]
    servers: Vec<Server>,
    operations: Vec<Operation>,
}

/// The form without.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Older {
    args: Vec<String>,
    env: BTreeMap<String, String>,
    root: Option<String>,
    exit_code: i32,
    stdout: Option<String>,
    stderr: Option<String>,
}

impl Default for Spec {
    /// That of a module without a file: it is run, and ends with 0.
    fn default() -> Self {
        Older::default().into()
    }
}

impl From<Older> for Spec {
    fn from(older: Older) -> Self {
        let read = |id, payload: Option<String>| payload.map(|payload| Operation::Read { id, payload });
        let operations =
            [read(Output::Stdout, older.stdout), read(Output::Stderr, older.stderr), Some(Operation::Wait { exit_code: older.exit_code })];
        let run = Run { args: older.args, env: older.env, root: older.root };
        Self { run, operations: operations.into_iter().flatten().collect(), servers: Vec::new() }
    }
}

impl Spec {
    /// Reads the file beside a module.
    pub fn parse(text: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        if value.get("operations").is_none() {
            return Ok(serde_json::from_value::<Older>(value)?.into());
        }
        let Newer { servers, mut operations, .. } = serde_json::from_value(value)?;
        ensure!(!operations.is_empty(), "there is no operation");
        let Operation::Run { args, env, root } = operations.remove(0) else { anyhow::bail!("the first operation is no `run`") };
        let again = operations.iter().any(|operation| matches!(operation, Operation::Run { .. }));
        ensure!(!again, "there is a second `run`");
        ensure!(matches!(operations.last(), Some(Operation::Wait { .. })), "the last operation is no `wait`");
        Ok(Self { run: Run { args, env, root }, operations, servers })
    }

    /// Whether the module is talked to by its streams while it runs.
    pub fn is_dialogue(&self) -> bool {
        self.operations.iter().any(|operation| matches!(operation, Operation::Write { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_without_a_file_is_run_and_ends_with_0() {
        let spec = Spec::default();
        assert_eq!((spec.run, spec.operations), (Run::default(), vec![Operation::Wait { exit_code: 0 }]));
        assert_eq!(Spec::parse("{}").unwrap().operations, [Operation::Wait { exit_code: 0 }]);
    }

    #[test]
    fn both_forms_are_read() {
        let older = Spec::parse(r#"{"root": "files", "args": ["a"], "env": {"x": "y"}, "stdout": "hello", "exit_code": 3}"#).unwrap();
        let newer = r#"{"operations": [{"type": "run", "root": "files", "args": ["a"], "env": {"x": "y"}},
            {"type": "read", "payload": "hello"}, {"type": "wait", "exit_code": 3}]}"#;
        assert_eq!(older, Spec::parse(newer).unwrap());
        assert_eq!(older.run.root.as_deref(), Some("files"));
        assert!(!older.is_dialogue());
    }

    #[test]
    fn services_and_servers_are_read() {
        let text = r#"{"proposals": ["http"], "world": "wasi:http/service",
            "servers": [{"name": "main", "endpoints": [{"method": "GET", "path": "/a", "response": {"status": 201, "chunks": ["x"], "trailers": {"t": "u"}}},
                {"method": "POST", "path": "/b", "mode": "echo-headers"}]}, {"name": "dead", "kind": "closed"}],
            "operations": [{"type": "run"}, {"type": "request", "method": "POST", "response": {"status": 404}},
                {"type": "kill", "signal": "SIGINT"}, {"type": "wait"}]}"#;
        let spec = Spec::parse(text).unwrap();
        assert_eq!(spec.servers[0].variable(), "HTTP_SERVER_MAIN");
        assert_eq!(spec.servers[0].endpoints[0].response.chunks, Some(vec!["x".to_owned()]));
        assert_eq!((spec.servers[0].endpoints[1].mode, spec.servers[1].kind), (Mode::EchoHeaders, Kind::Closed));
        let Operation::Request(request) = &spec.operations[0] else { panic!("{:?}", spec.operations) };
        assert_eq!((request.path.as_str(), request.response.status), ("/", 404));
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        for text in [
            r#"{"dirs": ["x"]}"#,
            r#"{"operations": [{"type": "run", "cwd": "/"}, {"type": "wait"}]}"#,
            r#"{"operations": [{"type": "run"}, {"type": "sleep"}, {"type": "wait"}]}"#,
            r#"{"operations": [{"type": "run"}]}"#,
            r#"{"operations": [{"type": "wait"}]}"#,
        ] {
            assert!(Spec::parse(text).is_err(), "{text}");
        }
    }
}
