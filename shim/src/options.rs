// SPDX-License-Identifier: Apache-2.0
//! A handler's options, as containerd passes them.
//!
//! containerd gives each shim the `options` table of its runtime handler as a protobuf `Any`. For
//! every runtime but its own that is a `runtimeoptions.v1.Options`: the path of a file, or, where
//! the table names none, the table itself as TOML.

use magnetar_core::config::{Containerd, HandlerConfig, LogLevel};
use magnetar_core::error::{Error, Result};
use prost::Message;
use std::path::{Path, PathBuf};

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

/// The options in an `Any` with this `type_url` and `value`.
///
/// # Errors
/// `InvalidArgument` for a type that is not ours to read and for what is wrong in the options.
pub fn decode(type_url: &str, value: &[u8]) -> Result<HandlerConfig> {
    if type_url.is_empty() && value.is_empty() {
        return Ok(HandlerConfig::default());
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
        return HandlerConfig::read(path);
    }
    let text = std::str::from_utf8(&options.config_body).map_err(|e| Error::invalid(format!("the runtime handler's options are not UTF-8: {e}")))?;
    HandlerConfig::parse(text)
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
    fn no_options_are_the_defaults() {
        assert_eq!(decode("", &[]).unwrap(), HandlerConfig::default());
        assert_eq!(decode(TYPE, &[]).unwrap(), HandlerConfig::default());
    }

    #[test]
    fn a_body_is_the_options() {
        for prefix in ["", "type.googleapis.com/", "types.containerd.io/"] {
            let config = decode(&format!("{prefix}{TYPE}"), &any("", "sandboxer = \"wasm\"\n[runtime]\nname = \"crun\"")).unwrap();
            assert_eq!((config.sandboxer.as_str(), config.runtime.name.as_str()), ("wasm", "crun"));
        }
    }

    #[test]
    fn a_path_wins_over_the_body() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("runc.toml");
        std::fs::write(&file, "log_level = \"debug\"").unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(decode(TYPE, &any(path, "ConfigPath = \"x\"")).unwrap().log_level, LogLevel::Debug);
        std::fs::write(&file, "log_levle = \"debug\"").unwrap();
        let error = decode(TYPE, &any(path, "")).unwrap_err();
        assert!(error.to_string().contains(path) && error.to_string().contains("log_levle"), "{error}");
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
