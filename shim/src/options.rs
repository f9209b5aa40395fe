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

/// Whether an `Any` holds options of a *task*, which containerd makes itself, in the type of its own runc shim, to say where
/// the Task API is and who owns the streams. They are not the handler's.
pub fn are_of_task(type_url: &str) -> bool {
    type_url.rsplit('/').next() == Some("containerd.runc.v1.Options")
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
mod tests;
