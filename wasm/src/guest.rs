// SPDX-License-Identifier: Apache-2.0
//! The environment of a module, from its container.

use libcontainer::oci_spec::runtime::{Process, Spec};
use std::str::FromStr;
use std::time::Duration;

/// What the engine itself may need beside a module's memory, in bytes: code, tables, stacks.
const ENGINE: u64 = 16 << 20;

/// The port of a component that answers HTTP requests, if neither the pod nor the image names one.
const PORT: u16 = 8080;

/// The pod's annotation that names the port.
pub const PORT_ANNOTATION: &str = "io.magnetar.wasm.http-port";

/// The pod's annotation with the seconds until a request must be answered; 0: without end.
const TIMEOUT_ANNOTATION: &str = "io.magnetar.wasm.http-timeout";

/// The seconds without that annotation: the usual time of proxies, which would not wait longer.
const TIMEOUT: u64 = 60;

/// The pod's annotation with the number of requests that are answered at a time.
const REQUESTS_ANNOTATION: &str = "io.magnetar.wasm.http-requests";

/// The number without that annotation.
const REQUESTS: usize = 1024;

/// The pod's annotation for a line in the log for each request: `true` or `false`.
const ACCESS_LOG_ANNOTATION: &str = "io.magnetar.wasm.http-access-log";

/// The environment variable, of the image or the container, that names the port.
const PORT_VARIABLE: &str = "PORT";

/// A module's environment, from the container's specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its arguments; the first is the module's name.
    pub args: Vec<String>,
    /// Its environment. A variable without a value is left out: WASI has none.
    pub env: Vec<(String, String)>,
    /// Its working directory, absolute.
    pub directory: String,
    /// The limit of its memory, in bytes.
    pub memory: Option<u64>,
    /// For a component that answers HTTP requests. The error says what is configured wrongly.
    pub http: std::result::Result<Http, String>,
}

/// How HTTP requests are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// The port.
    pub port: u16,
    /// How long a request may take until its answer begins; `None`: without end.
    pub timeout: Option<Duration>,
    /// How many requests are answered at a time, at least one.
    pub requests: usize,
    /// Whether each request has a line in the container's log.
    pub access_log: bool,
}

impl Default for Http {
    fn default() -> Self {
        Self { port: PORT, timeout: Some(Duration::from_secs(TIMEOUT)), requests: REQUESTS, access_log: false }
    }
}

impl Http {
    /// From the pod's annotations, and the port in the environment.
    fn new<'a>(annotation: impl Fn(&str) -> Option<&'a str>, port: Option<&'a str>) -> std::result::Result<Self, String> {
        let default = Self::default();
        let port = annotation(PORT_ANNOTATION).or(port);
        let seconds = parsed(annotation(TIMEOUT_ANNOTATION), "a number of seconds")?.unwrap_or(TIMEOUT);
        let requests = parsed(annotation(REQUESTS_ANNOTATION), "a number of requests")?.unwrap_or(default.requests);
        Ok(Self {
            port: parsed(port, "a port number on which to answer HTTP")?.unwrap_or(default.port),
            timeout: (seconds > 0).then(|| Duration::from_secs(seconds)),
            requests: requests.clamp(1, MOST_REQUESTS),
            access_log: parsed(annotation(ACCESS_LOG_ANNOTATION), "true or false")?.unwrap_or(default.access_log),
        })
    }
}

/// More than a process could have at a time.
const MOST_REQUESTS: usize = 1 << 20;

fn parsed<T: FromStr>(text: Option<&str>, what: &str) -> std::result::Result<Option<T>, String> {
    text.map(|text| text.parse().map_err(|_| format!("{text:?} is not {what}"))).transpose()
}

impl Guest {
    /// The environment of the container's process.
    pub fn new(spec: &Spec) -> Self {
        let limit = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()).and_then(|resources| resources.memory().as_ref());
        let limit = limit.and_then(|memory| memory.limit()).and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0);
        let guest = spec.process().as_ref().map_or_else(Self::empty, Self::of_process);
        let annotation = |name: &str| spec.annotations().as_ref().and_then(|annotations| annotations.get(name)).map(String::as_str);
        let variable = guest.env.iter().find(|(name, _)| name == PORT_VARIABLE).map(|(_, value)| value.as_str());
        let http = Http::new(annotation, variable);
        Self { memory: limit.map(linear_memory), http, ..guest }
    }

    /// The memory limit as [`new`](Self::new) will set it, from the specification as it is on the
    /// host.
    pub fn memory_of(spec: &serde_json::Value) -> Option<u64> {
        spec["linux"]["resources"]["memory"]["limit"].as_u64().filter(|limit| *limit > 0).map(linear_memory)
    }

    fn empty() -> Self {
        Self { args: Vec::new(), env: Vec::new(), directory: "/".into(), memory: None, http: Ok(Http::default()) }
    }

    fn of_process(process: &Process) -> Self {
        let pairs = process.env().iter().flatten().filter_map(|variable| variable.split_once('='));
        Self {
            args: process.args().clone().unwrap_or_default(),
            env: pairs.map(|(name, value)| (name.into(), value.into())).collect(),
            directory: process.cwd().to_string_lossy().into_owned(),
            ..Self::empty()
        }
    }
}

/// The module's part of the cgroup's limit. The rest is for the engine: without it, the kernel
/// would kill the process before the engine can report what was wrong. A small limit is split in
/// halves.
fn linear_memory(limit: u64) -> u64 {
    limit.saturating_sub(ENGINE).max(limit / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_gets_its_process_s_arguments_environment_and_directory() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.1.0","root":{"path":"r"},"process":{"args":["a.wasm","b"],"env":["A=1=2","B"],"cwd":"/d","user":{"uid":0,"gid":0}},
            "linux":{"resources":{"memory":{"limit":104857600}}}}"#,
        )
        .unwrap();
        let guest = Guest::new(&spec);
        assert_eq!(guest.args, ["a.wasm", "b"]);
        assert_eq!(guest.env, [("A".to_string(), "1=2".to_string())]);
        assert_eq!(guest.directory, "/d");
        assert_eq!(guest.memory, Some(84 << 20));
        assert_eq!(guest.http, Ok(Http { port: 8080, timeout: Some(Duration::from_secs(60)), requests: 1024, access_log: false }));
    }

    #[test]
    fn the_annotation_s_port_overrides_the_environment_s() {
        let http = |annotations: &str, env: &str| {
            let text = format!(
                r#"{{"ociVersion":"1.1.0","root":{{"path":"r"}},"annotations":{{{annotations}}},
                "process":{{"args":["a"],"env":[{env}],"cwd":"/","user":{{"uid":0,"gid":0}}}}}}"#
            );
            Guest::new(&serde_json::from_str(&text).unwrap()).http
        };
        let port = |annotations: &str, env: &str| http(annotations, env).map(|http| http.port);
        assert_eq!(port("", "\"PORT=90\""), Ok(90));
        assert_eq!(port("\"io.magnetar.wasm.http-port\":\"91\"", "\"PORT=90\""), Ok(91));
        let error = port("", "\"PORT=tcp://10.0.0.1:80\"").unwrap_err();
        assert_eq!(error, "\"tcp://10.0.0.1:80\" is not a port number on which to answer HTTP");
        let annotations =
            r#""io.magnetar.wasm.http-timeout":"0","io.magnetar.wasm.http-requests":"0","io.magnetar.wasm.http-access-log":"true""#;
        assert_eq!(http(annotations, ""), Ok(Http { port: 8080, timeout: None, requests: 1, access_log: true }));
        let error = http("\"io.magnetar.wasm.http-timeout\":\"1m\"", "").unwrap_err();
        assert_eq!(error, "\"1m\" is not a number of seconds");
    }

    #[test]
    fn a_small_memory_limit_is_split_in_halves() {
        assert_eq!(linear_memory(20 << 20), 10 << 20);
        assert_eq!(linear_memory(64 << 20), 48 << 20);
    }
}
