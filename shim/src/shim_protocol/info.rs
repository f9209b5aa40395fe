// SPDX-License-Identifier: Apache-2.0
//! `-info`: the features of this runtime. containerd reports them to the kubelet (user namespaces,
//! recursive read-only mounts), and checks them before it asks for id-mapped mounts.
//!
//! They are the OCI runtime's own `features`. A kind of sandbox that does not use an OCI runtime
//! reports none, and containerd then assumes none.

use super::Call;
use crate::options;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use magnetar_core::config::HandlerConfig;
use magnetar_core::error::{Error, Result};
use magnetar_core::runtime::{cli, libcontainer};
use std::process::{Command, Stdio};

/// The name under which containerd decodes the features.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Returns the bytes for standard output; `input` has the handler's options.
///
/// # Errors
/// For invalid options.
pub fn run(call: &Call, input: &[u8]) -> Result<Vec<u8>> {
    let any = Any::parse_from_bytes(input).map_err(|e| Error::invalid(format!("standard input has no runtime options: {e}")))?;
    let options = if options::are_of_task(&any.type_url) { None } else { options::decode(&any.type_url, &any.value)? };
    let config = options.map_or_else(|| call.named_options(), Ok)?;
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    let features = features(&config).map(|value| Any { type_url: FEATURES.into(), value, ..Default::default() });
    let info = RuntimeInfo {
        name: "io.containerd.magnetar.v2".into(),
        version: MessageField::some(version),
        options: (!any.type_url.is_empty()).then_some(any).into(),
        features: features.into(),
        ..Default::default()
    };
    info.write_to_bytes().map_err(|e| Error::internal(format!("cannot encode the answer: {e}")))
}

/// The features of the OCI runtime, as JSON; `None` if it cannot report them.
fn features(config: &HandlerConfig) -> Option<Vec<u8>> {
    if config.sandboxer != "runc" && !config.sandboxer.ends_with("/magnetar-runc") {
        return None;
    }
    if config.runtime.name == libcontainer::NAME {
        return Some(libcontainer::features());
    }
    let program = cli::find(&config.runtime.name).ok()?;
    let output = Command::new(program).arg("features").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let is_object = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&output.stdout).is_ok();
    (output.status.success() && is_object).then_some(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_cannot_report_features_has_none() {
        let named = |sandboxer: &str, runtime: &str| {
            let mut config = HandlerConfig { sandboxer: sandboxer.into(), ..HandlerConfig::default() };
            config.runtime.name = runtime.into();
            features(&config)
        };
        assert_eq!(named("runc", "/bin/false"), None);
        assert_eq!(named("runc", "/bin/echo"), None);
        assert_eq!(named("wasm", "auto"), None);
        let own = named("runc", "libcontainer").unwrap();
        let own: serde_json::Value = serde_json::from_slice(&own).unwrap();
        assert_eq!(own["linux"]["mountExtensions"]["idmap"]["enabled"], true);
    }

    #[test]
    fn options_of_a_task_are_not_taken_for_the_handler_s() {
        let any = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![0x82, 1, 1, b'x'], ..Default::default() };
        let call = Call { config_dir: "/nonexistent".into(), ..Call::default() };
        assert!(run(&call, &any.write_to_bytes().unwrap()).is_ok());
    }

    #[test]
    fn the_answer_decodes() {
        let info =
            RuntimeInfo::parse_from_bytes(&run(&Call { config_dir: "/nonexistent".into(), ..Call::default() }, &[]).unwrap()).unwrap();
        assert_eq!(info.name, "io.containerd.magnetar.v2");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
    }
}
