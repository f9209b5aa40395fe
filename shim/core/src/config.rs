// SPDX-License-Identifier: Apache-2.0
//! A handler's options: read from TOML, checked once, and passed to the sandbox process as data.
//!
//! containerd passes them for each runtime handler as a file (`ConfigPath`) or inline
//! (`ConfigBody`). Unknown keys are refused, so that a mistyped key is not silently ignored.

use crate::error::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// The oldest version of Cloud Hypervisor that magnetar-vmm runs: the first whose option `--cpus`
/// has `nested` (its vmm/src/config.rs).
pub const LEAST_CLOUD_HYPERVISOR: u32 = 50;

/// A runtime handler's options: which sandboxer serves it, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HandlerConfig {
    /// The sandboxer: a kind such as `runc`, found as `magnetar-<kind>`, or an absolute path.
    pub sandboxer: String,
    /// The directories and sockets of the node's containerd.
    pub containerd: Containerd,
    /// How containers are made.
    pub runtime: RuntimeConfig,
    /// The table `vm`. Only the sandboxer of virtual machines reads it, and refuses unknown keys.
    pub vm: serde_json::Map<String, serde_json::Value>,
    /// The log level of the sandbox process: `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: LogLevel,
}

/// The node's containerd, as its own configuration has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Containerd {
    /// `root` of containerd's configuration.
    pub root: PathBuf,
    /// `state` of containerd's configuration.
    pub state: PathBuf,
    /// containerd's gRPC socket, at which `serve` asks whether a pod is still known.
    pub address: PathBuf,
    /// containerd's ttrpc socket, to which events are sent.
    pub ttrpc_address: PathBuf,
}

/// How containers are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// The OCI runtime: `auto` (crun if the host has it and it works there, else runc), a name to
    /// search in `PATH`, or an absolute path. `libcontainer` makes containers without an OCI
    /// runtime.
    pub name: String,
    /// Whether cgroups are made through systemd. Must agree with the kubelet and with
    /// `SystemdCgroup` of other handlers.
    pub systemd_cgroup: bool,
    /// With `name = "wasmedge"`: whether modules are interpreted, and none is compiled.
    pub interpret: bool,
    /// For modules that compute with a language model: llama.cpp's server, as a name to search in
    /// `PATH` or an absolute path. Empty means `llama-server`.
    pub llama_server: String,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// Also suspicious events.
    #[default]
    Warn,
    /// Also events in the pod's life.
    Info,
    /// Also each call.
    Debug,
    /// Everything.
    Trace,
}

/// The name as in the configuration.
impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_ascii_lowercase())
    }
}

impl Default for HandlerConfig {
    fn default() -> Self {
        Self {
            sandboxer: "runc".into(),
            containerd: Containerd::default(),
            runtime: RuntimeConfig::default(),
            vm: serde_json::Map::new(),
            log_level: LogLevel::default(),
        }
    }
}

impl Default for Containerd {
    /// The defaults of containerd itself.
    fn default() -> Self {
        Self {
            root: "/var/lib/containerd".into(),
            state: "/run/containerd".into(),
            address: "/run/containerd/containerd.sock".into(),
            ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
        }
    }
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self { name: "auto".into(), systemd_cgroup: false, interpret: false, llama_server: String::new() }
    }
}

impl HandlerConfig {
    /// Reads options from a file.
    ///
    /// # Errors
    /// `NotFound` if there is no such file, `InvalidArgument` for invalid content.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).context(|| format!("cannot read the handler's options at {}", path.display()))?;
        Self::parse(&text).map_err(|e| Error::invalid(format!("{}: {e}", path.display())))
    }

    /// Reads options from TOML text.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key and the line.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|e| Error::invalid(format!("the handler's options do not parse: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// For a sandboxer that makes no virtual machines: refuses the table `vm`, which it would
    /// ignore.
    ///
    /// # Errors
    /// `InvalidArgument` where there is one.
    pub fn refuse_vm(&self) -> Result<()> {
        if self.vm.is_empty() {
            return Ok(());
        }
        Err(Error::invalid(format!("the handler's options have the table vm, but {} makes no virtual machines: remove it", self.sandboxer)))
    }

    /// For a sandboxer whose containers no OCI runtime of the node makes: refuses the table
    /// `runtime`, which it would ignore.
    ///
    /// # Errors
    /// `InvalidArgument` where it says something else than the defaults.
    pub fn refuse_runtime(&self) -> Result<()> {
        if self.runtime == RuntimeConfig::default() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the handler's options have the table runtime, but the containers of {} are made in its virtual machines: remove it",
            self.sandboxer
        )))
    }

    fn check(&self) -> Result<()> {
        let names = [("sandboxer", &self.sandboxer), ("runtime.name", &self.runtime.name)];
        for (key, name) in names {
            if name.is_empty() || name.contains('\0') || (name.contains('/') && !name.starts_with('/')) {
                return Err(Error::invalid(format!("{key} = {name:?} must be a plain name or an absolute path")));
            }
        }
        if self.runtime.interpret && self.runtime.name != "wasmedge" {
            return Err(Error::invalid("runtime.interpret is only for runtime.name = \"wasmedge\": remove it"));
        }
        let paths = [
            ("containerd.root", &self.containerd.root),
            ("containerd.state", &self.containerd.state),
            ("containerd.address", &self.containerd.address),
            ("containerd.ttrpc_address", &self.containerd.ttrpc_address),
        ];
        for (key, path) in paths {
            if !path.is_absolute() {
                return Err(Error::invalid(format!("{key} = {path:?} must be an absolute path")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_gives_the_defaults() {
        assert_eq!(HandlerConfig::parse("").unwrap(), HandlerConfig::default());
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = HandlerConfig::parse("[runtime]\nsystemd_cgruop = true\n").unwrap_err();
        assert!(error.to_string().contains("systemd_cgruop"), "{error}");
        assert_eq!(error.code(), crate::error::Code::InvalidArgument);
    }

    #[test]
    fn options_of_another_kind_are_refused() {
        let config = HandlerConfig::parse("[vm]\nvcpus = 2\n").unwrap();
        assert!(config.refuse_vm().unwrap_err().to_string().contains("the table vm"));
        assert!(config.refuse_runtime().is_ok());
        let config = HandlerConfig::parse("sandboxer = \"vmm\"\n[runtime]\nsystemd_cgroup = true\n").unwrap();
        assert!(config.refuse_runtime().unwrap_err().to_string().contains("the table runtime"));
        assert!(config.refuse_vm().is_ok());
    }

    #[test]
    fn only_wasmedge_can_be_told_to_interpret() {
        assert!(HandlerConfig::parse("[runtime]\nname = \"wasmedge\"\ninterpret = true\n").unwrap().runtime.interpret);
        let error = HandlerConfig::parse("[runtime]\nname = \"wasmtime\"\ninterpret = true\n").unwrap_err();
        assert!(error.to_string().contains("runtime.interpret"), "{error}");
    }

    #[test]
    fn relative_paths_are_refused() {
        assert!(HandlerConfig::parse("sandboxer = \"../evil\"").is_err());
        for key in ["root", "state", "address", "ttrpc_address"] {
            let error = HandlerConfig::parse(&format!("[containerd]\n{key} = \"var\"")).unwrap_err();
            assert!(error.to_string().contains(&format!("containerd.{key} = ")), "{error}");
        }
    }

    #[test]
    fn options_of_an_earlier_version_are_still_read() {
        let mut old = serde_json::to_value(HandlerConfig::default()).unwrap();
        old["containerd"].as_object_mut().unwrap().remove("address").unwrap();
        assert_eq!(serde_json::from_value::<HandlerConfig>(old).unwrap(), HandlerConfig::default());
    }
}
