// SPDX-License-Identifier: Apache-2.0
//! A handler's options: what containerd passes, or else the file that is named like the handler.
//!
//! ```text
//!   options table with ConfigPath     that file
//!   any other options table           the table itself, as TOML
//!   no options table                  /etc/magnetar/<kind>.toml, for the handler `magnetar-<kind>`
//! ```
//!
//! containerd gives each shim the `options` table of its runtime handler as a protobuf `Any`. For
//! every runtime but its own that is a `runtimeoptions.v1.Options`, and up to 2.2 it then fails to
//! start containers in a sandbox that told where its Task API is (containerd's `getRuncOptions`); in a
//! pod with a user namespace it fails in later ones too. So the configuration that we ship has no
//! options table, and the name decides.

use magnetar_core::config::{Containerd, HandlerConfig, LogLevel};
use magnetar_core::error::{Code, Error, Result};
use prost::Message;
use std::path::{Path, PathBuf};

/// Where the options of a handler are that gives none itself.
const CONFIG_DIR: &str = "/etc/magnetar";

/// The options of a pod: those of its handler, or those of the sandboxer's name.
///
/// containerd before 2.4 cannot start a container whose handler has options of our type and whose
/// sandboxer answers with an address: its client takes all options for runc's. So there a handler
/// has none, and each kind is a sandboxer of its own (`proxy_plugins.magnetar-<kind>`), all at the
/// same address. The name comes with the request: `magnetar-runc` has `/etc/magnetar/runc.toml`.
///
/// # Errors
/// As [`decode`], and `InvalidArgument` for a name that is not one.
pub fn of_pod(handler: Option<(&str, &[u8])>, sandboxer: &str) -> Result<HandlerConfig> {
    match handler {
        Some((type_url, value)) if !(type_url.is_empty() && value.is_empty()) => decode(type_url, value),
        Some(_) | None => of_sandboxer(sandboxer, Path::new(CONFIG_DIR)),
    }
}

fn of_sandboxer(name: &str, dir: &Path) -> Result<HandlerConfig> {
    let kind = match name.strip_prefix("magnetar").map(|rest| rest.strip_prefix('-').unwrap_or(rest)) {
        Some("") => return Ok(HandlerConfig::default()),
        Some(kind) if kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') => kind,
        Some(_) | None => {
            return Err(Error::invalid(format!("the sandboxer {name:?} of the runtime handler is none of ours: they are named magnetar-<kind>")));
        }
    };
    let path = dir.join(format!("{kind}.toml"));
    if path.exists() {
        return HandlerConfig::read(&path);
    }
    Ok(HandlerConfig { sandboxer: kind.into(), ..HandlerConfig::default() })
}

/// `runtimeoptions.v1.Options` of containerd's API.
#[derive(Clone, PartialEq, Message)]
struct RuntimeOptions {
    /// What the file holds; of no meaning to us.
    #[prost(string, tag = "1")]
    type_url: String,
    /// Where the options are.
    #[prost(string, tag = "2")]
    config_path: String,
    /// Or the options themselves.
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

/// The options in an `Any` with this `type_url` and `value`; `None` where there are none.
///
/// # Errors
/// `InvalidArgument` for a type that is not ours to read and for what is wrong in the options.
pub fn decode(type_url: &str, value: &[u8]) -> Result<Option<HandlerConfig>> {
    if value.is_empty() {
        return Ok(None);
    }
    if type_url.rsplit('/').next() != Some("runtimeoptions.v1.Options") {
        return Err(Error::invalid(format!(
            "the runtime handler's options have type {type_url:?}, not runtimeoptions.v1.Options: is its runtime_type \"io.containerd.magnetar.v2\"?"
        )));
    }
    let options = RuntimeOptions::decode(value).map_err(|e| Error::invalid(format!("the runtime handler's options do not decode: {e}")))?;
    if !options.config_path.is_empty() {
        let path = Path::new(&options.config_path);
        if !path.is_absolute() {
            return Err(Error::invalid(format!("ConfigPath = {path:?} of the runtime handler must be an absolute path")));
        }
        return HandlerConfig::read(path).map(Some);
    }
    let text = std::str::from_utf8(&options.config_body).map_err(|e| Error::invalid(format!("the runtime handler's options are not UTF-8: {e}")))?;
    HandlerConfig::parse(text).map(Some)
}

/// Where the options of handlers without an options table are.
pub const CONFIG_DIR: &str = "/etc/magnetar";

/// The options of a handler by its name; empty for the one that pods without a RuntimeClass get,
/// which containerd does not name. A handler without a file has the defaults of its kind.
///
/// # Errors
/// `InvalidArgument` for what is wrong in the file.
pub fn named(folder: &Path, handler: &str) -> Result<HandlerConfig> {
    let kind = handler.strip_prefix("magnetar-").unwrap_or(handler);
    if kind.contains(['/', '\0']) || kind.starts_with('.') {
        return Err(Error::invalid(format!("the runtime handler's name {handler:?} is not the name of a file")));
    }
    let candidates: &[&str] = if kind.is_empty() { &["default", "runc"] } else { &[kind] };
    for name in candidates {
        match HandlerConfig::read(&folder.join(format!("{name}.toml"))) {
            Err(error) if error.code() == Code::NotFound => {}
            outcome => return outcome,
        }
    }
    let default = HandlerConfig::default();
    let sandboxer = if handler.starts_with("magnetar-") { kind.into() } else { default.sandboxer };
    Ok(HandlerConfig { sandboxer, ..default })
}

/// The handler's name in what the CRI keeps of a sandbox (its extension `metadata`), where it is.
pub fn handler_in_metadata(json: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Versioned {
        metadata: Metadata,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Metadata {
        runtime_handler: String,
    }
    serde_json::from_slice::<Versioned>(json).ok().map(|versioned| versioned.metadata.runtime_handler)
}

/// The handler's name in the name of its runtime: `magnetar-x` in `io.containerd.magnetar-x.v2`, and
/// in `containerd-shim-magnetar-x-v2`, which is what containerd executes for it. Empty for `magnetar`.
pub fn handler_in_runtime(runtime: &str) -> String {
    let file = runtime.rsplit('/').next().unwrap_or_default();
    let name = match file.strip_prefix("containerd-shim-") {
        Some(rest) => rest.rsplit_once('-').map_or(rest, |(name, _version)| name),
        None => file.rsplit('.').nth(1).unwrap_or_default(),
    };
    if name.starts_with("magnetar-") { name.into() } else { String::new() }
}

/// What containerd itself says when it starts a shim; it knows better than a file where it listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FromContainerd {
    /// Its ttrpc socket, as a path or a `unix://` address; empty where it did not say.
    pub ttrpc_address: String,
    /// The log level that it runs at, in steps of four from INFO = 0, more detail below.
    pub log_level: i32,
}

impl FromContainerd {
    /// The handler's options with this in them. A log level only ever adds detail.
    pub fn apply(&self, config: HandlerConfig) -> HandlerConfig {
        let address = self.ttrpc_address.strip_prefix("unix://").unwrap_or(&self.ttrpc_address);
        let ttrpc_address = if address.is_empty() { config.containerd.ttrpc_address } else { PathBuf::from(address) };
        let log_level = match (config.log_level, self.log_level) {
            (LogLevel::Trace, _) | (_, ..=-8) => LogLevel::Trace,
            (LogLevel::Debug, _) | (_, ..=-4) => LogLevel::Debug,
            (level, _) => level,
        };
        HandlerConfig { log_level, containerd: Containerd { ttrpc_address, ..config.containerd }, ..config }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::error::Code;

    const TYPE: &str = "runtimeoptions.v1.Options";

    fn any(config_path: &str, config_body: &str) -> Vec<u8> {
        RuntimeOptions { config_path: config_path.into(), config_body: config_body.into(), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn no_options_are_none() {
        assert_eq!(decode("", &[]).unwrap(), None);
        assert_eq!(decode(TYPE, &[]).unwrap(), None);
    }

    #[test]
    fn a_body_is_the_options() {
        for prefix in ["", "type.googleapis.com/", "types.containerd.io/"] {
            let value = any("", "sandboxer = \"wasm\"\n[runtime]\nname = \"crun\"");
            let config = decode(&format!("{prefix}{TYPE}"), &value).unwrap().unwrap();
            assert_eq!((config.sandboxer.as_str(), config.runtime.name.as_str()), ("wasm", "crun"));
        }
    }

    #[test]
    fn a_path_wins_over_the_body() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("runc.toml");
        std::fs::write(&file, "log_level = \"debug\"").unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(decode(TYPE, &any(path, "ConfigPath = \"x\"")).unwrap().unwrap().log_level, LogLevel::Debug);
        std::fs::write(&file, "log_levle = \"debug\"").unwrap();
        let error = decode(TYPE, &any(path, "")).unwrap_err();
        assert!(error.to_string().contains(path) && error.to_string().contains("log_levle"), "{error}");
    }

    #[test]
    fn a_handler_s_name_finds_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let read = |handler: &str| named(folder.path(), handler);
        assert_eq!(read("").unwrap(), HandlerConfig::default());
        assert_eq!(read("magnetar-qemu").unwrap().sandboxer, "qemu");
        assert_eq!(read("other").unwrap(), HandlerConfig::default());
        for (name, sandboxer) in [("runc", "one"), ("wasmtime", "wasm"), ("other", "two")] {
            std::fs::write(folder.path().join(format!("{name}.toml")), format!("sandboxer = {sandboxer:?}")).unwrap();
        }
        for (handler, sandboxer) in [("", "one"), ("magnetar-runc", "one"), ("magnetar-wasmtime", "wasm"), ("other", "two")] {
            assert_eq!(read(handler).unwrap().sandboxer, sandboxer, "{handler:?}");
        }
        std::fs::write(folder.path().join("default.toml"), "sandboxer = \"three\"").unwrap();
        assert_eq!(read("").unwrap().sandboxer, "three");
        std::fs::write(folder.path().join("runc.toml"), "sandboxr = 1").unwrap();
        for handler in ["magnetar-runc", "magnetar-../runc", "../x", "magnetar-.hidden"] {
            assert_eq!(read(handler).unwrap_err().code(), Code::InvalidArgument, "{handler}");
        }
    }

    #[test]
    fn a_handler_s_name_is_found() {
        let json = br#"{"Version":"v1","Metadata":{"ID":"x","Config":{"a":1},"RuntimeHandler":"magnetar-runc","IP":""}}"#;
        assert_eq!(handler_in_metadata(json).as_deref(), Some("magnetar-runc"));
        assert_eq!(handler_in_metadata(b"[]"), None);
        for (runtime, handler) in [
            ("io.containerd.magnetar.v2", ""),
            ("io.containerd.magnetar-qemu.v2", "magnetar-qemu"),
            ("/usr/local/bin/containerd-shim-magnetar-v2", ""),
            ("containerd-shim-magnetar-qemu-v2", "magnetar-qemu"),
            ("io.containerd.runc.v2", ""),
            ("", ""),
        ] {
            assert_eq!(handler_in_runtime(runtime), handler, "{runtime}");
        }
    }

    #[test]
    fn the_file_that_we_ship_holds_the_defaults() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/magnetar");
        assert_eq!(named(&shipped, "magnetar-runc").unwrap(), HandlerConfig::default());
        assert_eq!(named(&shipped, "").unwrap(), HandlerConfig::default());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (type_url, value, word) in [
            ("containerd.runc.v1.Options", any("", ""), "runtime_type"),
            ("xruntimeoptions.v1.Options", any("", ""), "runtime_type"),
            (TYPE, vec![0xff, 0xff], "decode"),
            (TYPE, any("etc/runc.toml", ""), "absolute"),
            (TYPE, any("", "sandboxr = 1"), "sandboxr"),
        ] {
            let error = decode(type_url, &value).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn containerd_knows_its_own_socket() {
        let said = FromContainerd { ttrpc_address: "unix:///run/other/containerd.sock.ttrpc".into(), log_level: -4 };
        let config = said.apply(HandlerConfig::default());
        assert_eq!(config.containerd.ttrpc_address, PathBuf::from("/run/other/containerd.sock.ttrpc"));
        assert_eq!(config.log_level, LogLevel::Debug);
        let silent = FromContainerd::default().apply(HandlerConfig::default());
        assert_eq!(silent, HandlerConfig::default());
    }

    #[test]
    fn a_quiet_containerd_takes_no_detail_away() {
        let config = HandlerConfig { log_level: LogLevel::Trace, ..HandlerConfig::default() };
        assert_eq!(FromContainerd { log_level: -4, ..Default::default() }.apply(config.clone()).log_level, LogLevel::Trace);
        assert_eq!(FromContainerd { log_level: 8, ..Default::default() }.apply(config).log_level, LogLevel::Trace);
    }
}
