// SPDX-License-Identifier: Apache-2.0
//! A handler's options: what containerd passes, or else the file that is named like its sandboxer.
//!
//! ```text
//!   options table with ConfigPath            that file
//!   any other options table                  the table itself, as TOML
//!   no options, sandboxer magnetar-<kind>    /etc/magnetar/<kind>.toml, or else the defaults of the kind
//! ```
//!
//! containerd gives each shim the `options` table of its runtime handler as a protobuf `Any`. For
//! every runtime but its own that is a `runtimeoptions.v1.Options`, and up to 2.2 it then fails to
//! start containers in a sandbox that told where its Task API is: its client takes all options for
//! runc's (`getRuncOptions`). In a pod with a user namespace later ones fail too. So in the
//! configuration that we ship a handler has no options, and each kind is a sandboxer of its own
//! (`proxy_plugins.magnetar-<kind>`), all at the same address. The name comes with the request.

use magnetar_core::config::{Containerd, HandlerConfig, LogLevel};
use magnetar_core::error::{Code, Error, Result};
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
    let text = std::str::from_utf8(&options.config_body)
        .map_err(|e| Error::invalid(format!("the runtime handler's options are not UTF-8: {e}")))?;
    HandlerConfig::parse(text).map(Some)
}

/// Where the options of handlers without an options table are.
pub const CONFIG_DIR: &str = "/etc/magnetar";

/// The kind in the name of a sandboxer: `qemu` in `magnetar-qemu`, none in `magnetar`.
///
/// # Errors
/// `InvalidArgument` for a name that is none of ours.
pub fn kind_of_sandboxer(name: &str) -> Result<Option<String>> {
    let known = |kind: &&str| !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    match (name, name.strip_prefix("magnetar-").filter(known)) {
        ("" | "magnetar", _) => Ok(None),
        (_, Some(kind)) => Ok(Some(kind.into())),
        (_, None) => {
            Err(Error::invalid(format!("the sandboxer {name:?} of the runtime handler is none of ours: they are named magnetar-<kind>")))
        }
    }
}

/// The kind in the name of a runtime: `qemu` in `io.containerd.magnetar-qemu.v2`, and in
/// `containerd-shim-magnetar-qemu-v2`, which is what containerd executes for it.
pub fn kind_of_runtime(runtime: &str) -> Option<String> {
    let file = runtime.rsplit('/').next().unwrap_or_default();
    let name = match file.strip_prefix("containerd-shim-") {
        Some(rest) => rest.rsplit_once('-').map_or(rest, |(name, _version)| name),
        None => file.rsplit('.').nth(1).unwrap_or_default(),
    };
    kind_of_sandboxer(name).ok().flatten()
}

/// The options of a kind; without one, those of `runc`. A kind without a file has its defaults.
///
/// # Errors
/// `InvalidArgument` for what is wrong in the file.
pub fn of_kind(folder: &Path, kind: Option<&str>) -> Result<HandlerConfig> {
    let default = HandlerConfig::default();
    let kind = kind.unwrap_or(&default.sandboxer);
    match HandlerConfig::read(&folder.join(format!("{kind}.toml"))) {
        Err(error) if error.code() == Code::NotFound => Ok(HandlerConfig { sandboxer: kind.into(), ..default }),
        outcome => outcome,
    }
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
    fn a_kind_finds_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let read = |kind| of_kind(folder.path(), kind);
        assert_eq!(read(None).unwrap(), HandlerConfig::default());
        assert_eq!(read(Some("qemu")).unwrap().sandboxer, "qemu");
        for (kind, sandboxer) in [("runc", "one"), ("wasmtime", "wasm")] {
            std::fs::write(folder.path().join(format!("{kind}.toml")), format!("sandboxer = {sandboxer:?}")).unwrap();
        }
        for (kind, sandboxer) in [(None, "one"), (Some("runc"), "one"), (Some("wasmtime"), "wasm")] {
            assert_eq!(read(kind).unwrap().sandboxer, sandboxer, "{kind:?}");
        }
        std::fs::write(folder.path().join("runc.toml"), "sandboxr = 1").unwrap();
        assert_eq!(read(None).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn names_say_the_kind() {
        for (name, kind) in [("", None), ("magnetar", None), ("magnetar-runc", Some("runc")), ("magnetar-a_b-c", Some("a_b-c"))] {
            assert_eq!(kind_of_sandboxer(name).unwrap().as_deref(), kind, "{name}");
        }
        for name in ["runc", "magnetarrunc", "magnetar-", "magnetar-../x", "magnetar-.x", "shim"] {
            assert_eq!(kind_of_sandboxer(name).unwrap_err().code(), Code::InvalidArgument, "{name}");
        }
        for (runtime, kind) in [
            ("io.containerd.magnetar.v2", None),
            ("io.containerd.magnetar-qemu.v2", Some("qemu")),
            ("/usr/local/bin/containerd-shim-magnetar-v2", None),
            ("containerd-shim-magnetar-qemu-v2", Some("qemu")),
            ("io.containerd.runc.v2", None),
            ("", None),
        ] {
            assert_eq!(kind_of_runtime(runtime).as_deref(), kind, "{runtime}");
        }
    }

    #[test]
    fn the_file_that_we_ship_holds_the_defaults() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/magnetar");
        assert!(shipped.join("runc.toml").exists());
        assert_eq!(of_kind(&shipped, None).unwrap(), HandlerConfig::default());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (type_url, value, word) in [
            ("containerd.runc.v1.Options", any("", "x = 1"), "runtime_type"),
            ("xruntimeoptions.v1.Options", any("", "x = 1"), "runtime_type"),
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
