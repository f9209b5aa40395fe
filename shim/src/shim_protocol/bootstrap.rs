// SPDX-License-Identifier: Apache-2.0
//! Reads the parameters of `start`, in either of containerd's two protocols.
//!
//! From 2.3 on containerd sends a `BootstrapParams` on standard input and expects a
//! `BootstrapResult`. Before, it sends the handler's options on standard input and the rest in
//! flags and the environment, and expects JSON. The later protocol still has the flags and the
//! environment, so the input alone decides.

use super::Call;
use crate::options::{self, FromContainerd};
use containerd_shim_protos::TASK_API_VERSION;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use magnetar_core::config::HandlerConfig;
use magnetar_core::error::{Error, Result};
use std::path::Path;

/// The type of the options among a bootstrap's extensions.
const OPTIONS: &str = "runtimeoptions.v1.Options";

/// The protocol in which containerd wants its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// containerd 2.3 and later.
    Bootstrap,
    /// containerd before 2.3.
    Flags,
}

/// The parameters of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// The handler's options, with the settings that containerd passed.
    pub config: HandlerConfig,
    /// How to answer.
    pub protocol: Protocol,
}

/// Decodes standard input; `ttrpc_address` comes from the environment.
///
/// # Errors
/// `InvalidArgument` for input of neither protocol, for another sandbox, or with invalid options.
pub fn read(call: &Call, input: &[u8], ttrpc_address: String) -> Result<Parameters> {
    if let Some(parameters) = bootstrap(call, input)? {
        let said = FromContainerd {
            ttrpc_address: if parameters.containerd_ttrpc_address.is_empty() { ttrpc_address } else { parameters.containerd_ttrpc_address },
            log_level: parameters.log_level.value().min(if call.debug { -4 } else { i32::MAX }),
        };
        let extensions = parameters.extensions.into_iter().filter_map(|extension| extension.value.into_option());
        // Other extensions are ignored: they are not meant for us.
        let options = match extensions.into_iter().find(|any| any.type_url.rsplit('/').next() == Some(OPTIONS)) {
            Some(any) => options::decode(&any.type_url, &any.value)?,
            None => None,
        };
        let config = options.map_or_else(|| call.named_options(), Ok)?;
        return Ok(Parameters { config: said.apply(config), protocol: Protocol::Bootstrap });
    }
    let any = Any::parse_from_bytes(input).map_err(|e| Error::invalid(format!("standard input has no runtime options: {e}")))?;
    let said = FromContainerd { ttrpc_address, log_level: if call.debug { -4 } else { 0 } };
    let config = options::decode(&any.type_url, &any.value)?.map_or_else(|| call.named_options(), Ok)?;
    Ok(Parameters { config: said.apply(config), protocol: Protocol::Flags })
}

/// Encodes the answer: the address of the sandbox process.
///
/// # Errors
/// When it cannot be encoded.
pub fn answer(protocol: Protocol, socket: &Path) -> Result<Vec<u8>> {
    let address = format!("unix://{}", socket.display());
    match protocol {
        Protocol::Bootstrap => {
            let result = BootstrapResult { version: TASK_API_VERSION, address, protocol: "ttrpc".into(), ..Default::default() };
            result.write_to_bytes().map_err(|e| Error::internal(format!("cannot encode the answer: {e}")))
        }
        Protocol::Flags => {
            Ok(serde_json::json!({ "version": TASK_API_VERSION, "address": address, "protocol": "ttrpc" }).to_string().into_bytes())
        }
    }
}

/// The bootstrap parameters, or `None` if the input is of the earlier protocol.
fn bootstrap(call: &Call, input: &[u8]) -> Result<Option<BootstrapParams>> {
    let Ok(parameters) = BootstrapParams::parse_from_bytes(input) else { return Ok(None) };
    if !input.is_empty() && (parameters.instance_id == call.id && parameters.namespace == call.namespace) {
        return Ok(Some(parameters));
    }
    // An `Any` also decodes as parameters, with its type as the id and its value as the namespace.
    let names_only =
        BootstrapParams { instance_id: parameters.instance_id.clone(), namespace: parameters.namespace.clone(), ..Default::default() };
    if parameters == names_only {
        return Ok(None);
    }
    Err(Error::invalid(format!(
        "the parameters on standard input are for sandbox {:?} in namespace {:?}, the flags for {:?} in {:?}",
        parameters.instance_id, parameters.namespace, call.id, call.namespace
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;
    use containerd_shim_protos::protobuf::EnumOrUnknown;
    use magnetar_core::config::LogLevel;
    use std::path::PathBuf;

    fn call() -> Call {
        Call { namespace: "k8s.io".into(), id: "pod".into(), config_dir: "/nonexistent".into(), ..Default::default() }
    }

    /// `runtimeoptions.v1.Options { config_body }`.
    fn options(body: &str) -> Any {
        let mut value = vec![0x1a, body.len() as u8];
        value.extend_from_slice(body.as_bytes());
        Any { type_url: OPTIONS.into(), value, ..Default::default() }
    }

    fn parameters(id: &str) -> BootstrapParams {
        let extension = |any: Any| Extension { value: Some(any).into(), ..Default::default() };
        BootstrapParams {
            instance_id: id.into(),
            namespace: "k8s.io".into(),
            containerd_ttrpc_address: "/run/x.ttrpc".into(),
            log_level: EnumOrUnknown::from_i32(-8),
            extensions: vec![
                extension(Any { type_url: "something.new".into(), ..Default::default() }),
                extension(options("sandboxer = \"wasm\"")),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn containerd_2_3_sends_bootstrap_parameters() {
        let read = read(&call(), &parameters("pod").write_to_bytes().unwrap(), "/ignored".into()).unwrap();
        assert_eq!(read.protocol, Protocol::Bootstrap);
        assert_eq!(read.config.sandboxer, "wasm");
        assert_eq!(read.config.containerd.ttrpc_address, PathBuf::from("/run/x.ttrpc"));
        assert_eq!(read.config.log_level, LogLevel::Trace);
    }

    #[test]
    fn containerd_2_2_sends_only_options() {
        let input = options("[runtime]\nname = \"crun\"").write_to_bytes().unwrap();
        let parameters = read(&Call { debug: true, ..call() }, &input, "/run/env.ttrpc".into()).unwrap();
        assert_eq!(parameters.protocol, Protocol::Flags);
        assert_eq!(parameters.config.runtime.name, "crun");
        assert_eq!(parameters.config.containerd.ttrpc_address, PathBuf::from("/run/env.ttrpc"));
        assert_eq!(parameters.config.log_level, LogLevel::Debug);
        assert_eq!(read(&call(), &[], String::new()).unwrap().config, HandlerConfig::default());
    }

    #[test]
    fn input_for_another_shim_is_refused() {
        let error = read(&call(), &parameters("other").write_to_bytes().unwrap(), String::new()).unwrap_err();
        assert!(error.to_string().contains("other"), "{error}");
        assert!(read(&call(), &[0xff; 7], String::new()).is_err());
    }

    #[test]
    fn each_protocol_gets_its_answer() {
        let socket = Path::new("/run/magnetar/k8s.io/pod/task.sock");
        let result = BootstrapResult::parse_from_bytes(&answer(Protocol::Bootstrap, socket).unwrap()).unwrap();
        assert_eq!(
            (result.version, result.address.as_str(), result.protocol.as_str()),
            (3, "unix:///run/magnetar/k8s.io/pod/task.sock", "ttrpc")
        );
        let json: serde_json::Value = serde_json::from_slice(&answer(Protocol::Flags, socket).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({ "version": 3, "address": result.address, "protocol": "ttrpc" }));
    }
}
