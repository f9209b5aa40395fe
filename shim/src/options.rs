// SPDX-License-Identifier: Apache-2.0
//! A handler's options: those that containerd passes, or else the file of its sandboxer's kind.
//!
//! ```text
//!   options table with ConfigPath            that file
//!   any other options table                  the table itself, as TOML
//!   no options, sandboxer magnetar-<kind>    /etc/magnetar/<kind>.toml, or the defaults without that file
//! ```
//!
//! containerd gives each shim the `options` table of its runtime handler as a protobuf `Any`. For
//! every runtime but runc's that is a `runtimeoptions.v1.Options`. With such options, containerd up
//! to 2.2 cannot start containers in a sandbox that returned an address of its Task API: its client
//! decodes all options as runc's (`getRuncOptions`). Later versions fail as well for a pod with a
//! user namespace. So handlers in the configuration that we ship have no options. Instead each kind
//! is a sandboxer of its own (`proxy_plugins.magnetar-<kind>`), all at the same address, and each
//! request names the sandboxer.

use magnetar_core::config::{Containerd, HandlerConfig, LogLevel};
use magnetar_core::error::{Code, Error, Result};
use prost::Message;
use std::path::{Path, PathBuf};

/// `runtimeoptions.v1.Options` of containerd's API.
#[derive(Clone, PartialEq, Message)]
struct RuntimeOptions {
    /// The type of the file's content. Not used.
    #[prost(string, tag = "1")]
    type_url: String,
    /// The file with the options.
    #[prost(string, tag = "2")]
    config_path: String,
    /// Otherwise, the options themselves.
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

/// Decodes the options in an `Any` with this `type_url` and `value`; `None` if there are none.
///
/// # Errors
/// `InvalidArgument` for another type, and for invalid options.
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

/// Whether an `Any` has options of a *task*. containerd makes these itself, in the type of its runc
/// shim, to say where the Task API is and which user owns the streams. They are not the handler's
/// options.
pub fn are_of_task(type_url: &str) -> bool {
    type_url.rsplit('/').next() == Some("containerd.runc.v1.Options")
}

/// The folder with the options of handlers that have no options table.
pub const CONFIG_DIR: &str = "/etc/magnetar";

/// The kind in the name of a sandboxer: `qemu` in `magnetar-qemu`, none in `magnetar`.
///
/// # Errors
/// `InvalidArgument` for a name that does not begin with `magnetar`.
pub fn kind_of_sandboxer(name: &str) -> Result<Option<String>> {
    let known = |kind: &&str| !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    match (name, name.strip_prefix("magnetar-").filter(known)) {
        ("" | "magnetar", _) => Ok(None),
        (_, Some(kind)) => Ok(Some(kind.into())),
        (_, None) => Err(Error::invalid(format!("the sandboxer {name:?} of the runtime handler is unknown: use magnetar-<kind>"))),
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

/// The options of a kind; without a kind, those of `runc`. A kind without a file has the defaults.
///
/// # Errors
/// `InvalidArgument` for an invalid file.
pub fn of_kind(folder: &Path, kind: Option<&str>) -> Result<HandlerConfig> {
    let default = HandlerConfig::default();
    let kind = kind.unwrap_or(&default.sandboxer);
    match HandlerConfig::read(&folder.join(format!("{kind}.toml"))) {
        Err(error) if error.code() == Code::NotFound => Ok(HandlerConfig { sandboxer: kind.into(), ..default }),
        outcome => outcome,
    }
}

/// Settings that containerd passes when it starts a shim. They override a file: containerd itself
/// knows best where it listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FromContainerd {
    /// containerd's ttrpc socket, as a path or a `unix://` address; empty if not given.
    pub ttrpc_address: String,
    /// containerd's log level: INFO is 0, and each step of four down is one level with more detail.
    pub log_level: i32,
}

impl FromContainerd {
    /// Puts these settings into a handler's options. The log level is only raised, never lowered.
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
mod tests;
